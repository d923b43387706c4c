"""Rows: how a `Sample` stands in a table, and the canonical bytes that its identity is computed from.

Every row carries `_hash`, the SHA-256 of its canonical JSON (sorted keys, UTF-8, bytes by their SHA-256). The content
digest of a table is the SHA-256 over these hashes in order, so that a version which changes a few rows of a million is
named without reading the others, and two versions are compared by two columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
import pyarrow as pa

from catena.core.digest import sha256
from catena.core.errors import DataError
from catena.core.sample import Sample
from catena.core.types import Shape
from catena.hub.fields import near

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
HASH = "_hash"
HASH_BYTES = 32


def schema_of(shape: Shape, *, rejects: bool = False) -> pa.Schema:
    """Return the Arrow schema of a shape's table, without `_hash`."""
    return pa.schema(COMMON + COLUMNS[shape] + (REJECT if rejects else []))


def stored_schema(shape: Shape, *, rejects: bool = False) -> pa.Schema:
    """Return the schema as it is on disk: with `_hash`."""
    return schema_of(shape, rejects=rejects).append(pa.field(HASH, pa.binary(HASH_BYTES)))


def shape_of(columns: Iterable[str]) -> Shape:
    """Return the shape that has these columns; raises `DataError` where none has."""
    names = set(columns)
    for shape, own in COLUMNS.items():
        if {name for name, _ in own} <= names:
            return shape
    wanted = "; ".join(f"{shape}: {', '.join(name for name, _ in own)}" for shape, own in COLUMNS.items())
    known = {name for own in COLUMNS.values() for name, _ in own}
    guess = next((told for name in sorted(names - known) if (told := near(name, known))), "")
    raise DataError(
        f"the columns ({', '.join(sorted(names)) or 'none'}) are of no shape that a dataset can have",
        hint=f"{guess}Shapes and their columns: {wanted}.",
    )


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


def encode(row: Mapping[str, Any]) -> tuple[bytes, int]:
    """Return a row's hash and its size: bytes of its canonical JSON, and of its binary values.

    Raises `DataError` for what is not valid Unicode (lone surrogates) or no column type.
    """
    try:
        line = orjson.dumps(row, option=orjson.OPT_SORT_KEYS, default=_bytes_as_digest)
    except (orjson.JSONEncodeError, TypeError) as error:
        raise DataError(
            f"row {row.get('_id')} cannot be stored: {error}",
            hint="Text must be valid Unicode without lone surrogates.",
        ) from error
    size = len(line) + sum(len(value) for value in row.values() if isinstance(value, bytes))
    return hashlib.sha256(line).digest(), size


def to_batch(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Return rows (with `_hash`) as an Arrow batch; raises `DataError` where a value is not of its column's type."""
    try:
        return pa.RecordBatch.from_pylist(rows, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"rows do not fit the shape's columns: {error}") from error


def content_digest(shape: Shape, samples: str, rejects: str) -> str:
    """Return what names a dataset's content; `samples` and `rejects` are the digests of the tables ("" for none)."""
    return sha256("/".join([shape, samples, rejects]).encode())


def _bytes_as_digest(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"sha256": sha256(value)}
    raise TypeError(f"{type(value).__name__} is not a column type")
