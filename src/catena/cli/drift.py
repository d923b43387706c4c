"""`catena drift report`: is what is asked and answered now like what was asked and answered before?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catena.cli.session import session_of
from catena.core.errors import GateFailed

if TYPE_CHECKING:
    from catena.core.types import Report
    from catena.hub.store import Store

NEWEST = "latest.json"


def report(
    context: typer.Context,
    reference: Annotated[
        str, typer.Option(metavar="REF", help="Compare with this dataset instead of a time before.")
    ] = "",
    current: Annotated[str, typer.Option(metavar="REF", help="Look at this dataset instead of what was served.")] = "",
    since: Annotated[
        str, typer.Option(metavar="WHEN", help="Where the time to look at begins: 2026-01-31, 7d.")
    ] = "7d",
    until: Annotated[str, typer.Option(metavar="WHEN", help="Where it ends.")] = "0s",
    reference_since: Annotated[str, typer.Option(metavar="WHEN", help="Where the time before begins.")] = "28d",
    reference_until: Annotated[str, typer.Option(metavar="WHEN", help="Where it ends.")] = "7d",
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the page goes.  [default: drift in the workspace]")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 7 where something has drifted.")] = False,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A value of data.drift.")
    ] = None,
) -> None:
    """Compare lengths, languages, topics, refusals, moderation and latency of two times, or datasets.

    Writes a page (one HTML file) and JSON, stores the report under the name `drift`, and tells the gateway's /metrics.
    """
    from catena.cli.audit import note
    from catena.core.config import override
    from catena.core.types import Report

    session = session_of(context)
    config: dict[str, Any] = override({}, assignments or ())
    for name, value in (
        *(("since", since), ("until", until)),
        *(("reference_since", reference_since), ("reference_until", reference_until)),
    ):
        config.setdefault(name, value)
    audit = session.settings().govern.audit
    if audit.folder is not None:
        config.setdefault("folder", str(audit.folder))
    inputs = {name: ref for name, ref in (("reference", reference), ("current", current)) if ref}
    with session.open() as workspace, session.listeners() as listeners:
        made = workspace.do("data.drift", inputs, config, name="drift", refresh=True, listeners=listeners)
        assert isinstance(made, Report)
        told = _written(workspace.store, made, output or workspace.store.root / "drift")
        note(session, workspace, "drift.report", verdict=made.details["verdict"], drifted=made.details["drifted"])
    if session.out.json:
        session.out.value(told)
    else:
        rows = [_row(name, one) for name, one in made.details["features"].items()]
        session.out.table(("feature", "verdict", "PSI", "p", "KS", "change of share", "rows"), rows)
        session.out.note(told["file"])
    raise typer.Exit(GateFailed.exit_code if strict and made.details["drifted"] else 0)


def _written(store: Store, made: Report, folder: Path) -> dict[str, Any]:
    """Write page and JSON, and what the gateway tells; returns what was written."""
    from catena.hub.files import write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    base = folder / f"drift-{made.digest[:12]}"
    with TemporaryDirectory(dir=folder) as temporary:
        laid = store.files.checkout(made.files, Path(temporary) / "files")
        shutil.copyfile(laid / "drift.html", base.with_suffix(".html"))
    told = {**made.details, "digest": made.digest, "file": str(base.with_suffix(".html"))}
    body = json.dumps(told, ensure_ascii=False, indent=2).encode()
    newest = store.root / "drift" / NEWEST
    newest.parent.mkdir(exist_ok=True)
    for path in (base.with_suffix(".json"), newest):
        write_atomically(path, body)
    return told


def _row(name: str, one: dict[str, Any]) -> tuple[str, ...]:
    if one["verdict"] == "too few":
        return (name, "too few", "", "", "", "", f"{one['rows'][0]} / {one['rows'][1]}")
    ks = "" if one["ks"] is None else f"{one['ks']:.3f}"
    share = "" if one["difference"] is None else f"{100 * one['difference']:+.2f} %"
    rows = f"{one['rows'][0]} / {one['rows'][1]}"
    return (name, one["verdict"], f"{one['psi']:.3f}", f"{one['p']:.4f}", ks, share, rows)


COMMANDS = (
    (
        "report",
        report,
        "  catena drift report\n"
        "  catena drift report --reference feedback@3 --since 24h --strict\n"
        "  catena drift report --since 2026-02-01 --reference-since 2026-01-01 --reference-until 2026-02-01 --json",
    ),
)
