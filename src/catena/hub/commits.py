"""Commits: the history of a dataset's name, each one covering its parents and its dataset by SHA-256.

Every new version of a name, made by a run or by hand, is a commit on the branch `main`, written in the same transaction
as the version itself. This module holds the value, the pure questions to a history, and its rows in the index;
`hub.versions` is what people call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import Connection, insert, select

from catena.core.digest import digest_of
from catena.core.types import Value
from catena.hub.schema import artifacts, branch_moves, commits, names

MAIN = "main"
Operation = Literal["run", "commit", "merge", "adopt"]


class Commit(Value):
    """One state of a name: which dataset, what was before, who did what and when."""

    name: str
    dataset: str
    """Digest of the `DatasetVersion`."""
    parents: tuple[str, ...] = ()
    """Digests of the commits before; a merge has two: what it was merged into, and what was merged."""
    author: str = ""
    message: str = ""
    time: datetime
    operation: Operation
    rows: int = 0
    rejects: int = 0
    changes: Mapping[str, int] = Field(default_factory=dict)
    """`added`, `removed` and `changed` rows against the first parent, where that is known."""
    replaces: str | None = None
    """Digest of the commit that this one stands for since an erasure rewrote its dataset."""
    erasure: str | None = None
    """Id of that erasure."""
    signature: str | None = None
    """Ed25519 by the workspace's key over `digest`, in hexadecimal; only where `replaces` is set."""

    @property
    def digest(self) -> str:
        """The content address: covers everything but the signature."""
        return digest_of(self.model_dump(mode="json", exclude={"signature"}))


def ancestors(history: Mapping[str, Commit], start: str) -> list[str]:
    """Return a commit and all before it, the newest first; a parent always comes after its children."""
    seen: set[str] = set()
    order: list[str] = []
    waiting = [(start, False)]
    while waiting:  # depth first without recursion: a history may be longer than Python's stack
        digest, left = waiting.pop()
        if left:
            order.append(digest)
        elif digest in history and digest not in seen:
            seen.add(digest)
            waiting.append((digest, True))
            waiting.extend((parent, False) for parent in history[digest].parents)
    return order[::-1]


def merge_base(history: Mapping[str, Commit], ours: str, theirs: str) -> str | None:
    """Return the nearest common ancestor: one that no other common ancestor descends from (the first such), or None."""
    behind_ours = ancestors(history, ours)
    behind_theirs = set(ancestors(history, theirs))
    return next((digest for digest in behind_ours if digest in behind_theirs), None)


# -- rows of the index: each takes the connection of a transaction -----------------------------------------------------


def read_history(connection: Connection, name: str) -> dict[str, Commit]:
    """Return every commit of a name by its digest."""
    query = select(commits.c.digest, commits.c.body).where(commits.c.name == name)
    return {row.digest: Commit.model_validate_json(row.body) for row in connection.execute(query)}


def read_branches(connection: Connection, name: str) -> dict[str, str]:
    """Return the branches that stand now, with their newest commits."""
    query = select(branch_moves.c.branch, branch_moves.c.commit).where(branch_moves.c.name == name)
    standing = {row.branch: row.commit for row in connection.execute(query.order_by(branch_moves.c.id))}
    return {branch: digest for branch, digest in standing.items() if digest is not None}


def write_commit(connection: Connection, commit: Commit) -> str:
    """Store a commit; returns its digest."""
    digest = commit.digest
    connection.execute(insert(commits).values(digest=digest, name=commit.name, body=commit.model_dump_json()))
    return digest


def move_branch(connection: Connection, name: str, branch: str, digest: str | None, by: str, at: datetime) -> None:
    """Make a commit the newest of a branch, or remove the branch (None)."""
    connection.execute(insert(branch_moves).values(name=name, branch=branch, commit=digest, moved=at, by=by))


def record_version(connection: Connection, name: str, dataset: Mapping[str, Any], at: datetime, by: str) -> None:
    """Write the commit of a new version of a name on `main`; versions from before commits existed are adopted first."""
    head = adopt(connection, name, by=by, but=dataset["digest"])
    if head is not None:
        newest = connection.execute(select(commits.c.body).where(commits.c.digest == head)).scalar_one()
        if Commit.model_validate_json(newest).dataset == dataset["digest"]:
            return
    commit = Commit(
        name=name,
        dataset=dataset["digest"],
        parents=(head,) if head else (),
        author=by,
        message=f"made by run {dataset['made_by']}" if dataset.get("made_by") else "",
        time=at,
        operation="run",
        rows=dataset["rows"],
        rejects=dataset["rejects"],
    )
    move_branch(connection, name, MAIN, write_commit(connection, commit), by, at)


def adopt(connection: Connection, name: str, *, by: str, but: str = "") -> str | None:
    """Give the versions of a name that has no commits yet their commits; returns the newest commit of `main`."""
    head = read_branches(connection, name).get(MAIN)
    if head is not None:
        return head
    query = select(names.c.digest, names.c.created, artifacts.c.body).join(
        artifacts, artifacts.c.digest == names.c.digest
    )
    query = query.where(names.c.name == name, artifacts.c.kind == "dataset").order_by(names.c.version)
    import orjson

    for row in connection.execute(query).all():
        if row.digest == but:
            continue
        body = orjson.loads(row.body)
        at = row.created if row.created.tzinfo else row.created.replace(tzinfo=UTC)
        commit = Commit(
            name=name,
            dataset=row.digest,
            parents=(head,) if head else (),
            author=by,
            message="a version from before commits were kept",
            time=at,
            operation="adopt",
            rows=body["rows"],
            rejects=body["rejects"],
        )
        head = write_commit(connection, commit)
        move_branch(connection, name, MAIN, head, by, at)
    return head


def broken(history: Mapping[str, Commit], digests: Iterable[str]) -> list[tuple[str, str]]:
    """Return (commit, what is wrong) for commits whose bytes do not give their digest, or whose parents are missing."""
    found = []
    for digest in digests:
        commit = history[digest]
        if commit.digest != digest:
            found.append((digest, "is not what was committed: its content gives another hash"))
        found += [(digest, f"has lost its parent {parent[:12]}") for parent in commit.parents if parent not in history]
    return found
