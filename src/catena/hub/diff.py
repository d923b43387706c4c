"""Diff: which rows two versions of a dataset have in common, and what differs, by key.

Pure questions over two columns, key and hash, held as Arrow and numpy arrays; only rows that differ are ever read. A
key that occurs more than once counts by its occurrences: the second `x` of one version meets the second of the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from catena.core.errors import UsageError, did_you_mean
from catena.core.sample import dig
from catena.hub.datasets import BATCH_ROWS, Dataset
from catena.hub.rows import HASH, encode

Positions = npt.NDArray[np.int64]
ABSENT = -1
ID = "_id"


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field of a changed row."""

    field: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class RowChange:
    """One row of a diff; `before` is None for an added row, `after` for a removed one."""

    kind: str
    """added, removed or changed."""
    key: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    fields: tuple[FieldChange, ...] = ()


class Diff:
    """What differs between two opened versions: counts at once, rows as they are asked for."""

    def __init__(self, before: Dataset, after: Dataset, key: str = ID) -> None:
        self.before, self.after, self.key = before, after, key
        old, new = align(keys_of(before, key), keys_of(after, key))
        self.added: Positions = np.sort(new[(old == ABSENT) & (new != ABSENT)])
        self.removed: Positions = np.sort(old[(new == ABSENT) & (old != ABSENT)])
        both = (old != ABSENT) & (new != ABSENT)
        old, new = old[both], new[both]
        differs = (before.hashes()[old] != after.hashes()[new]).any(axis=1)
        order = np.argsort(old[differs], kind="stable")
        self.changed: tuple[Positions, Positions] = (old[differs][order], new[differs][order])
        self.unchanged = int(len(old) - differs.sum())

    @property
    def counts(self) -> dict[str, int]:
        """Rows added, removed and changed."""
        return {"added": len(self.added), "removed": len(self.removed), "changed": len(self.changed[0])}

    def rows(self) -> Iterator[RowChange]:
        """Yield every row that differs: removed, changed, added, each in stored order."""
        for row in self.before.take(self.removed):
            yield RowChange("removed", key_of(row, self.key), row, None)
        pairs = zip(self.before.take(self.changed[0]), self.after.take(self.changed[1]), strict=True)
        for before, after in pairs:
            yield RowChange("changed", key_of(before, self.key), before, after, changed_fields(before, after))
        for row in self.after.take(self.added):
            yield RowChange("added", key_of(row, self.key), None, row)


def align(*columns: pa.ChunkedArray) -> list[Positions]:
    """Return for each column where each key of their union stands in it (`ABSENT`: nowhere); one length for all."""
    whole = pa.chunked_array([chunk for column in columns for chunk in column.chunks], type=pa.large_string())
    encoded = whole.dictionary_encode()
    parts = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
    codes = np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)
    bounds = np.cumsum([0, *(len(column) for column in columns)])
    sides = [codes[start:end] for start, end in pairwise(bounds)]
    turns = [occurrences(side) for side in sides]
    size = int(codes.max()) + 1 if len(codes) else 0
    if any(turn.any() for turn in turns):
        joined = np.concatenate([side + turn * size for side, turn in zip(sides, turns, strict=True)])
        unique, codes = np.unique(joined, return_inverse=True)
        size = len(unique)
        sides = [codes[start:end] for start, end in pairwise(bounds)]
    found = []
    for side in sides:
        places = np.full(size, ABSENT, dtype=np.int64)
        places[side] = np.arange(len(side))
        found.append(places)
    return found


def occurrences(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return for each code how many equal ones stand before it."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    first = np.ones(len(codes), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    places = np.arange(len(codes))
    turn = np.empty(len(codes), dtype=np.int64)
    turn[order] = places - np.maximum.accumulate(np.where(first, places, 0))
    return turn


def keys_of(dataset: Dataset, key: str = ID) -> pa.ChunkedArray:
    """Return the key column; `metadata.NAME` (or a longer path) leads into the metadata. Keys but `_id` are hashed.

    Raises `UsageError` for a column that the dataset does not have.
    """
    names = [name for name in dataset.open_table().schema.names if name != HASH]
    if key == ID:
        return dataset.table([ID])[ID].cast(pa.large_string())
    column, _, inner = key.partition(".")
    if column not in names or (inner and column != "metadata"):
        raise UsageError(f"there is no column {key!r}", hint=did_you_mean(column, names))
    chunks = []
    for batch in dataset.open_table().scanner(columns=[column], scan_in_order=True, batch_size=BATCH_ROWS).to_batches():
        values = [short(key_of(row, key)) for row in batch.to_pylist()]
        chunks.append(pa.array(values, pa.large_string()))
    return pa.chunked_array(chunks, type=pa.large_string())


def key_of(row: Mapping[str, Any], key: str = ID) -> str:
    """Return a row's key as text: a text as it is, numbers and other values as their JSON, bytes as their hash."""
    column, _, inner = key.partition(".")
    value = dig(orjson.loads(row[column] or "{}"), inner) if inner else row[column]
    if isinstance(value, str):
        return value
    return encode({"": value})[0].hex() if isinstance(value, bytes) else orjson.dumps(value).decode()


def short(key: str) -> str:
    """Return what stands for a key that may be long: 128 bits of BLAKE2b."""
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


def fields_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as fields that can change one by one: `metadata.NAME` for each field of the metadata."""
    fields = {name: value for name, value in row.items() if name not in ("metadata", HASH)}
    metadata = orjson.loads(row["metadata"] or "{}")
    return {**fields, **{f"metadata.{name}": value for name, value in metadata.items()}}


def row_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of fields: the inverse of `fields_of`."""
    metadata = {name.removeprefix("metadata."): value for name, value in fields.items() if name.startswith("metadata.")}
    row = {name: value for name, value in fields.items() if not name.startswith("metadata.")}
    return {**row, "metadata": orjson.dumps(metadata, option=orjson.OPT_SORT_KEYS).decode()}


def changed_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[FieldChange, ...]:
    """Return the fields in which two rows differ; a field that one does not have is None there."""
    old, new = fields_of(before), fields_of(after)
    names = [*old, *(name for name in new if name not in old)]
    return tuple(FieldChange(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name))
