"""Dataset tables: Lance on disk, `Sample` in Python.

A dataset version is a folder named by its content, with two tables:

    datasets/ab/abcd.../samples.lance    the rows
    datasets/ab/abcd.../rejects.lance    the rows that were kept back: the same columns, and why
    datasets/ab/abcd.../files.json       every file with its size and SHA-256

Rows are spooled to an Arrow stream while they are written, so a dataset may be larger than memory; the finished folder
appears in one rename. The content digest covers rows and rejects in order and does not depend on Lance's file names.
A later version may share the folder: it is another revision of `samples.lance` (see `hub.revisions`). Rows that were
erased (see `hub.erase`) never come back: the writer rejects them.
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import lance
import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from catena.core.digest import sha256_of_file
from catena.core.errors import IntegrityError
from catena.core.sample import Sample
from catena.core.types import UNDIVIDED, DatasetVersion, File, Funnel, Shape, Split
from catena.hub.deny import REASON as ERASED, DenyList, blank
from catena.hub.fields import check_fields
from catena.hub.files import sync_folder
from catena.hub.rows import (
    HASH,
    HASH_BYTES,
    content_digest,
    encode,
    shape_of,
    stored_schema,
    to_batch,
    to_row,
    to_sample,
)

LISTING = "files.json"
SAMPLES, REJECTS = "samples.lance", "rejects.lance"
HINT = "latest_version_hint.json"  # Lance rewrites it with every revision: it belongs to none of them
BATCH_ROWS = 1024
BATCH_BYTES = 32 << 20


class _Table:
    """One table while it is written: a buffer, a spool on disk, and a running digest."""

    def __init__(self, spool: Path, schema: pa.Schema) -> None:
        self.schema, self.path = schema, spool
        self.rows = 0
        self._digest = hashlib.sha256()
        self._buffer: list[dict[str, Any]] = []
        self._bytes = 0
        self._stream = pa.OSFile(str(spool), "wb")
        self._writer = pa.ipc.new_stream(self._stream, schema)

    def add(self, row: dict[str, Any]) -> int:
        """Add a row; returns its size in bytes of canonical JSON."""
        hashed, size = encode(row)
        self._digest.update(hashed)
        self._buffer.append({**row, HASH: hashed})
        self.rows += 1
        self._bytes += size
        if len(self._buffer) >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self._flush()
        return size

    def _flush(self) -> None:
        if self._buffer:
            self._writer.write_batch(to_batch(self._buffer, self.schema))
            self._buffer, self._bytes = [], 0

    def close(self) -> str:
        """Write what is buffered; returns the digest of all rows."""
        self._flush()
        self._writer.close()
        self._stream.close()
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Close the spool as it is."""
        self._stream.close()

    def save(self, target: Path) -> None:
        """Turn the spool into a Lance table."""
        with pa.OSFile(str(self.path), "rb") as stream, pa.ipc.open_stream(stream) as reader:
            lance.write_dataset(reader, str(target), schema=self.schema, mode="create", enable_stable_row_ids=True)


class DatasetWriter:
    """Writes a new dataset version; made by `Store.new_dataset`, used as a context manager, ended by `commit`."""

    def __init__(
        self, root: Path, shape: Shape, license: str | None, *, deny: DenyList | None = None, mark: str = ""
    ) -> None:
        """`deny` holds the rows that are not taken; `mark` ends the folder's name, to keep it from an older one."""
        self._root, self.shape, self.license, self._deny, self._mark = root, shape, license, deny, mark
        self._folder = root / f".writing-{uuid.uuid4().hex[:12]}"
        self._folder.mkdir(parents=True)
        self._samples = _Table(self._folder / "samples.spool", stored_schema(shape))
        self._rejects: _Table | None = None
        self._reject_shape: Shape = shape
        self._reasons: Counter[str] = Counter()
        self._splits: dict[str, list[int]] = {}

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for table in (self._samples, self._rejects):
            if table is not None:
                table.abandon()  # an open file would keep its space on a full disk
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def rows(self) -> int:
        """Rows written so far, rejects not counted."""
        return self._samples.rows

    def add(self, sample: Sample) -> None:
        """Write a sample; one that was erased from the workspace becomes a reject without content.

        Raises `DataError` for data with an unknown field, or without one that the shape has.
        """
        check_fields(self.shape, sample.data, f"the sample {sample.id}")
        if self._deny is not None and self._deny.holds(sample):
            self.reject(sample, ERASED)
            return
        size = self._samples.add(to_row(sample))
        count = self._splits.setdefault(sample.split or UNDIVIDED, [0, 0])
        count[0] += 1
        count[1] += size

    def reject(self, sample: Sample, reason: str, detail: str = "", *, shape: Shape | None = None) -> None:
        """Keep a sample back with the reason; `shape` when it has the shape of the input and not of the output."""
        if self._deny is not None and self._deny.holds(sample):
            sample, reason, detail = blank(sample), ERASED, ""
        if self._rejects is None:
            self._reject_shape = shape or self.shape
            self._rejects = _Table(self._folder / "rejects.spool", stored_schema(self._reject_shape, rejects=True))
        self._rejects.add({**to_row(sample), "_reason": reason, "_detail": detail})
        self._reasons[reason] += 1

    def commit(
        self,
        *,
        rows_in: int | None = None,
        changed: Mapping[str, int] | None = None,
        profile: Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> DatasetVersion:
        """Make the dataset durable and return it. `rows_in` is what the stage was given (default: all it wrote)."""
        parts = [self._samples.close(), self._rejects.close() if self._rejects else ""]
        content = content_digest(self.shape, *parts)
        reject_rows = self._rejects.rows if self._rejects else 0
        funnel = Funnel(
            rows_in=self.rows + reject_rows if rows_in is None else rows_in,
            rows_out=self.rows,
            rejected=dict(sorted(self._reasons.items())),
            changed=dict(changed or {}),
        )
        folder, files = self._place(self._root / content[:2] / f"{content}{self._mark}")
        draft = DatasetVersion(
            shape=self.shape,
            rows=self.rows,
            rejects=reject_rows,
            content=content,
            splits={name: Split(rows=rows, bytes=size) for name, (rows, size) in sorted(self._splits.items())},
            profile={**(profile or {}), "funnel": funnel.model_dump()},
            table=folder.relative_to(self._root).as_posix(),
            files=files,
            license=self.license,
            labels=labels or {},
        )
        return draft.model_copy(update={"digest": draft.compute_digest()})

    def _place(self, target: Path) -> tuple[Path, tuple[File, ...]]:
        """Move the finished tables to `target`, or use what another process put there, if it is sound."""
        if target.exists():
            files = list_files(target)
            if files and not any(damage(target, file) for file in files):
                return target, files
            if _is_shared(target):  # other versions may be sound: they keep the folder
                target = target.with_name(f"{target.name}-{uuid.uuid4().hex[:8]}")
            else:
                target.rename(self._folder / "damaged")
        ready = self._folder / "ready"
        ready.mkdir()
        self._samples.save(ready / SAMPLES)
        if self._rejects is not None:
            self._rejects.save(ready / REJECTS)
        files = tuple(file_of(ready, path) for path in sorted(ready.rglob("*")) if path.is_file() and path.name != HINT)
        (ready / LISTING).write_bytes(orjson.dumps([file.model_dump() for file in files]))
        sync_folder(ready)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            ready.rename(target)
        except OSError:
            if not target.exists():
                raise
            return target, list_files(target)  # another process wrote the same content just now
        return target, files


def _is_shared(folder: Path) -> bool:
    return len(list((folder / SAMPLES / "_versions").glob("*.manifest"))) > 1


def file_of(folder: Path, path: Path) -> File:
    """Return the record of a file below a table folder."""
    return File(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=sha256_of_file(path))


def list_files(folder: Path) -> tuple[File, ...]:
    """Return the files of a table folder as they were listed when it was written; nothing if the list is gone."""
    try:
        return tuple(File.model_validate(entry) for entry in orjson.loads((folder / LISTING).read_bytes()))
    except (OSError, orjson.JSONDecodeError):
        return ()


def damage(folder: Path, file: File) -> str | None:
    """Return what is wrong with one file of a table folder, or None."""
    path = folder / file.path
    if not path.exists():
        return "is missing"
    if path.stat().st_size != file.size:
        return f"has {path.stat().st_size} bytes instead of {file.size}"
    return None if sha256_of_file(path) == file.sha256 else "has other bytes than were stored"


class Dataset:
    """An opened dataset version: its samples and its rejects, streamed."""

    def __init__(self, folder: Path, version: DatasetVersion) -> None:
        self.folder, self.version = folder, version

    def verify(self) -> None:
        """Check every file against its digest; raises `IntegrityError` that names the first damaged one."""
        for file in self.version.files:
            problem = damage(self.folder, file)
            if problem:
                raise IntegrityError(
                    f"the file {file.path} of dataset {self.version.digest[:12]} {problem}",
                    hint="`catena fsck` lists what is affected, `catena fsck --forget` lets the next run mend it.",
                )

    def __len__(self) -> int:
        return self.version.rows

    def samples(self, split: str | None = None) -> Iterator[Sample]:
        """Yield the samples (of one split) in their stored order; those of no split are the split 'all'."""
        condition = None if split is None else f"_split = {_quoted(split)}"
        if split == UNDIVIDED:
            condition = f"({condition} OR _split IS NULL)"
        for row in self._rows(SAMPLES, condition):
            yield to_sample(row)

    def rejects(self, reason: str | None = None) -> Iterator[tuple[Sample, str, str]]:
        """Yield (sample, reason, detail) of what was kept back."""
        if not self.version.rejects:
            return
        condition = None if reason is None else f"_reason = {_quoted(reason)}"
        for row in self._rows(REJECTS, condition):
            reason_of, detail = row.pop("_reason"), row.pop("_detail")
            yield to_sample(row), reason_of, detail

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """Return the rows (of some columns) as one Arrow table."""
        opened = self.open_table()
        return opened.to_table(columns=columns or [name for name in opened.schema.names if name != HASH])

    def open_table(self, name: str = SAMPLES) -> Any:
        """Return the Lance table of the samples, or of the rejects, at this version's revision."""
        revision = self.version.revision if name == SAMPLES else 1
        return lance.dataset(str(self.folder / name), version=revision)

    @property
    def reject_shape(self) -> Shape:
        """The shape of the rejects: that of the stage's input where it is another than the output's."""
        return shape_of(self.open_table(REJECTS).schema.names)

    def hashes(self, name: str = SAMPLES) -> npt.NDArray[np.uint64]:
        """Return the rows' hashes in order: `[rows, 4]`, 32 bytes each. Tables of an older form are read for it."""
        opened = self.open_table(name)
        if HASH in opened.schema.names:
            return _words(opened.to_table(columns=[HASH])[HASH].combine_chunks())
        whole = b"".join(encode(row)[0] for row in self._rows(name, None))
        return np.frombuffer(whole, dtype=np.uint64).reshape(-1, 4)

    def take(self, positions: npt.NDArray[np.int64], table: str = SAMPLES) -> Iterator[dict[str, Any]]:
        """Yield the rows at these positions of the stored order, in the order that was asked for."""
        opened = self.open_table(table)
        columns = [name for name in opened.schema.names if name != HASH]
        for start in range(0, len(positions), BATCH_ROWS):
            yield from opened.take(positions[start : start + BATCH_ROWS].tolist(), columns=columns).to_pylist()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield every sample's row, without `_hash`, in the stored order."""
        return self._rows(SAMPLES, None)

    def _rows(self, name: str, condition: str | None) -> Iterator[dict[str, Any]]:
        opened = self.open_table(name)
        columns = [column for column in opened.schema.names if column != HASH]
        scanner = opened.scanner(columns=columns, filter=condition, scan_in_order=True, batch_size=BATCH_ROWS)
        for batch in scanner.to_batches():
            yield from batch.to_pylist()


def _words(column: pa.Array) -> npt.NDArray[np.uint64]:
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], pa.binary(HASH_BYTES))
    if not len(column):
        return np.empty((0, 4), dtype=np.uint64)
    words = np.frombuffer(column.buffers()[1], dtype=np.uint64).reshape(-1, 4)
    return words[column.offset : column.offset + len(column)]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
