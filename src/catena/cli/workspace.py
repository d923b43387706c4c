"""Commands about the workspace and the machine: init, doctor, fsck, gc."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

import typer

from catena.cli.session import session_of
from catena.core.errors import IntegrityError, UsageError


def init(
    context: typer.Context,
    template: Annotated[
        str | None, typer.Option(metavar="NAME", help="Write a recipe to begin with here; `list` names them.")
    ] = None,
    ci: Annotated[str | None, typer.Option("--ci", metavar="FORGE", help="Write a pipeline: github, gitlab.")] = None,
) -> None:
    """Make a workspace: ./.catena, or the folder of --workspace. One that is there is left as it is."""
    from pathlib import Path

    from catena.flow.templates import templates, write_pipeline, write_template
    from catena.hub.store import FOLDER, init_store

    session = session_of(context)
    if template == "list":
        if session.out.json:
            session.out.value(templates())
        else:
            session.out.table(("template", "description"), list(templates().items()))
        return
    written = [write_template(template, Path())] if template else []
    written += [write_pipeline(ci, Path())] if ci else []
    settings = session.settings()
    root = session.workspace or settings.workspace or Path.cwd() / FOLDER
    init_store(root, index_url=settings.index, files_url=settings.files).close()
    if session.out.json:
        files = {"files": [str(path) for path in written]} if written else {}
        session.out.value({"workspace": str(root.resolve()), **files})
    else:
        session.out.line(f"workspace {root.resolve()}")
        for path in written:
            session.out.line(f"wrote {path}")


def doctor(
    context: typer.Context, quick: Annotated[bool, typer.Option("--quick", help="Measure nothing.")] = False
) -> None:
    """Say what is wrong with this machine, and what to do. The workspace is looked at too."""
    from catena.cli.doctor import examine

    session = session_of(context)
    checks = examine(session.settings().workspace, quick=quick)
    if session.out.json:
        session.out.value([asdict(check) for check in checks])
    else:
        for check in checks:
            session.out.line(check.line())
    raise typer.Exit(5 if any(check.status == "fail" for check in checks) else 0)


def fsck(
    context: typer.Context,
    forget: Annotated[
        bool, typer.Option("--forget", help="Remove what is damaged, so that the next run makes it again.")
    ] = False,
) -> None:
    """Read every stored byte and name what is damaged. Exit code 6 if something is and was not forgotten."""
    from catena.core.events import Events
    from catena.hub.fsck import check, forget as forget_damaged

    session = session_of(context)
    with session.open() as workspace, session.out.progress() as listeners:
        findings = check(workspace.store, Events(listeners=listeners))
        forgotten = forget_damaged(workspace.store, findings) if forget else []
    if session.out.json:
        session.out.value({"findings": [asdict(finding) for finding in findings], "forgotten": forgotten})
        raise typer.Exit(IntegrityError.exit_code if findings and not forget else 0)
    rows = [(row.kind, ", ".join(row.names) or row.artifact[:12], row.file, row.problem) for row in findings]
    session.out.table(("kind", "artifact", "file", "problem"), rows, empty="every file is as it was stored")
    if forgotten:
        session.out.note(f"forgot {len(forgotten)} artifacts; run their recipes again")
    elif findings:
        session.out.note("`catena fsck --forget` removes them, so that the next run makes them again")
    raise typer.Exit(IntegrityError.exit_code if findings and not forget else 0)


def gc(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    older_than: Annotated[str, typer.Option(help="Spare what is younger: 90s, 30m, 12h, 7d.")] = "0s",
    unused: Annotated[
        bool, typer.Option("--unused", help="Drop artifacts that no tag and no newest version leads to.")
    ] = False,
) -> None:
    """Free space: leftovers, and bytes that nothing refers to. What a killed run left may be among them."""
    from catena.cli.progress import size
    from catena.hub.fsck import collect_garbage

    session = session_of(context)
    with session.open() as workspace:
        freed = collect_garbage(workspace.store, dry_run=dry_run, older_than=age(older_than), unused=unused)
    if session.out.json:
        session.out.value({"dry_run": dry_run, **asdict(freed)})
        return
    dropped = f", {len(freed.artifacts)} artifacts" if unused else ""
    session.out.line(f"{'would free' if dry_run else 'freed'} {size(freed.bytes)} in {freed.files} files{dropped}")


def age(text: str) -> timedelta:
    """Read `90s`, `30m`, `12h` or `7d`."""
    match = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if match is None:
        raise UsageError(f"{text!r} is not an age", hint="For example: --older-than 12h")
    return timedelta(seconds=int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]])


COMMANDS = (
    (
        "init",
        init,
        "  catena init\n  catena init --workspace /data/catena\n"
        "  catena init --template list\n  catena init --template lora --ci github",
    ),
    ("doctor", doctor, "  catena doctor\n  catena doctor --quick --json"),
    ("fsck", fsck, "  catena fsck\n  catena fsck --forget"),
    ("gc", gc, "  catena gc --dry-run\n  catena gc --unused --older-than 7d"),
)
