"""Renaming a repository: one transaction over all that stands under its name; the old name leads to the new one.

Commits keep their ids, versions their numbers, tags and branches where they stand. What was written down keeps the name
that it was written under: runs, and the commits of a dataset's rows, whose digests cover it.
"""

from __future__ import annotations

from contextlib import ExitStack

from sqlalchemy import Connection, delete, select, update

from catena.core.errors import UsageError
from catena.hub.index import USED_UP
from catena.hub.repo import records
from catena.hub.repo.records import HEADS, MOVED, RepoKind
from catena.hub.repo.repos import Conflict, RepoNotFound, Repos, checked_name
from catena.hub.schema import branch_moves, commits, names, repo_commits, repo_moves, tag_moves


def rename(repos: Repos, kind: RepoKind, old: str, new: str, *, by: str = "") -> None:
    """Give a repository, and what the store has under its name, another name.

    Raises `RepoNotFound` for no such one, `Conflict` where the other name stands for something, or did: `name@1` would
    then mean two things.
    """
    checked_name(new)
    if new == old:
        raise UsageError(f"{old!r} is its name already")
    repos.refs(kind, old)  # what the store has and nobody has read yet becomes commits first
    with ExitStack() as held:
        for name in sorted((old, new)):  # two renames that cross must not wait for each other
            held.enter_context(repos.alone(kind, name))
        head = repos.own(kind, old).get(f"{HEADS}main")
        if head is None:
            raise RepoNotFound(f"there is no {kind} {old!r} on this hub any more")
        if repos.exists("model", new) or repos.exists("dataset", new) or repos.store.index.versions(name=new):
            raise Conflict(f"there is something called {new!r} already", hint="Choose another name.")
        with repos.writing() as connection:
            _require_unused(connection, new)
            connection.execute(delete(repo_moves).where(repo_moves.c.kind == kind, repo_moves.c.name == new))
            for table in (repo_commits, repo_moves):
                connection.execute(update(table).where(table.c.kind == kind, table.c.name == old).values(name=new))
            for stored in (names, tag_moves, commits, branch_moves):
                connection.execute(update(stored).where(stored.c.name == old).values(name=new))
            records.move(connection, kind, new, f"{HEADS}main", head, by=by)  # so that others see that it moved
            records.move(connection, kind, old, f"{MOVED}{new}", head, by=by)


def _require_unused(connection: Connection, name: str) -> None:
    marks = select(tag_moves.c.tag).where(tag_moves.c.name == name, tag_moves.c.tag.startswith(USED_UP))
    if connection.execute(marks.limit(1)).first() is not None:
        raise Conflict(
            f"{name!r} had versions once, whose numbers stay theirs", hint="Choose a name that was never used."
        )


def moved_to(repos: Repos, kind: RepoKind, name: str) -> str | None:
    """Return the name that a repository was given in place of this one; None where there was none."""
    marks = [ref for ref in repos.own(kind, name) if ref.startswith(MOVED)]
    return marks[-1].removeprefix(MOVED) if marks else None
