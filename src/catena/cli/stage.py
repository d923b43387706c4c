"""Commands about stages: do, explain."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from catena.cli.recipe import Executor, Mlflow, TensorBoard
from catena.cli.session import session_of
from catena.core.errors import EnvironmentProblem, UsageError


def do(
    context: typer.Context,
    stage: Annotated[
        str,
        typer.Argument(metavar="STAGE", help="A stage; `catena explain [STAGE]` shows them and their config."),
    ],
    use: Annotated[
        list[str] | None, typer.Option(metavar="INPUT=REF", help="Give an input something stored; many times.")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a value of the config; many times.")
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What the output is called.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    refresh: Annotated[bool, typer.Option("--refresh", help="Look at the outside world again (collecting).")] = False,
    on: Annotated[Executor, typer.Option(help="Who works on shards of rows; the outputs are the same.")] = "local",
    tensorboard: TensorBoard = None,
    mlflow: Mlflow = None,
) -> None:
    """Run one stage on stored things: a recipe of one step."""
    from catena.cli.views import artifact_line
    from catena.core.config import override

    session = session_of(context)
    inputs, config = pairs(use or ()), override({}, assignments or ())
    with session.open(create=True) as workspace, session.listeners(tensorboard, mlflow) as listeners:
        made = workspace.do(stage, inputs, config, name=name, seed=seed, refresh=refresh, on=on, listeners=listeners)
        # A step that changes nothing makes what is there already: then it has other names, too.
        called = name or f"do/{stage.rpartition('.')[2]}"
        newest = workspace.store.index.versions(name=called)[-1]
    ref = f"{newest.name}@{newest.version}"
    if session.out.json:
        session.out.value({"ref": ref, "digest": made.digest, "kind": made.kind})
    else:
        session.out.line(artifact_line(ref, made))


def pairs(texts: Any) -> dict[str, str]:
    """Read `input=ref` texts."""
    found: dict[str, str] = {}
    for text in texts:
        name, sign, ref = text.partition("=")
        if not (sign and name and ref):
            raise UsageError(f"--use {text!r} is not of the form input=ref", hint="For example: --use source=pages@2")
        found[name] = ref
    return found


def explain(
    context: typer.Context,
    stage: Annotated[str | None, typer.Argument(metavar="[STAGE]", help="Without it, all stages are listed.")] = None,
) -> None:
    """Show what a stage takes, makes, and can be told. Without a name all stages are listed."""
    from catena.cli.views import stage_record
    from catena.core.stage import stage_of
    from catena.flow.table import STAGES

    out = session_of(context).out
    if stage is None:
        stages = [{"stage": name, "summary": _summary(name)} for name in STAGES.names()]
        if out.json:
            out.value(stages)
        else:
            out.table(("stage", "what it does"), [(row["stage"], row["summary"]) for row in stages])
        return
    record = stage_record(stage_of(STAGES.load(stage)))
    if out.json:
        out.value(record)
        return
    out.line(f"{record['stage']}: {record['summary']}\n")
    inputs = [
        (row["name"], " or ".join(row["kinds"]), "required" if row["required"] else "optional")
        for row in record["inputs"]
    ]
    out.table(("input", "takes", ""), inputs, empty="no inputs")
    out.line(f"makes: {' or '.join(record['output'])}\n")
    config = [
        (row["name"], row["type"], "required" if row["required"] else row["default"], row["help"])
        for row in record["config"]
    ]
    out.table(("config", "type", "default", "what it is"), config, empty="no config")


def _summary(name: str) -> str:
    """Return what a stage does, or why it cannot be used here: a light installation lists every stage too."""
    from catena.core.stage import stage_of
    from catena.flow.table import STAGES

    try:
        return stage_of(STAGES.load(name)).summary
    except EnvironmentProblem as error:
        return f"({error.message}. {error.hint})"


COMMANDS = (
    ("do", do, "  catena do data.dedup --use source=pages --set threshold=0.8 --name unique"),
    ("explain", explain, "  catena explain\n  catena explain data.crawl"),
)
