"""Replacing datasets in the index: what an erasure changes in names, tags, runs and commits, inside one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson
from sqlalchemy import Connection, delete, select, update

from catena.core.types import DatasetVersion
from catena.hub.commits import Commit, ancestors, read_history, write_commit
from catena.hub.schema import artifacts, branch_moves, commits, names, run_inputs, runs, tag_moves


def replace_digests(connection: Connection, moved: Mapping[str, str]) -> None:
    """Write the new digest wherever the old one stands, and remove the old artifacts. Twice does no more than once."""
    for old, new in moved.items():
        for table in (names, tag_moves, run_inputs):
            connection.execute(update(table).where(table.c.digest == old).values(digest=new))
        connection.execute(update(runs).where(runs.c.output == old).values(output=new))
        _replace_in_bodies(connection, runs, runs.c.id, ("inputs", "output"), old, new)
        _replace_in_bodies(connection, artifacts, artifacts.c.digest, ("parents",), old, new)
        connection.execute(delete(artifacts).where(artifacts.c.digest == old))


def _replace_in_bodies(
    connection: Connection, table: Any, key: Any, fields: tuple[str, ...], old: str, new: str
) -> None:
    found = connection.execute(select(key.label("key"), table.c.body).where(table.c.body.contains(old))).all()
    for row in found:
        body = orjson.loads(row.body)
        changed = {name: _replaced(body.get(name), old, new) for name in fields if name in body}
        if changed != {name: body[name] for name in changed}:
            text = orjson.dumps({**body, **changed}).decode()
            connection.execute(update(table).where(key == row.key).values(body=text))


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {name: _replaced(item, old, new) for name, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, old, new) for item in value]
    return new if value == old else value


def rewrite_commits(
    connection: Connection, replaced: Mapping[str, DatasetVersion], erasure: str, sign: Callable[[str], str]
) -> None:
    """Write anew each commit whose dataset or parent is another now: it names the old commit, and is signed."""
    for name in connection.execute(select(commits.c.name).distinct()).scalars().all():
        history = read_history(connection, name)
        order: dict[str, None] = {}
        for digest in history:
            if digest not in order:
                order |= dict.fromkeys(reversed(ancestors(history, digest)))
        moved: dict[str, str] = {}
        for digest in order:  # parents before children
            commit = history[digest]
            dataset = replaced.get(commit.dataset)
            parents = tuple(moved.get(parent, parent) for parent in commit.parents)
            if (dataset is None or dataset.digest == commit.dataset) and parents == commit.parents:
                continue
            fresh = commit.model_copy(
                update={"parents": parents, "replaces": digest, "erasure": erasure, "signature": None}
            )
            if dataset is not None:
                facts = {"dataset": dataset.digest, "rows": dataset.rows, "rejects": dataset.rejects}
                fresh = fresh.model_copy(update=facts)
            fresh = fresh.model_copy(update={"signature": sign(fresh.digest)})
            moved[digest] = write_commit(connection, fresh)
        for old, new in moved.items():
            connection.execute(update(branch_moves).where(branch_moves.c.commit == old).values(commit=new))
            connection.execute(delete(commits).where(commits.c.digest == old))


def rewritten_commits(connection: Connection, erasure: str) -> dict[str, str]:
    """Return the commits that an erasure rewrote: old digest to new."""
    found = connection.execute(select(commits.c.digest, commits.c.body).where(commits.c.body.contains(erasure)))
    made = {row.digest: Commit.model_validate_json(row.body) for row in found}
    return {commit.replaces: digest for digest, commit in made.items() if commit.replaces and commit.erasure == erasure}
