"""`catena data log | diff | branch | tag | checkout`: what versions of a dataset there are, and what they hold."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from catena.cli.artifact import tag
from catena.cli.session import session_of
from catena.core.errors import IntegrityError, UsageError

Ref = Annotated[str, typer.Argument(metavar="REF", help="name, or name@ version, tag, branch or commit.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A dataset's name.")]
Key = Annotated[str, typer.Option(metavar="COLUMN", help="Rows are the same row where this column is the same.")]
Author = Annotated[
    str, typer.Option(metavar="WHO", envvar="CATENA_AUTHOR", help="Who does this (default: the user of this machine).")
]


def who(author: str) -> str:
    """Return the author: as given, or the user of this machine."""
    return author or os.environ.get("USER") or os.environ.get("LOGNAME") or "someone"


def log(
    context: typer.Context,
    name: Name,
    branch: Annotated[str | None, typer.Option(metavar="BRANCH", help="Only what leads to this branch.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check every hash, signature and dataset.")] = False,
) -> None:
    """Show the commits of a name, the newest first."""
    from catena.hub import versions

    session = session_of(context)
    with session.open() as workspace:
        entries = versions.log(workspace.store, name, branch)
        problems = versions.verify(workspace.store, name) if verify else []
        without = sum(workspace.store.index.artifact(item.commit.dataset) is None for item in entries)
    rows: list[dict[str, Any]] = [
        {"digest": item.digest, **item.commit.model_dump(mode="json"), "branches": item.branches, "refs": item.refs}
        for item in entries
    ]
    if session.out.json:
        checked = {"problems": [{"commit": item.commit, "problem": item.problem} for item in problems]}
        session.out.value({"name": name, "commits": rows, **(checked if verify else {})})
    else:
        session.out.table(
            ("commit", "time", "author", "what", "rows", "changes", "at", "message"), [_log_row(row) for row in rows]
        )
        for problem in problems:
            session.out.line(f"{problem.commit[:12]} {problem.problem}")
    if problems:
        raise IntegrityError(f"the history of {name!r} does not hold: {len(problems)} problems")
    if verify:
        bare = f"; of {without} the data was freed by `catena gc --unused`" if without else ""
        session.out.note(f"{len(rows)} {'commit holds' if len(rows) == 1 else 'commits hold'}{bare}")


def _log_row(row: dict[str, Any]) -> tuple[Any, ...]:
    changes = row["changes"]
    shown = f"+{changes['added']} -{changes['removed']} ~{changes['changed']}" if changes else ""
    at = ", ".join([*row["branches"], *row["refs"]])
    note = f" (replaces {row['replaces'][:12]})" if row["replaces"] else ""
    stamp = row["time"][:19].replace("T", " ")
    return (row["digest"][:12], stamp, row["author"], row["operation"], row["rows"], shown, at, row["message"] + note)


def diff(
    context: typer.Context,
    before: Ref,
    after: Ref,
    key: Key = "_id",
    limit: Annotated[int, typer.Option(metavar="N", help="Show at most so many rows; 0 only counts them.")] = 20,
) -> None:
    """Show which rows and fields differ between two versions. Rows are added, removed, or changed."""
    from itertools import islice

    from catena.hub import versions

    session = session_of(context)
    with session.open() as workspace:
        found = versions.diff(workspace.store, before, after, key)
        rows = list(islice(found.rows(), limit))
    counts = {**found.counts, "unchanged": found.unchanged}
    if session.out.json:
        shown = [
            {
                "kind": row.kind,
                "key": row.key,
                "before": row.before,
                "after": row.after,
                "fields": [{"field": f.field, "before": f.before, "after": f.after} for f in row.fields],
            }
            for row in rows
        ]
        session.out.value({"before": before, "after": after, "key": key, **counts, "rows": plain(shown)})
        return
    session.out.line(", ".join(f"{count:,} {kind}" for kind, count in counts.items()))
    table = []
    for row in rows:
        parts = [(f.field, f.before, f.after) for f in row.fields] or [("", row.before, row.after)]
        table += [(row.kind, row.key, field, cell(field, old), cell(field, new)) for field, old, new in parts]
    session.out.table(("row", "key", "field", "before", "after"), table, empty="no row differs")


def short(value: Any, width: int = 60) -> str:
    """Return a value in one short line."""
    text = "" if value is None else value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)
    return text if len(text) <= width else text[: width - 3] + "..."


def cell(field: str, value: Any) -> str:
    """Return one side of a change; a whole row (its field has no name) begins with what it says, or is absent."""
    if field not in ("", "(row)"):
        return short(value)
    if value is None:
        return "(no row)"
    return short({name: value[name] for name in sorted(value, key=lambda name: name.startswith("_"))})


def plain(value: Any) -> Any:
    """Return a value for JSON: bytes by their number."""
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def branch(
    context: typer.Context,
    name: Name,
    branch: Annotated[
        str | None, typer.Argument(metavar="[BRANCH]", help="A new branch; without it all are listed.")
    ] = None,
    at: Annotated[
        str, typer.Option(metavar="WHERE", help="Version, tag, branch or commit that it begins at.")
    ] = "main",
    delete: Annotated[bool, typer.Option("--delete", help="Take the branch away; its commits stay.")] = False,
    author: Author = "",
) -> None:
    """List the branches of a name, begin one, or take one away."""
    from catena.hub import versions

    session = session_of(context)
    with session.open() as workspace:
        store = workspace.store
        if branch is not None and delete:
            versions.delete_branch(store, name, branch, who(author))
        elif branch is not None:
            versions.create_branch(store, name, branch, at, who(author))
        elif delete:
            raise UsageError("--delete needs a branch")
        standing = versions.branches(store, name)
    if session.out.json:
        session.out.value({"name": name, "branches": standing})
    else:
        session.out.table(("branch", "commit"), [(word, digest[:12]) for word, digest in standing.items()])


def checkout(
    context: typer.Context,
    ref: Ref,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="A folder that does not exist yet.")],
    format: Annotated[str, typer.Option(metavar="FORMAT", help="jsonl, parquet or lance.")] = "jsonl",
) -> None:
    """Write a version's samples and rejects into files. They can be looked at, edited, and committed again."""
    from catena.core.events import Events
    from catena.hub import versions

    session = session_of(context)
    with session.open() as workspace, session.out.progress() as listeners:
        files = versions.checkout(workspace.store, ref, to, format, Events(listeners=listeners))
    if session.out.json:
        session.out.value({"ref": ref, "files": [str(path) for path in files]})
    else:
        for path in files:
            session.out.line(str(path))


COMMANDS = (
    ("log", log, "  catena data log pages\n  catena data log pages --branch fix --verify"),
    ("diff", diff, "  catena data diff pages@1 pages@2\n  catena data diff a b --key metadata.url --limit 0"),
    (
        "branch",
        branch,
        "  catena data branch pages\n  catena data branch pages fix --at 2\n  catena data branch pages fix --delete",
    ),
    ("tag", tag, "  catena data tag pages@fix reviewed\n  catena data tag pages reviewed --remove"),
    (
        "checkout",
        checkout,
        "  catena data checkout pages@fix --to pages\n  catena data checkout pages@2 --to pages --format parquet",
    ),
)
