"""Dataset tables: Lance on disk, `Sample` in Python.

A dataset version is a folder named by its content, with two tables:

    datasets/ab/abcd.../samples.lance    the rows
    datasets/ab/abcd.../rejects.lance    the rows that were kept back: the same columns, and why
    datasets/ab/abcd.../files.json       every file with its size and SHA-256

Rows are spooled to an Arrow stream while they are written, so a dataset may be larger than memory; the finished folder
appears in one rename. The content digest covers rows and rejects in order and does not depend on Lance's file names.
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
import orjson
import pyarrow as pa

from catena.core.digest import sha256, sha256_of_file
from catena.core.errors import DataError, IntegrityError
from catena.core.sample import Sample
from catena.core.types import DatasetVersion, File, Funnel, Shape, Split
from catena.hub.files import sync_folder

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
COLUMNS: dict[Shape, list[tuple[str, pa.DataType]]] = {
    "document": [("text", pa.large_string())],
    "conversation": [("messages", MESSAGES)],
    "example": [("input", pa.large_string()), ("output", pa.large_string())],
    "media": [("content", pa.large_binary()), ("media_type", pa.string())],
}
COMMON = [
    ("_id", pa.string()),
    ("_source", pa.string()),
    ("_license", pa.string()),
    ("_parents", pa.list_(pa.string())),
    ("_split", pa.string()),
    ("metadata", pa.large_string()),
]
REJECT = [("_reason", pa.string()), ("_detail", pa.string())]

LISTING = "files.json"
BATCH_ROWS = 1024
BATCH_BYTES = 32 << 20


def schema_of(shape: Shape, *, rejects: bool = False) -> pa.Schema:
    """Return the Arrow schema of a shape's table."""
    return pa.schema(COMMON + COLUMNS[shape] + (REJECT if rejects else []))


def to_row(sample: Sample) -> dict[str, Any]:
    """Return the table row of a sample."""
    return {
        "_id": sample.id,
        "_source": sample.source,
        "_license": sample.license,
        "_parents": list(sample.parents),
        "_split": sample.split,
        "metadata": orjson.dumps(dict(sample.metadata), option=orjson.OPT_SORT_KEYS).decode(),
        **sample.data,
    }


def to_sample(row: Mapping[str, Any]) -> Sample:
    """Return the sample of a table row."""
    return Sample(
        id=row["_id"],
        source=row["_source"] or "",
        license=row["_license"],
        parents=tuple(row["_parents"] or ()),
        split=row["_split"],
        metadata=orjson.loads(row["metadata"] or "{}"),
        data={key: value for key, value in row.items() if not key.startswith("_") and key != "metadata"},
    )


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
        try:
            line = orjson.dumps(row, option=orjson.OPT_SORT_KEYS, default=_bytes_as_digest)
        except (orjson.JSONEncodeError, TypeError) as error:
            raise DataError(
                f"row {row.get('_id')} cannot be stored: {error}",
                hint="Text must be valid Unicode without lone surrogates.",
            ) from error
        self._digest.update(len(line).to_bytes(8, "big") + line)
        self._buffer.append(row)
        self.rows += 1
        size = len(line) + sum(len(value) for value in row.values() if isinstance(value, bytes))
        self._bytes += size
        if len(self._buffer) >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self._flush()
        return size

    def _flush(self) -> None:
        if self._buffer:
            try:
                batch = pa.RecordBatch.from_pylist(self._buffer, schema=self.schema)
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise DataError(f"rows do not fit the shape's columns: {error}") from error
            self._writer.write_batch(batch)
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


def _bytes_as_digest(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"sha256": sha256(value)}
    raise TypeError(f"{type(value).__name__} is not a column type")


class DatasetWriter:
    """Writes a new dataset version; made by `Store.new_dataset`, used as a context manager, ended by `commit`."""

    def __init__(self, root: Path, shape: Shape, license: str | None) -> None:
        self._root, self.shape, self.license = root, shape, license
        self._folder = root / f".writing-{uuid.uuid4().hex[:12]}"
        self._folder.mkdir(parents=True)
        self._samples = _Table(self._folder / "samples.spool", schema_of(shape))
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
        """Write a sample."""
        size = self._samples.add(to_row(sample))
        count = self._splits.setdefault(sample.split or "all", [0, 0])
        count[0] += 1
        count[1] += size

    def reject(self, sample: Sample, reason: str, detail: str = "", *, shape: Shape | None = None) -> None:
        """Keep a sample back with the reason; `shape` when it has the shape of the input and not of the output."""
        if self._rejects is None:
            self._reject_shape = shape or self.shape
            self._rejects = _Table(self._folder / "rejects.spool", schema_of(self._reject_shape, rejects=True))
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
        content = sha256("/".join([self.shape, *parts]).encode())
        reject_rows = self._rejects.rows if self._rejects else 0
        funnel = Funnel(
            rows_in=self.rows + reject_rows if rows_in is None else rows_in,
            rows_out=self.rows,
            rejected=dict(sorted(self._reasons.items())),
            changed=dict(changed or {}),
        )
        table = f"{content[:2]}/{content}"
        files = self._place(self._root / table)
        draft = DatasetVersion(
            shape=self.shape,
            rows=self.rows,
            rejects=reject_rows,
            content=content,
            splits={name: Split(rows=rows, bytes=size) for name, (rows, size) in sorted(self._splits.items())},
            profile={**(profile or {}), "funnel": funnel.model_dump()},
            table=table,
            files=files,
            license=self.license,
            labels=labels or {},
        )
        return draft.model_copy(update={"digest": draft.compute_digest()})

    def _place(self, target: Path) -> tuple[File, ...]:
        """Move the finished tables to `target`, or use what another process put there, if it is sound."""
        if target.exists():
            files = list_files(target)
            if files and not any(damage(target, file) for file in files):
                return files
            target.rename(self._folder / "damaged")
        ready = self._folder / "ready"
        ready.mkdir()
        self._samples.save(ready / "samples.lance")
        if self._rejects is not None:
            self._rejects.save(ready / "rejects.lance")
        paths = sorted(path for path in ready.rglob("*") if path.is_file())
        files = tuple(
            File(path=path.relative_to(ready).as_posix(), size=path.stat().st_size, sha256=sha256_of_file(path))
            for path in paths
        )
        (ready / LISTING).write_bytes(orjson.dumps([file.model_dump() for file in files]))
        sync_folder(ready)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            ready.rename(target)
        except OSError:
            if not target.exists():
                raise
            return list_files(target)  # another process wrote the same content just now
        return files


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
        """Yield the samples (of one split) in their stored order."""
        condition = None if split is None else f"_split = {_quoted(split)}"
        for row in self._rows("samples.lance", condition):
            yield to_sample(row)

    def rejects(self, reason: str | None = None) -> Iterator[tuple[Sample, str, str]]:
        """Yield (sample, reason, detail) of what was kept back."""
        if not self.version.rejects:
            return
        condition = None if reason is None else f"_reason = {_quoted(reason)}"
        for row in self._rows("rejects.lance", condition):
            reason_of, detail = row.pop("_reason"), row.pop("_detail")
            yield to_sample(row), reason_of, detail

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """Return the rows (of some columns) as one Arrow table."""
        return lance.dataset(str(self.folder / "samples.lance")).to_table(columns=columns)

    def _rows(self, name: str, condition: str | None) -> Iterator[dict[str, Any]]:
        scanner = lance.dataset(str(self.folder / name)).scanner(
            filter=condition, scan_in_order=True, batch_size=BATCH_ROWS
        )
        for batch in scanner.to_batches():
            yield from batch.to_pylist()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
