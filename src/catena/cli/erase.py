"""`catena data erase | erased`: take rows out of every version, with proof; and the list of what was erased."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from catena.cli.data import Author, Name, who
from catena.cli.session import Session, session_of
from catena.core.errors import UsageError


def erase(
    context: typer.Context,
    name: Name,
    id: Annotated[
        list[str] | None, typer.Option("--id", metavar="ID", help="A row's `_id`; may be given often.")
    ] = None,
    where: Annotated[str, typer.Option(metavar="FIELD=VALUE", help="All rows with this value, in any version.")] = "",
    subject: Annotated[
        str, typer.Option(metavar="SUBJECT", help="All rows that were collected of this subject's feedback.")
    ] = "",
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept in the tombstone.")] = "",
    sources: Annotated[
        bool, typer.Option("--sources", help="Also what the rows were made from, and all made of that.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be erased.")] = False,
    author: Author = "",
) -> None:
    """Erase rows and all that was made from them, for good. They go from every version, branch and tag."""
    from catena.core.events import Events
    from catena.hub.erase import erase

    session = session_of(context)
    with session.open() as workspace, session.out.progress() as listeners:
        if subject and (where or id):
            raise UsageError("say which rows in one way: --id, --where or --subject")
        where = f"metadata.subject={_tag(session, workspace.store.root, subject)}" if subject else where
        done = erase(
            workspace.store,
            name,
            ids=id or (),
            where=where,
            reason=reason,
            by=who(author),
            sources=sources,
            dry_run=dry_run,
            events=Events(listeners=listeners),
        )
    shown = done.model_dump(mode="json")
    if session.out.json:
        session.out.value({**shown, "dry_run": dry_run})
    else:
        _say(session, shown, dry_run)


def _tag(session: Session, root: Path, subject: str) -> str:
    """Return the keyed hash by which rows tell whose they are."""
    from functools import partial

    from catena.govern.audit.log import Places
    from catena.govern.audit.vault import Vault
    from catena.govern.crypto import sealing_keys

    return Vault(Places(root, session.settings().govern.audit).subjects, partial(sealing_keys, root)).tag(subject)


def _say(session: Session, done: dict[str, Any], dry_run: bool) -> None:
    fields = {
        "would erase" if dry_run else "erased": f"{len(done['rows'])} rows ({done['asked']} asked for)",
        "tables": len(done["tables"]),
    }
    after = done["proof"].get("after", {})
    if not dry_run:
        fields |= {
            "datasets": f"{len(done['datasets'])} rewritten",
            "commits": f"{len(done['commits'])} rewritten and signed",
            "destroyed": f"{done['files']} files, {done['bytes']:,} bytes",
            "proof": f"{after['files']} files, {after['bytes']:,} bytes searched, raw and decoded: "
            f"{after['ids_found']} ids, {after['pieces_found']} of {after['pieces_sought']} pieces of text found",
            "tombstone": f"erasures/{done['id']}.json",
        }
    session.out.fields({**fields, "retrain": ", ".join(done["retrain"])})
    for row in after.get("also_in_rows", ()):
        session.out.note(f"the row {row} holds pieces of the same text; erase it too if it is of the same person")
    for path in done["elsewhere"]:
        session.out.note(f"not a dataset, and not touched: {path} holds pieces of it")


def erased(context: typer.Context) -> None:
    """List what was erased, and whether its proof holds. A tombstone for each erasure is signed."""
    from catena.hub.erase import tombstones

    session = session_of(context)
    with session.open() as workspace:
        found = tombstones(workspace.store)
    if session.out.json:
        session.out.value([{**item.model_dump(mode="json"), "valid": valid} for item, valid in found])
        return
    rows = [
        (item.id, item.time[:19], item.name, len(item.rows), item.by, item.reason, "yes" if valid else "NO")
        for item, valid in found
    ]
    session.out.table(
        ("erasure", "time", "name", "rows", "by", "reason", "signature holds"), rows, empty="nothing was erased"
    )


COMMANDS = (
    (
        "erase",
        erase,
        "  catena data erase pages --id 3f2a... --reason 'asked by the person'\n"
        "  catena data erase pages --where _source=https://example.org/ada --dry-run\n"
        "  catena data erase feedback --subject ada@corp --reason 'asked by the person'",
    ),
    ("erased", erased, "  catena data erased --json"),
)
