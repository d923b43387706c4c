"""Merge: three versions by key, row by row and field by field, without I/O beyond the rows that both sides changed.

base     ours     theirs        result
x        x        x or gone     theirs
x        y        x             ours
x        y        y             y (both did the same)
{a,b}    {a',b}   {a,b'}        {a',b'}: they changed different fields
{a}      {a'}     {a''}         a conflict in field a
x        y        gone          a conflict, as is gone against y, and two new rows under one key
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from catena.core.errors import UsageError
from catena.hub.datasets import Dataset
from catena.hub.diff import ABSENT, ID, Positions, align, fields_of, key_of, keys_of, row_of

Side = Literal["ours", "theirs"]
Resolutions = Mapping[str, Any]
"""Key to `"ours"`, `"theirs"`, `"remove"`, or `{field: value}` for the fields in conflict."""
ROW = "(row)"
"""The field of a conflict about the row as a whole: one side has none."""


@dataclass(frozen=True, slots=True)
class FieldConflict:
    """One field that both sides changed, each in its own way."""

    field: str
    base: Any
    ours: Any
    theirs: Any


@dataclass(frozen=True, slots=True)
class Conflict:
    """One row that cannot be merged without a decision."""

    key: str
    fields: tuple[FieldConflict, ...]


@dataclass
class Merge:
    """What is to be done to ours; complete when there are no conflicts."""

    theirs: Dataset
    removed: Positions
    """Positions in ours of rows that go or are replaced."""
    taken: Positions
    """Positions in theirs of rows that come as they are."""
    merged: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Position in theirs to a row made of both sides."""
    extra: list[dict[str, Any]] = field(default_factory=list)
    """Rows that theirs does not have, as they were resolved."""
    conflicts: list[Conflict] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """Rows added, removed and changed in ours."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield what is added to ours, in theirs' order."""
        places = np.sort(np.concatenate([self.taken, np.fromiter(self.merged, np.int64, len(self.merged))]))
        for place, row in zip(places.tolist(), self.theirs.take(places), strict=True):
            yield self.merged.get(place, row)
        yield from self.extra


def merge_rows(
    base: Dataset,
    ours: Dataset,
    theirs: Dataset,
    *,
    key: str = ID,
    side: Side | None = None,
    resolutions: Resolutions | None = None,
) -> Merge:
    """Merge what theirs changed since base into ours. `side` decides what `resolutions` does not."""
    before, mine, other = align(*(keys_of(dataset, key) for dataset in (base, ours, theirs)))
    hashes = [dataset.hashes() for dataset in (base, ours, theirs)]
    mine_differs = _differs(before, mine, hashes[0], hashes[1])
    other_differs = _differs(before, other, hashes[0], hashes[2])
    apart = _differs(mine, other, hashes[1], hashes[2])
    take = other_differs & ~mine_differs
    both = np.flatnonzero(other_differs & mine_differs & apart)
    gone = mine[take & (mine != ABSENT)]
    come = np.sort(other[take & (other != ABSENT)])
    result = Merge(theirs, gone, come)
    result.counts = {
        "added": int((take & (mine == ABSENT)).sum()),
        "removed": int((take & (other == ABSENT)).sum()),
        "changed": int((take & (mine != ABSENT) & (other != ABSENT)).sum()),
    }
    decide = _Decisions(key, side, resolutions or {})
    dropped = []
    rows = zip(_rows(base, before[both]), _rows(ours, mine[both]), _rows(theirs, other[both]), strict=True)
    for place, (old, our, their) in zip(both, rows, strict=True):
        row = decide.row(old, our, their)
        if row is decide.OPEN or row == our:
            continue
        if our is not None:
            dropped.append(int(mine[place]))
        if row is not None and their is not None:
            result.merged[int(other[place])] = row
        elif row is not None:
            result.extra.append(row)
        result.counts["removed" if row is None else "added" if our is None else "changed"] += 1
    decide.check_all_were_used()
    result.conflicts = decide.conflicts
    result.removed = np.sort(np.concatenate([gone, np.array(dropped, dtype=np.int64)]))
    return result


def _differs(
    first: Positions, second: Positions, left: npt.NDArray[np.uint64], right: npt.NDArray[np.uint64]
) -> npt.NDArray[np.bool_]:
    """Tell for each key whether the two sides have different rows, or only one has it."""
    differs: npt.NDArray[np.bool_] = (first == ABSENT) != (second == ABSENT)
    both = np.flatnonzero((first != ABSENT) & (second != ABSENT))
    differs[both] = (left[first[both]] != right[second[both]]).any(axis=1)
    return differs


def _rows(dataset: Dataset, places: Positions) -> Iterator[dict[str, Any] | None]:
    found = dataset.take(places[places != ABSENT])
    for place in places.tolist():
        yield None if place == ABSENT else next(found)


class _Decisions:
    """Decides rows that both sides changed, and keeps those that nobody decided."""

    OPEN: ClassVar[dict[str, Any]] = {}

    def __init__(self, key: str, side: Side | None, resolutions: Resolutions) -> None:
        self.key, self.side, self.resolutions = key, side, resolutions
        self.conflicts: list[Conflict] = []
        self._used: set[str] = set()

    def row(
        self, old: dict[str, Any] | None, our: dict[str, Any] | None, their: dict[str, Any] | None
    ) -> dict[str, Any] | None:
        """Return the row of the result (None: no row), or `OPEN`."""
        known = key_of(our or their or old or {}, self.key)
        choice = self.resolutions.get(known)
        self._used |= {known} if choice is not None else set()
        if choice is None or isinstance(choice, Mapping):
            fields, open_fields = _merge_fields(old, our, their)
            chosen = dict(choice or {})
            unknown = chosen.keys() - {conflict.field for conflict in open_fields}
            if unknown:
                raise UsageError(f"the resolution of {known!r} names {min(unknown)!r}, which is not in conflict")
            open_fields = tuple(conflict for conflict in open_fields if conflict.field not in chosen)
            if not open_fields:
                return row_of({name: value for name, value in {**fields, **chosen}.items() if value is not _NOTHING})
            if self.side is None:
                self.conflicts.append(Conflict(known, open_fields))
                return self.OPEN
            if open_fields[0].field != ROW:
                sides = {conflict.field: getattr(conflict, self.side) for conflict in open_fields}
                return row_of({**fields, **chosen, **sides})
            choice = self.side
        if choice not in ("ours", "theirs", "remove"):
            raise UsageError(
                f"the resolution of {known!r} is {choice!r}", hint="It is ours, theirs, remove, or fields."
            )
        return {"ours": our, "theirs": their, "remove": None}[choice]

    def check_all_were_used(self) -> None:
        """Raise `UsageError` for a resolution of a row that is not in conflict: its key was mistyped."""
        unused = sorted(self.resolutions.keys() - self._used)
        if unused:
            raise UsageError(f"the resolutions name {unused[0]!r}, which is not in conflict")


_NOTHING = object()


def _merge_fields(
    old: dict[str, Any] | None, our: dict[str, Any] | None, their: dict[str, Any] | None
) -> tuple[dict[str, Any], tuple[FieldConflict, ...]]:
    """Return the fields that merge, and those that do not; a row against none is one conflict about the row."""
    if our is None or their is None:
        return {}, (FieldConflict(ROW, old, our, their),)
    before, mine, other = (fields_of(row) if row is not None else {} for row in (old, our, their))
    fields: dict[str, Any] = {}
    conflicts = []
    for name in dict.fromkeys([*mine, *other, *before]):
        was, is_ours, is_theirs = (side.get(name, _NOTHING) for side in (before, mine, other))
        if is_ours in (is_theirs, was) or is_theirs == was:
            value = is_theirs if is_ours == was else is_ours
            if value is not _NOTHING:
                fields[name] = value
            continue
        shown = [None if value is _NOTHING else value for value in (was, is_ours, is_theirs)]
        conflicts.append(FieldConflict(name, *shown))
    return fields, tuple(conflicts)
