"""`catena data commit | merge`: new versions by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from catena.cli.data import Author, Key, Name, cell, plain, who
from catena.cli.session import Session, session_of
from catena.core.errors import CatenaError, DataError, UsageError

if TYPE_CHECKING:
    from catena.hub.merge import Conflict


class Conflicts(DataError):
    """A merge that needs decisions; nothing was written. `problems` holds one object for each field in conflict."""

    def __init__(self, message: str, *, hint: str, problems: Sequence[Any]) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


def commit(
    context: typer.Context,
    name: Name,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="All rows: .jsonl, .parquet, .lance, or a folder that checkout wrote."),
    ],
    branch: Annotated[str, typer.Option(metavar="BRANCH", help="The branch that gets the new version.")] = "main",
    message: Annotated[str, typer.Option("--message", "-m", metavar="TEXT", help="Why.")] = "",
    key: Key = "_id",
    author: Author = "",
) -> None:
    """Make the rows of a file the newest version of a branch. Only rows that differ are written."""
    from catena.core.events import Events
    from catena.hub import versions

    session = session_of(context)
    with session.open() as workspace, session.out.progress() as listeners:
        digest, counts = versions.commit_file(
            workspace.store,
            name,
            file,
            branch=branch,
            message=message,
            author=who(author),
            key=key,
            events=Events(listeners=listeners),
        )
    _say_commit(session, name, branch, digest, counts)


def _say_commit(session: Session, name: str, branch: str, digest: str, counts: dict[str, int]) -> None:
    if session.out.json:
        session.out.value({"name": name, "branch": branch, "commit": digest, "changes": counts})
        return
    changes = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    session.out.line(f"{name}@{branch} is {digest[:12]}" + (f" ({changes})" if changes else ""))


def merge(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="NAME@BRANCH", help="What to merge: name@ branch or commit.")],
    into: Annotated[str, typer.Option(metavar="BRANCH", help="The branch that gets the result.")] = "main",
    ours: Annotated[bool, typer.Option("--ours", help="In a conflict take what the branch has.")] = False,
    theirs: Annotated[bool, typer.Option("--theirs", help="In a conflict take what is merged.")] = False,
    resolutions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON: key to ours, theirs, remove, or {field: value}.")
    ] = None,
    message: Annotated[str, typer.Option("--message", "-m", metavar="TEXT", help="Why.")] = "",
    key: Key = "_id",
    author: Author = "",
) -> None:
    """Merge a branch into another, three-way by key. With conflicts nothing is written, and they are shown."""
    from catena.hub import versions

    name, at, branch = source.partition("@")
    if not at or not branch:
        raise UsageError("say which branch is merged", hint="For example: catena data merge pages@fix --into main")
    if ours and theirs:
        raise UsageError("--ours and --theirs exclude each other")
    side: Literal["ours", "theirs"] | None = "ours" if ours else "theirs" if theirs else None
    session = session_of(context)
    with session.open() as workspace:
        result = versions.merge(
            workspace.store,
            name,
            branch,
            into,
            key=key,
            side=side,
            resolutions=_read_resolutions(resolutions),
            message=message,
            author=who(author),
        )
    if result.conflicts:
        raise _conflicts(session, result.conflicts)
    if session.out.json:
        session.out.value(
            {"name": name, "branch": into, "status": result.status, "commit": result.commit, "changes": result.changes}
        )
    else:
        session.out.note(result.status)
        _say_commit(session, name, into, str(result.commit), result.changes or {})


def _read_resolutions(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is not an object of key to decision")
    return found


def _conflicts(session: Session, conflicts: Sequence[Conflict]) -> CatenaError:
    parts = [(item.key, part) for item in conflicts for part in item.fields]
    if not session.out.json:
        sides = [(key, part.field, (part.base, part.ours, part.theirs)) for key, part in parts]
        rows = [(key, field, *(cell(field, value) for value in values)) for key, field, values in sides]
        session.out.table(("key", "field", "base", "ours", "theirs"), rows)
    return Conflicts(
        f"{len(conflicts)} {'row is' if len(conflicts) == 1 else 'rows are'} in conflict; nothing was written",
        hint="Decide with --ours, --theirs, or --resolutions FILE.",
        problems=[{"key": key, **plain(asdict(part))} for key, part in parts],
    )


COMMANDS = (
    (
        "commit",
        commit,
        "  catena data commit pages pages/samples.jsonl -m 'mend titles'\n"
        "  catena data commit pages edited.parquet --branch fix",
    ),
    (
        "merge",
        merge,
        "  catena data merge pages@fix --into main\n"
        "  catena data merge pages@fix --theirs\n"
        "  catena data merge pages@fix --resolutions decided.json",
    ),
)
