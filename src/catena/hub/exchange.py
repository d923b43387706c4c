"""Exchange: a dataset version as files that other programs edit, and such files as rows again.

    samples.jsonl    one object a row: `_id`, `_source`, `_license`, `_parents`, `_split`, `metadata`, and the data;
                     bytes in base64
    samples.parquet  the same columns; `metadata` is JSON text
    samples.lance    a Lance table

What is written and read back unchanged has the same hashes: a commit of it changes nothing.
"""

from __future__ import annotations

import base64
import binascii
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lance
import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as parquet

from catena.core.errors import DataError, NotFound, UsageError, did_you_mean
from catena.core.events import Events, Progress
from catena.core.sample import sample_id
from catena.core.types import Shape
from catena.hub.datasets import BATCH_ROWS, REJECTS, SAMPLES, Dataset
from catena.hub.diff import ID, key_of, short
from catena.hub.fields import FIELDS, check_fields
from catena.hub.rows import COLUMNS, COMMON, HASH, encode, shape_of

FORMATS = ("jsonl", "parquet", "lance")
KNOWN = {shape: frozenset([HASH, *(name for name, _ in COMMON + own)]) for shape, own in COLUMNS.items()}
"""Columns that a row of each shape may have."""
LINE_BYTES = 1 << 30
"""A longer line of JSON is refused: it is a file without line ends."""


def export(dataset: Dataset, folder: Path, form: str = "jsonl", events: Events | None = None) -> list[Path]:
    """Write a version's samples, and its rejects, into a new folder; returns the files. They appear all at once.

    Raises `UsageError` where the folder is there already.
    """
    if form not in FORMATS:
        raise UsageError(f"{form!r} is not a format", hint=f"Formats: {', '.join(FORMATS)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already", hint="Choose a folder that does not exist.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    version = dataset.version
    progress = (events or Events()).progress("checkout", version.rows + version.rejects)
    tables = [SAMPLES, *([REJECTS] if version.rejects else [])]
    try:
        for name in tables:
            _export_table(dataset.open_table(name), temporary / f"{name.removesuffix('.lance')}.{form}", form, progress)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    progress.finish()
    return [folder / f"{name.removesuffix('.lance')}.{form}" for name in tables]


def _export_table(table: Any, target: Path, form: str, progress: Progress) -> None:
    columns = [name for name in table.schema.names if name != HASH]
    schema = pa.schema([table.schema.field(name) for name in columns])

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in table.scanner(columns=columns, scan_in_order=True, batch_size=BATCH_ROWS).to_batches():
            yield batch
            progress.advance(len(batch))

    if form == "jsonl":
        with target.open("wb") as stream:
            for batch in batches():
                stream.write(b"".join(line_of(row) for row in batch.to_pylist()))
    elif form == "parquet":
        with parquet.ParquetWriter(target, schema, compression="zstd") as writer:
            for batch in batches():
                writer.write_batch(batch)
    else:
        reader = pa.RecordBatchReader.from_batches(schema, batches())
        lance.write_dataset(reader, str(target), schema=schema, mode="create")


def line_of(row: Mapping[str, Any]) -> bytes:
    """Return a row as a line of JSON: its metadata as an object, bytes in base64."""
    shown = {**row, "metadata": orjson.loads(row["metadata"] or "{}")}
    return orjson.dumps(shown, default=_base64, option=orjson.OPT_APPEND_NEWLINE)


def _base64(value: Any) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} is not a column type")


class RowFile:
    """A file of rows that may be larger than memory. It is read twice: for keys and hashes, then for some rows."""

    def __init__(self, path: Path, shape: Shape | None = None) -> None:
        """`shape` None: as the first row's columns say. Raises `NotFound`, or `DataError` for other kinds of files."""
        self.path = _file_in(path)
        self._form = self.path.suffix.lstrip(".").replace("ndjson", "jsonl")
        if self._form not in FORMATS:
            raise DataError(f"{path} is of no format that can be committed", hint=f"Formats: {', '.join(FORMATS)}.")
        self.shape: Shape = shape or shape_of(next((entry for _, entry in self._entries(None)), {}))

    def scan(self, key: str = ID, progress: Progress | None = None) -> tuple[pa.ChunkedArray, npt.NDArray[np.uint64]]:
        """Return every row's key (as `diff.keys_of` does) and hash (`[rows, 4]`)."""
        hashes, chunks = bytearray(), []
        keys: list[str] = []
        for row in self.rows():
            hashes += encode(row)[0]
            keys.append(row[ID] if key == ID else short(key_of(row, key)))
            if len(keys) == BATCH_ROWS:
                chunks.append(pa.array(keys, pa.large_string()))
                keys = []
                if progress is not None:
                    progress.advance(BATCH_ROWS)
        chunks.append(pa.array(keys, pa.large_string()))
        return pa.chunked_array(chunks), np.frombuffer(bytes(hashes), dtype=np.uint64).reshape(-1, 4)

    def rows(self, wanted: npt.NDArray[np.bool_] | None = None) -> Iterator[dict[str, Any]]:
        """Yield the rows, or those where `wanted` is true, as they stand in tables.

        Raises `DataError` with the row's number where one is damaged or does not have the columns of the shape.
        """
        for number, entry in self._entries(wanted):
            try:
                yield row_of(entry, self.shape)
            except (DataError, TypeError, ValueError, AttributeError) as error:
                hint = error.hint if isinstance(error, DataError) else ""
                raise DataError(
                    f"row {number + 1} of {self.path.name}: {error}", hint=f"Nothing was committed. {hint}".rstrip()
                ) from error

    def _entries(self, wanted: npt.NDArray[np.bool_] | None) -> Iterator[tuple[int, dict[str, Any]]]:
        if self._form == "jsonl":
            yield from self._lines(wanted)
            return
        number = 0
        for batch in self._batches():
            for entry in batch.to_pylist():
                if wanted is None or wanted[number]:
                    yield number, entry
                number += 1

    def _batches(self) -> Iterator[pa.RecordBatch]:
        try:
            if self._form == "lance":
                scanner = lance.dataset(str(self.path)).scanner(scan_in_order=True, batch_size=BATCH_ROWS)
                yield from scanner.to_batches()
            else:
                with parquet.ParquetFile(self.path) as opened:
                    yield from opened.iter_batches(batch_size=BATCH_ROWS)
        except (pa.ArrowInvalid, OSError, ValueError) as error:
            raise DataError(f"{self.path} cannot be read: {error}") from error

    def _lines(self, wanted: npt.NDArray[np.bool_] | None) -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        with self.path.open("rb") as stream:
            while line := stream.readline(LINE_BYTES):
                if not line.strip():
                    continue
                if wanted is None or wanted[number]:
                    try:
                        entry = orjson.loads(line)
                    except orjson.JSONDecodeError as error:
                        raise DataError(
                            f"row {number + 1} of {self.path.name} is not JSON: {error}", hint="Nothing was committed."
                        ) from error
                    if not isinstance(entry, dict):
                        raise DataError(f"row {number + 1} of {self.path.name} is not an object")
                    yield number, entry
                number += 1


def row_of(entry: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    """Return the table row that an object with a table's columns stands for; its metadata may be an object.

    Raises `DataError` for an unknown or a missing column, and for a value that is not of its column's kind.
    """
    if not entry.keys() <= KNOWN[shape]:
        unknown = min(entry.keys() - KNOWN[shape])
        hint = f"{did_you_mean(unknown, KNOWN[shape] - {HASH})} What else is known of a row belongs into `metadata`."
        raise DataError(f"there is no column {unknown!r}", hint=hint)
    data = {name: entry[name] for name in FIELDS[shape] if name in entry}
    if isinstance(data.get("content"), str):
        try:
            data["content"] = base64.b64decode(data["content"], validate=True)
        except binascii.Error as error:
            raise DataError(f"the column 'content' is not base64: {error}") from error
    check_fields(shape, data, "it")
    id, parents, metadata = (entry.get(name) for name in (ID, "_parents", "metadata"))
    if isinstance(metadata, str):
        metadata = orjson.loads(metadata or "{}")
    if not isinstance(metadata, dict | None):
        raise DataError("the column 'metadata' is not an object")
    if not isinstance(parents, list | tuple | None) or not all(isinstance(parent, str) for parent in parents or ()):
        raise DataError("the column '_parents' is not a list of text")
    return {
        ID: sample_id("row", data) if id in (None, "") else str(id),
        "_source": entry.get("_source") or "",
        "_license": entry.get("_license"),
        "_parents": list(parents or ()),
        "_split": entry.get("_split"),
        "metadata": orjson.dumps(metadata or {}, option=orjson.OPT_SORT_KEYS).decode(),
        **data,
    }


def _file_in(path: Path) -> Path:
    """Return the file to read: `path`, or the samples in a folder that `export` wrote."""
    if path.is_dir() and path.suffix != ".lance":
        found = [path / f"samples.{form}" for form in FORMATS if (path / f"samples.{form}").exists()]
        if len(found) != 1:
            raise NotFound(f"{path} holds no samples", hint="A folder that `catena data checkout` wrote holds them.")
        return found[0]
    if not os.access(path, os.R_OK):
        raise NotFound(f"{path} is not there, or cannot be read")
    return path
