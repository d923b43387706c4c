"""`catena audit verify | search | export | erase | rewrap | prune`, and the note of every administrative act."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catena.cli.data import who
from catena.cli.session import Session, session_of
from catena.cli.workspace import age
from catena.core.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    from catena.govern.audit.reading import Query
    from catena.workspace import Workspace

Subject = Annotated[str, typer.Option(metavar="SUBJECT", help="Whose: what keys are made --for.")]
Text = Annotated[str, typer.Option(metavar="WORDS", help="That say this anywhere.")]
Kind = Annotated[str, typer.Option(metavar="KIND", help="request, answer, act, gap or erased.")]
Model = Annotated[str, typer.Option(metavar="NAME", help="About this model.")]
Id = Annotated[str, typer.Option("--id", metavar="ID", help="Of one request, and its answer.")]
Since = Annotated[str, typer.Option(metavar="WHEN", help="2026-01-31, or an age: 7d.")]
Until = Annotated[str, typer.Option(metavar="WHEN", help="Before this.")]


def note(session: Session, workspace: Workspace, act: str, *, about: str = "", **fields: Any) -> None:
    """Write an administrative act of this command into the workspace's audit; whom it is `about` only as a keyed hash,
    so that it can be erased.
    """
    from catena.govern.audit.log import Log

    with Log(workspace.store.root, session.settings().govern.audit) as log:
        tag = {"tag": log.vault.tag(about)} if about else {}
        log.act({"act": act, "by": who(""), **tag, **fields})


def verify(
    context: typer.Context,
    deep: Annotated[bool, typer.Option("--deep", help="Open every record, too.")] = False,
) -> None:
    """Check every byte, their order and number, and the signatures. Exit code 6 if something is not as it was."""
    from catena.govern.audit.verify import verify

    session = session_of(context)
    with session.open() as workspace:
        found = verify(workspace.store.root, session.settings().govern.audit, deep=deep)
    if session.out.json:
        session.out.value({**asdict(found), "sound": found.sound})
    else:
        told = {
            key: value for key, value in asdict(found).items() if key not in ("findings", "first", "last") and value
        }
        session.out.fields({**told, "range": f"{found.first} to {found.last}"} if found.records else told)
        session.out.table(
            ("where", "problem"),
            [(finding.where, finding.problem) for finding in found.findings],
            empty="everything is as it was written" if found.records else "there is no audit here yet",
        )
    raise typer.Exit(0 if found.sound else IntegrityError.exit_code)


def search(
    context: typer.Context,
    subject: Subject = "",
    text: Text = "",
    kind: Kind = "",
    model: Model = "",
    id: Id = "",
    since: Since = "",
    until: Until = "",
    limit: Annotated[int, typer.Option(min=1, help="Most entries.")] = 100,
) -> None:
    """Look for entries, oldest first. That somebody looked is written down."""
    from catena.govern.audit.reading import entries

    session = session_of(context)
    query = _query(subject, text, kind, model, id, since, until)
    with session.open() as workspace:
        config = session.settings().govern.audit
        found = list(islice(entries(workspace.store.root, config, query), limit))
        note(session, workspace, "audit.search", about=subject, query=_asked(query), found=len(found))
    if session.out.json:
        session.out.value(found)
        return
    rows = [
        (entry["seq"], entry["time"][:19], entry["kind"], entry.get("subject") or entry.get("by", ""), _gist(entry))
        for entry in found
    ]
    session.out.table(("seq", "time", "kind", "who", "what"), rows, empty="nothing is found")


def export(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Written as JSON lines, in clear.")],
    subject: Subject = "",
    text: Text = "",
    kind: Kind = "",
    model: Model = "",
    id: Id = "",
    since: Since = "",
    until: Until = "",
) -> None:
    """Write entries to a file, for an auditor or for the person whom they are about."""
    from catena.govern.audit.reading import entries

    session = session_of(context)
    query = _query(subject, text, kind, model, id, since, until)
    count = 0
    with session.open() as workspace, file.open("x", encoding="utf-8") as stream:
        for entry in entries(workspace.store.root, session.settings().govern.audit, query):
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
            count += 1
        note(session, workspace, "audit.export", about=subject, query=_asked(query), found=count, file=str(file))
    if session.out.json:
        session.out.value({"file": str(file), "entries": count})
    else:
        session.out.line(f"{count} entries in {file}")


def erase(
    context: typer.Context,
    subject: Annotated[str, typer.Argument(metavar="SUBJECT", help="Whose records shall be unreadable.")],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept.")] = "",
) -> None:
    """Destroy a subject's data key: what was recorded of it is unreadable, for good, and the chain still holds."""
    from catena.govern.audit.forget import erase
    from catena.govern.audit.log import Log

    session = session_of(context)
    with session.open() as workspace, Log(workspace.store.root, session.settings().govern.audit) as log:
        done = erase(log, subject, reason=reason, by=who(""))
    if session.out.json:
        session.out.value(done)
    else:
        session.out.line(f"erased: {done['keys']} data key(s) of {subject} are destroyed (tag {done['tag']})")
        session.out.note("copies of the folder `subjects` in backups hold the key still: erase it there too")


def rewrap(context: typer.Context) -> None:
    """Seal the data keys of all subjects by a new master key. Records and servers go on as they are."""
    from catena.govern.audit.log import Log
    from catena.govern.audit.rewrap import rewrap
    from catena.govern.crypto import NEXT_VARIABLE, SEALING_VARIABLE

    session = session_of(context)
    with session.open() as workspace, Log(workspace.store.root, session.settings().govern.audit) as log:
        done = rewrap(log, workspace.store.root, by=who(""))
    if session.out.json:
        session.out.value(done)
        return
    session.out.line(f"{done['keys']} data key(s) are sealed by the new key; the old one opens nothing any more")
    if os.environ.get(SEALING_VARIABLE):
        session.out.note(f"start servers again with {SEALING_VARIABLE} set to what {NEXT_VARIABLE} is now")


def prune(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Delete the segments that are older than govern.audit.keep_days, each with a signed receipt."""
    from catena.govern.audit.forget import prune
    from catena.govern.audit.log import Log

    session = session_of(context)
    config = session.settings().govern.audit
    with session.open() as workspace, Log(workspace.store.root, config) as log:
        gone = prune(log, workspace.store.root, config, by=who(""), dry_run=dry_run)
    if session.out.json:
        session.out.value({"dry_run": dry_run, "segments": [asdict(one) for one in gone]})
        return
    rows = [(one.segment, one.last - one.first + 1, one.bytes) for one in gone]
    session.out.table(("segment", "records", "bytes"), rows, empty=f"nothing is older than {config.keep_days} days")


def _query(subject: str, text: str, kind: str, model: str, id: str, since: str, until: str) -> Query:
    from catena.govern.audit.reading import Query

    return Query(subject, text, kind, model, id, _when(since), _when(until))


def _when(text: str) -> datetime | None:
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        try:
            return datetime.now(UTC) - age(text)
        except UsageError as error:
            raise UsageError(f"{text!r} is no time", hint="For example: 2026-01-31, 2026-01-31T12:00, 7d.") from error
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _asked(query: Query) -> dict[str, str]:
    """Return the fields of a query that were given, but for the subject."""
    return {key: str(value) for key, value in asdict(query).items() if value and key != "subject"}


def _gist(entry: dict[str, Any]) -> str:
    if entry["kind"] == "act":
        rest = {key: value for key, value in entry.items() if key not in ("seq", "time", "kind", "act", "by")}
        return f"{entry.get('act', '')} {json.dumps(rest, ensure_ascii=False)}"[:120]
    if entry["kind"] in ("erased", "damaged"):
        return "cannot be read"
    body = json.dumps(entry.get("body", ""), ensure_ascii=False)
    return f"{entry.get('model', '')} {entry.get('status', '')} {body}"[:120]


COMMANDS = (
    ("verify", verify, "  catena audit verify\n  catena audit verify --deep --json"),
    ("search", search, "  catena audit search --subject ada --since 7d\n  catena audit search --text 'refund' --json"),
    ("export", export, "  catena audit export ada.jsonl --subject ada"),
    ("erase", erase, "  catena audit erase ada --reason 'asked by the person'"),
    ("rewrap", rewrap, "  catena audit rewrap\n  catena audit rewrap --json"),
    ("prune", prune, "  catena audit prune --dry-run"),
)
