"""`catena compliance report | changes`: evidence for a checklist, and the change log of every model."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from catena.cli.audit import note
from catena.cli.session import session_of
from catena.core.errors import GateFailed


def report(
    context: typer.Context,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to write it.  [default: compliance in the workspace]")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 7 where a line failed.")] = False,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="A setting that the server runs with.")
    ] = None,
) -> None:
    """Collect evidence for a checklist, as HTML and signed JSON: encryption, retention, keys, licences, moderation."""
    from catena.govern.compliance import collect, signed
    from catena.govern.compliance_page import page

    session = session_of(context)
    with session.open() as workspace:
        store = workspace.store
        found = collect(store, session.settings(assignments or ()).govern)
        folder = output or store.root / "compliance"
        folder.mkdir(parents=True, exist_ok=True)
        base = folder / f"compliance-{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}"
        base.with_suffix(".json").write_bytes(signed(found, store.root))
        base.with_suffix(".html").write_text(page(found, store), encoding="utf-8")
        note(session, workspace, "compliance.report", counts=found.counts(), file=base.name)
    if session.out.json:
        session.out.value({**asdict(found), "counts": found.counts(), "file": str(base.with_suffix(".json"))})
    else:
        rows = [(line.status, line.asks, _shortly(line.evidence)) for line in found.lines]
        session.out.table(("result", "what is asked", "evidence"), rows)
        session.out.note(f"{base.with_suffix('.html')}")
    raise typer.Exit(GateFailed.exit_code if strict and found.counts()["failed"] else 0)


def changes(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="One model; by default all.")] = "",
) -> None:
    """List every version of every model, what it was made by and from, and every move of its tags."""
    from catena.govern.changes import change_log

    session = session_of(context)
    with session.open() as workspace:
        found = change_log(workspace.store, name)
    if session.out.json:
        session.out.value([asdict(change) for change in found])
        return
    rows = [
        (
            f"{change.time:%Y-%m-%d %H:%M}",
            change.name,
            change.detail,
            change.by or change.run,
            "; ".join(f"{key} {value}" for key, value in (change.changed or change.inputs).items())[:100],
        )
        for change in found
    ]
    session.out.table(("time", "model", "what", "by", "from, or changed"), rows, empty="there are no models yet")


def _shortly(evidence: object) -> str:
    text = ", ".join(f"{key}: {value}" for key, value in dict(evidence).items())  # type: ignore[call-overload]
    return text if len(text) <= 100 else text[:99] + "…"


COMMANDS = (
    (
        "report",
        report,
        "  catena compliance report\n  catena compliance report --strict --set govern.auth.on=true --json",
    ),
    ("changes", changes, "  catena compliance changes\n  catena compliance changes python-helper --json"),
)
