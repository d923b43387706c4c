"""Corrections: a few rows of a dataset changed one by one by people, as a commit that takes nothing back of others'.

Each correction says what its author saw. A row that holds something else by now is left as it is and told: two people
who label at once lose nothing, and the second sees what the first has said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from catena.core.errors import EnvironmentProblem, NotFound, UsageError
from catena.core.types import DatasetVersion
from catena.hub.commits import MAIN, Commit
from catena.hub.diff import fields_of, keys_of, row_of
from catena.hub.index import now
from catena.hub.revisions import save_change
from catena.hub.store import Store

ATTEMPTS = 20
"""How often it is tried again because a run moved the branch in the meantime."""


@dataclass(frozen=True, slots=True)
class Correction:
    """One field of one row: what stood there for its author, and what shall stand there."""

    id: str
    field: str
    """`output`, `text`, or `metadata.NAME`."""
    seen: Any
    value: Any


@dataclass(frozen=True, slots=True)
class Corrected:
    """What became of corrections."""

    commit: str | None
    """None where nothing was left to change."""
    changed: int
    conflicts: tuple[tuple[Correction, Any], ...] = ()
    """Corrections of rows that hold something else by now, with what they hold; None for a row that is gone."""


def correct(
    store: Store, name: str, corrections: list[Correction], *, branch: str = MAIN, message: str = "", author: str = ""
) -> Corrected:
    """Commit corrections on the newest state of a branch. Raises `NotFound`, `UsageError` for two on one field."""
    if len({(one.id, one.field) for one in corrections}) != len(corrections):
        raise UsageError("one field of one row is corrected twice")
    held = hashlib.sha256(name.encode()).hexdigest()[:16]
    with store.lock("gc", shared=True), store.lock(f"history-{held}"):
        for _ in range(ATTEMPTS):
            history, standing = store.index.history(name)
            if branch not in standing:
                raise NotFound(f"{name!r} has no branch {branch!r}")
            head = standing[branch]
            base = store.resolve(history[head].dataset, DatasetVersion)
            removed, rows, conflicts = _applied(store, base, corrections)
            if not rows:
                return Corrected(None, 0, tuple(conflicts))
            dataset = save_change(store, base, removed, lambda rows=rows: iter(rows))  # type: ignore[misc]
            draft = Commit(
                name=name,
                dataset=dataset.digest,
                parents=(head,),
                author=author,
                message=message,
                time=now(),
                operation="commit",
                rows=dataset.rows,
                rejects=dataset.rejects,
                changes={"added": 0, "removed": 0, "changed": len(rows)},
            )
            digest = store.index.add_commit(draft, branch, dataset)
            if digest is not None:
                return Corrected(digest, len(rows), tuple(conflicts))
    raise EnvironmentProblem(f"the branch {branch!r} of {name!r} moved while this was done", hint="Try again.")


def _applied(
    store: Store, base: DatasetVersion, corrections: list[Correction]
) -> tuple[np.ndarray[Any, Any], list[dict[str, Any]], list[tuple[Correction, Any]]]:
    """Return the positions of the rows that change, the rows as they become, and what cannot be applied."""
    opened = store.open_dataset(base)
    wanted: dict[str, list[Correction]] = {}
    for one in corrections:
        wanted.setdefault(one.id, []).append(one)
    places = {id: at for at, id in enumerate(keys_of(opened).to_pylist()) if id in wanted}
    conflicts: list[tuple[Correction, Any]] = [(one, None) for one in corrections if one.id not in places]
    positions, rows = [], []
    order = sorted(places.items(), key=lambda item: item[1])
    at = np.array([place for _, place in order], dtype=np.int64)
    for (id, place), row in zip(order, opened.take(at), strict=True):
        fields: dict[str, Any] = dict(fields_of(row))
        before: Mapping[str, Any] = dict(fields)
        for one in wanted[id]:
            stands = fields.get(one.field)
            if stands == one.value:
                continue
            if stands != one.seen:
                conflicts.append((one, stands))
                continue
            fields[one.field] = one.value
        if fields != before:
            positions.append(place)
            rows.append(row_of(fields))
    return np.array(positions, dtype=np.int64), rows, conflicts
