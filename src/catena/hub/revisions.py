"""Revisions: a version that differs from another in few rows shares its Lance table and adds only what differs.

    datasets/ab/abcd.../samples.lance   revision 1: rows 0 1 2 3 4 5        written by `DatasetWriter`
                                        revision 3: rows 0 1 . 3 4 5 2'     row 2 removed, row 2' appended

Order: the rows that stay keep the base's order; changed and new rows follow in the order they were given. The content
digest covers that order, so it equals what a fresh write of the same rows in the same order gives. The rejects are the
base's. A revision exists once a record names it: what a killed writer left in the table is nobody's, and the next
writer goes on from the revision it builds on (Lance `restore`, which copies nothing).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from catena.core.types import UNDIVIDED, DatasetVersion, File, Split
from catena.hub.datasets import BATCH_ROWS, REJECTS, SAMPLES, Dataset, file_of
from catena.hub.rows import HASH, content_digest, encode, stored_schema, to_batch, to_sample
from catena.hub.store import Store

Positions = npt.NDArray[np.int64]
MOST_FRAGMENTS = 100
"""A table in more pieces than this is written anew: every piece costs each later reader a file to open."""
MOST_CHANGED = 0.5
"""Share of the base's rows beyond which a table of its own is the better choice."""

OF_THE_SOURCE = frozenset({"cursor", "collect", "feedback", "ingest", "by_hand"})
"""What a profile tells of the source and how to go on there: as true of the rows after a few of them changed."""

Rows = Callable[[], Iterator[dict[str, Any]]]


def save_change(store: Store, base: DatasetVersion, removed: Positions, added: Rows) -> DatasetVersion:
    """Store `base` without the rows at `removed` and with `added` (rows without `_hash`) after the others.

    Takes the table's lock: two commits on one table take turns. `added` may be called more than once.
    """
    opened = store.open_dataset(base)
    if _can_share(store, opened, len(removed), added):
        return write_revision(store, opened, removed, added())
    with store.new_dataset(base.shape, base.license) as writer:
        stays = np.ones(base.rows, dtype=bool)
        stays[removed] = False
        for row, kept in zip(opened.rows(), stays.tolist(), strict=True):
            if kept:
                writer.add(to_sample(row))
        for row in added():
            writer.add(to_sample(row))
        for sample, reason, detail in opened.rejects():
            writer.reject(sample, reason, detail, shape=opened.reject_shape)
        return writer.commit(labels=base.labels, profile=_lasting(base))


def _lasting(version: DatasetVersion) -> dict[str, Any]:
    return {name: value for name, value in version.profile.items() if name in OF_THE_SOURCE}


def write_revision(store: Store, base: Dataset, removed: Positions, added: Iterable[dict[str, Any]]) -> DatasetVersion:
    """Write a revision into the table of `base`, which has hashes, and return its record."""
    with store.lock(f"table-{base.version.table.replace('/', '-')}"):
        return _Revision(base, removed).write(added)


def _can_share(store: Store, opened: Dataset, removed: int, added: Rows) -> bool:
    table = opened.open_table()
    if removed > MOST_CHANGED * opened.version.rows or len(table.get_fragments()) >= MOST_FRAGMENTS:
        return False
    denied = store.denied()
    if denied is not None and any(denied.holds(to_sample(row)) for row in added()):
        return False  # the writer makes them rejects, which a shared table cannot take
    return HASH in table.schema.names and not (
        opened.version.rejects and HASH not in opened.open_table(REJECTS).schema.names
    )


class _Revision:
    """One new revision of a table while it is written. The table's lock is held."""

    def __init__(self, base: Dataset, removed: Positions) -> None:
        self.base, self.removed = base, removed
        self.path = base.folder / SAMPLES
        self.splits = {name: [split.rows, split.bytes] for name, split in base.version.splits.items()}
        self.hashes = bytearray()

    def write(self, added: Iterable[dict[str, Any]]) -> DatasetVersion:
        """Write it and return its record."""
        version = self.base.version
        latest = lance.dataset(str(self.path))
        if latest.version != version.revision:
            latest = lance.dataset(str(self.path), version=version.revision)
            latest.restore()
            latest = lance.dataset(str(self.path))
        if len(self.removed):
            self._count_removed()
            ids = latest.scanner(columns=[], with_row_id=True, scan_in_order=True).to_table()["_rowid"].to_numpy()
            latest.delete(f"_rowid IN ({','.join(map(str, ids[self.removed].tolist()))})")
        schema = stored_schema(version.shape)
        batches = self._batches(added, schema)
        first = next(batches, None)
        if first is not None:
            reader = pa.RecordBatchReader.from_batches(schema, chain([first], batches))
            lance.write_dataset(reader, str(self.path), mode="append")
        return self._record()

    def _batches(self, added: Iterable[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        buffer: list[dict[str, Any]] = []
        for row in added:
            hashed, size = encode(row)
            self.hashes += hashed
            self._count(row, 1, size)
            buffer.append({**row, HASH: hashed})
            if len(buffer) >= BATCH_ROWS:
                yield to_batch(buffer, schema)
                buffer = []
        if buffer:
            yield to_batch(buffer, schema)

    def _count(self, row: dict[str, Any], sign: int, size: int) -> None:
        count = self.splits.setdefault(row["_split"] or UNDIVIDED, [0, 0])
        count[0] += sign
        count[1] += sign * size

    def _count_removed(self) -> None:
        for row in self.base.take(self.removed):
            self._count(row, -1, encode(row)[1])

    def _record(self) -> DatasetVersion:
        version = self.base.version
        stays = np.ones(version.rows, dtype=bool)
        stays[self.removed] = False
        digest = hashlib.sha256(self.base.hashes()[stays].tobytes())
        digest.update(self.hashes)
        rejects = hashlib.sha256(self.base.hashes(REJECTS).tobytes()).hexdigest() if version.rejects else ""
        written = lance.dataset(str(self.path))
        rows = version.rows - len(self.removed) + len(self.hashes) // 32
        funnel = {**version.profile.get("funnel", {}), "rows_in": rows + version.rejects, "rows_out": rows}
        draft = version.model_copy(
            update={
                "digest": "",
                "created": None,
                "made_by": None,
                "parents": (),
                "rows": rows,
                "content": content_digest(version.shape, digest.hexdigest(), rejects),
                "splits": {
                    name: Split(rows=rows, bytes=size) for name, (rows, size) in sorted(self.splits.items()) if rows
                },
                "profile": {**_lasting(version), "funnel": {**funnel, "changed": {}}},
                "revision": int(written.version),
                "files": self._files(written),
            }
        )
        return draft.model_copy(update={"digest": draft.compute_digest()})

    def _files(self, written: Any) -> tuple[File, ...]:
        """Return the files that this revision is read from; those of the base are not hashed again."""
        known = {file.path: file for file in self.base.version.files}
        paths = [f"{SAMPLES}/_versions/{2**64 - 1 - written.version:020d}.manifest"]
        for fragment in written.get_fragments():
            paths += [f"{SAMPLES}/data/{file.path}" for file in fragment.data_files()]
            deletions = fragment.deletion_file()
            paths += [f"{SAMPLES}/{deletions}"] if deletions else []
        paths += [path for path in known if path.startswith(f"{REJECTS}/")]
        files = []
        for path in sorted(paths):
            if path not in known:
                _sync(self.base.folder / path)
                known[path] = file_of(self.base.folder, self.base.folder / path)
            files.append(known[path])
        _sync(self.path / "_versions")
        return tuple(files)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
