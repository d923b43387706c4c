"""Where `catena` begins: the list of commands, the options that all of them take, and the one boundary for errors."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from catena.cli import (
    advise,
    artifact,
    audit,
    bench,
    commit,
    compliance,
    compress,
    console,
    data,
    deploy,
    drift,
    erase,
    evaluate,
    export,
    feedback,
    history,
    hub,
    jobs,
    keys,
    model,
    plan_training,
    plugins,
    recipe,
    release,
    stage,
    train,
    tune,
    workspace,
)
from catena.cli.out import Out
from catena.cli.session import Session, session_of
from catena.core.errors import Cancelled, CatenaError, UsageError, environment_problem

app = typer.Typer(
    name="catena",
    help="From raw material to a served model, with one lineage: datasets, training, compression, evaluation, serving.",
    epilog="\b\nBegin with:\n  catena run recipes/python-helper.yaml\n  catena chat python-helper@production",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
GROUPS = (
    *(workspace, recipe, tune, stage, train, compress, evaluate, artifact, history, model, export, deploy, console),
    plan_training,
    advise,
)
for commands in GROUPS:
    for name, command, example in commands.COMMANDS:
        # \b keeps the lines of the example as they are.
        app.command(name, epilog=f"\b\nExamples:\n{example}")(command)
data_app = typer.Typer(
    name="data",
    help="Versions of datasets, as in git: diff, merge, erase.",
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for table in (data.COMMANDS, commit.COMMANDS, erase.COMMANDS, feedback.DATA_COMMANDS):
    for name, command, example in table:
        data_app.command(name, epilog=f"\b\nExamples:\n{example}")(command)
app.add_typer(data_app)
app.add_typer(bench.app)
for noun, help_, group in (
    ("hub", "Models and datasets for Hugging Face clients.", hub.COMMANDS),
    ("keys", "Who may use a server that runs with --auth.", keys.COMMANDS),
    ("audit", "What was asked, answered, decided and administered.", audit.COMMANDS),
    ("compliance", "Evidence for a checklist, and the change log of models.", compliance.COMMANDS),
    ("feedback", "What users said of answers.", feedback.COMMANDS),
    ("plugins", "Packages that add stages, filters, engines.", plugins.COMMANDS),
    ("drift", "Whether what is asked and answered changes.", drift.COMMANDS),
    ("jobs", "Work that nobody waits for: batches of a gateway.", jobs.COMMANDS),
    ("release", "A new model for few users first, and back if it is worse.", release.COMMANDS),
):
    noun_app = typer.Typer(
        name=noun,
        help=help_,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    for name, command, example in group:
        noun_app.command(name, epilog=f"\b\nExamples:\n{example}")(command)
    app.add_typer(noun_app)


def print_version(context: typer.Context, wanted: bool) -> None:
    """Print the version and end."""
    from catena import __version__

    if wanted:
        session_of(context).out.line(f"catena {__version__}")
        raise typer.Exit


@app.callback()
def everywhere(
    workspace: Annotated[
        Path | None, typer.Option("--workspace", "-w", help="The workspace's folder (else CATENA_WORKSPACE, .catena).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no notes.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Declare the options for the help; `take_common` has taken them off the line before."""


@dataclass(frozen=True, slots=True)
class Common:
    """The options that every command takes, and the words that are left for it."""

    rest: list[str]
    workspace: Path | None
    json: bool
    quiet: bool
    debug: bool


def take_common(arguments: Sequence[str]) -> Common:
    """Take the common options off a command line, wherever they stand before `--`."""
    rest: list[str] = []
    flags: set[str] = set()
    workspace: Path | None = None
    words = iter(arguments)
    for word in words:
        option, sign, value = word.partition("=")
        if word == "--":
            rest += [word, *words]
        elif word in ("--json", "--quiet", "-q", "--debug"):
            flags.add(word)
        elif option == "--workspace" or word == "-w":
            found = value if sign else next(words, "")
            if not found:
                raise UsageError(f"{option} needs a folder", hint="For example: catena list --workspace .catena")
            workspace = Path(found)
        else:
            rest.append(word)
    return Common(rest, workspace, "--json" in flags, bool(flags & {"--quiet", "-q"}), "--debug" in flags)


def main() -> None:
    """Run the command line of this process and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no character for something shows `?`
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return the exit code; every error ends here."""
    out, debug = Out(json="--json" in arguments, quiet=False), "--debug" in arguments
    try:
        common = take_common(arguments)
        out = Out(json=common.json, quiet=common.quiet)
        session = Session(out, common.workspace, common.debug)
        code = app(args=common.rest or ["--help"], prog_name="catena", standalone_mode=False, obj=session)
        return code if isinstance(code, int) else 0
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        known = known_error(error)
        out.error(known or unexpected(error), traceback.format_exc() if debug else "")
        return (known or CatenaError("")).exit_code


def known_error(error: BaseException) -> CatenaError | None:
    """Translate what a command may raise into our errors, or None."""
    if isinstance(error, CatenaError):
        return error
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Cancelled("stopped", hint="The same command goes on where it was.")
    if isinstance(error, typer.TyperException):
        text = str(getattr(error, "format_message", lambda: error)()).rstrip(".").replace("Value error, ", "")
        return UsageError(
            text[:1].lower() + text[1:], hint="`catena --help`, or --help after a command, shows what it takes."
        )
    return environment_problem(error)


def unexpected(error: BaseException) -> CatenaError:
    """Keep the traceback of an error that nobody foresaw in a file, and say where."""
    text = "".join(traceback.format_exception(error))
    message = f"something unexpected happened: {type(error).__name__}: {error}".splitlines()[0]
    try:
        descriptor, path = tempfile.mkstemp(prefix="catena-error-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as stream:
            stream.write(text)
    except OSError:
        return CatenaError(message, hint="Run it again with --debug to see the traceback.")
    return CatenaError(message, hint=f"The traceback is in {path}; --debug shows it here.")
