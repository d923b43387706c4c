"""Corrections: a few rows of a dataset changed one by one by people, as a commit that takes nothing back of others'.

Each correction says what its author saw. A row that holds something else by now is left as it is and told: two people
who label at once lose nothing, and the second sees what the first has said.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import chain
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
    places: dict[str, list[int]] = {one.id: [] for one in corrections}  # an id may stand more than once
    for place, id in enumerate(keys_of(opened).to_pylist()):
        if id in places:
            places[id].append(place)
    at = np.array(sorted(chain.from_iterable(places.values())), dtype=np.int64)
    before = dict(zip(at.tolist(), map(fields_of, opened.take(at)), strict=True))
    after = {place: dict(fields) for place, fields in before.items()}
    conflicts: list[tuple[Correction, Any]] = []
    for one in corrections:
        rows = [after[place] for place in places[one.id]]
        values = [row.get(one.field) for row in rows]
        if one.seen in values:
            rows[values.index(one.seen)][one.field] = one.value
        elif one.value not in values:
            conflicts.append((one, values[0] if values else None))
    changed = [place for place in after if after[place] != before[place]]
    return np.array(changed, dtype=np.int64), [row_of(after[place]) for place in changed], conflicts
