"""Rows of a task: read from local files, from a stored dataset, from the task itself, or made. Each gets an id.

An id depends on what the row holds, so that answers are found again when a file grows or is sorted otherwise.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from catena.core.digest import canonical_json, sha256, sha256_of_file
from catena.core.errors import CatenaError, DataError, NotFound
from catena.core.sample import sample_id
from catena.core.types import DatasetVersion
from catena.evaluate.made import make_rows
from catena.evaluate.task import DataConfig
from catena.hub.store import Store

MOST_ROWS = 1_000_000
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")


Found = tuple[dict[str, Any], str]
"""The fields of a row, and where it stands."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: what templates see, and where it comes from."""

    id: str
    values: Mapping[str, Any]
    where: str
    """`file:line`, or the number of the row."""


def files_of(data: DataConfig, folders: Sequence[Path], hint: str = "") -> list[Path]:
    """Return the files that a task reads, from the first folder that has any; raises `NotFound` where none has."""
    assert data.file is not None
    for folder in folders:
        path = folder / data.file
        found = [path] if path.is_file() else sorted(folder.glob(data.file)) if _pattern(data.file) else []
        if found:
            return found
    places = " or ".join(str(folder) for folder in folders) or "no folder was given"
    raise NotFound(
        f"the file {data.file!r} is not there ({places})", hint=f"Give its folder with --data. {hint}".strip()
    )


def _pattern(name: str) -> bool:
    return not Path(name).is_absolute() and any(sign in name for sign in "*?[")


def content_of(data: DataConfig, folders: Sequence[Path], hint: str = "") -> Any:
    """Return what decides the rows, as JSON: the bytes of files, the rest as written."""
    if data.file is None:
        return data.model_dump(mode="json")
    hashes = [(path.name, sha256_of_file(path)) for path in files_of(data, folders, hint)]
    return {**data.model_dump(mode="json"), "files": hashes}


def folder_content(folder: Path) -> list[tuple[str, str]]:
    """Return the digest of every file in a folder and below it, in order; what Python leaves there does not count."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return [(path.relative_to(folder).as_posix(), sha256_of_file(path)) for path in files]


def read_rows(
    data: DataConfig, folders: Sequence[Path], store: Store | None = None, given: DatasetVersion | None = None
) -> list[Row]:
    """Return the rows of a task; raises `DataError` for a file that cannot be read, and for one without rows."""
    if data.rows or data.made:
        rows = list(data.rows) or make_rows(data.made or "", data.count, data.seed)
        name = data.made or "row"
        found = [(dict(row), f"{name} {number}") for number, row in enumerate(rows, 1)]
    elif data.dataset is not None:
        found = list(_stored(data, store, given))
    else:
        found = [pair for path in files_of(data, folders) for pair in _file(path, data)]
    if not found:
        raise DataError(f"{data.file or data.dataset or data.made} holds no rows: there is nothing to measure")
    return with_ids(found)


def with_ids(rows: Sequence[tuple[dict[str, Any], str]]) -> list[Row]:
    """Give each row an id by what it holds; a row that stands there twice has two."""
    seen: Counter[str] = Counter()
    found = []
    for values, where in rows:
        base = sha256(canonical_json(_plain(values)))[:24]
        seen[base] += 1
        found.append(Row(base if seen[base] == 1 else sample_id(base, seen[base]), values, where))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | bool | None) else repr(value)


def _stored(data: DataConfig, store: Store | None, given: DatasetVersion | None) -> Iterator[Found]:
    assert data.dataset is not None
    if given is None and store is None:
        raise DataError(f"the stored dataset {data.dataset!r} needs a workspace")
    version = given
    if version is None:
        assert store is not None
        version = store.resolve(data.dataset, DatasetVersion)
    assert store is not None
    split = None if data.split == "all" else data.split
    for sample in store.open_dataset(version).samples(split):
        yield {**sample.metadata, **sample.data, "id": sample.id}, f"{data.dataset}:{sample.id}"


Reader = Callable[[Path, DataConfig], Iterator[Found]]


def _file(path: Path, data: DataConfig) -> Iterator[Found]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: files of this kind are not read", hint=f"Known: {', '.join(ENDINGS)}.")
    try:
        for number, (values, where) in enumerate(reader(path, data)):
            if number >= MOST_ROWS:
                raise DataError(f"{path} has more than {MOST_ROWS:,} rows")
            yield {"file": path.stem, **values}, f"{path.name}:{where}"
    except CatenaError:
        raise
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _jsonl(path: Path, data: DataConfig) -> Iterator[Found]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield _object(path, number, _parsed(path, number, line)), str(number)


def _parsed(path: Path, number: int, text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: not valid JSON: {error}") from error


def _object(path: Path, number: int, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{path}:{number}: a row is an object with fields, not {type(value).__name__}")
    return value


def _json(path: Path, data: DataConfig) -> Iterator[Found]:
    value = _parsed(path, 1, path.read_bytes())
    if not isinstance(value, list):
        raise DataError(f"{path}: a JSON file of rows is a list of objects")
    for number, one in enumerate(value, 1):
        yield _object(path, number, one), str(number)


def _delimited(path: Path, data: DataConfig) -> Iterator[Found]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        names = list(data.columns) or next(reader, [])
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(names):
                raise DataError(f"{path}:{reader.line_num}: {len(fields)} fields, and {len(names)} columns")
            yield dict(zip(names, fields, strict=True)), str(reader.line_num)


def _parquet(path: Path, data: DataConfig) -> Iterator[Found]:
    import pyarrow.parquet as pq

    number = 0
    for batch in pq.ParquetFile(path).iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield row, str(number)


def _text(path: Path, data: DataConfig) -> Iterator[Found]:
    text = path.read_text(encoding="utf-8")
    if not data.divide:
        yield {"text": text}, "1"
        return
    begins, start = re.compile(data.divide), 1
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if begins.search(line) and "".join(lines).strip():
            yield {"text": "".join(lines)}, str(start)
            lines, start = [], number
        lines.append(line)
    if "".join(lines).strip():
        yield {"text": "".join(lines)}, str(start)


READERS: Mapping[str, Reader] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _delimited,
    ".tsv": _delimited,
    ".parquet": _parquet,
    ".txt": _text,
}
