"""Records: JSON and JSON lines, read strictly, and how a record of any format becomes a row.

A bad line is one reject and the rest goes on. Python's own JSON reader would keep the last of two equal keys, take NaN,
and let lone surrogates through, which no UTF-8 file can hold: each of these is a reject with its reason here.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from catena.core.digest import sha256
from catena.data.formats.pieces import EXCERPT, Piece, Reject, Row, Source, Unreadable
from catena.data.formats.plain import decoded

DEEPEST = 100
"""Levels of nesting that a record may have."""
KEPT_BYTES = 1024
"""A binary field of a record up to this size is kept as base64, a larger one as its SHA-256."""
SAFE_INT = 1 << 63
SKIP_BYTES = 1 << 20


def read_json(source: Source) -> Iterator[Piece]:
    """Yield each element of a JSON array, or the one value of a file, as a row."""
    text, metadata, _ = decoded(source.read_bytes())
    value = strict_json(text)
    items = value if isinstance(value, list) else [value]
    if not items:
        raise Unreadable("empty", "the array is empty")
    for number, item in enumerate(items, 1):
        yield record_row(item, {**metadata, "row": number}, source.reading.text_field)


def read_jsonl(source: Source) -> Iterator[Piece]:
    """Yield each line as a row; a line that is not one JSON object is a reject with its number."""
    with source.path.open("rb") as stream:
        for number, line in bounded_lines(stream, source.limits.row_bytes):
            place = {"line": number}
            if line is None:
                yield Reject("too_large", f"line {number} has over {source.limits.row_bytes} bytes", place)
                continue
            if not line.strip():
                yield Reject("empty", f"line {number} is empty", place)
                continue
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                yield record_row(strict_json(text), place, source.reading.text_field)
            except UnicodeDecodeError as error:
                yield Reject("undecodable", f"line {number}: {error.reason} at byte {error.start}", place, shown(line))
            except Unreadable as problem:
                yield Reject(problem.reason, f"line {number}: {problem.detail}", place, shown(line))


def bounded_lines(stream: BinaryIO, most: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield (number, line without its end); None for a line of more than `most` bytes, which is passed over."""
    number = 0
    while line := stream.readline(most + 2):
        number += 1
        whole = line.rstrip(b"\r\n")
        if len(whole) <= most:
            yield number, whole
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(SKIP_BYTES)
        yield number, None


def shown(line: bytes | str) -> str:
    """Return the beginning of a refused line, as text that can be stored."""
    if isinstance(line, str):
        line = line[:EXCERPT].encode("utf-8", "backslashreplace")
    return line[: 4 * EXCERPT].decode("utf-8", "backslashreplace").replace("\0", "\\0")[:EXCERPT]


def strict_json(text: str) -> Any:
    """Read one JSON value; raises `Unreadable`: bad_json, duplicate_key, lone_surrogate, too_deep."""
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise Unreadable("too_deep", "the value is nested too deep") from None
    except json.JSONDecodeError as error:
        raise Unreadable("bad_json", f"{error.msg} at character {error.pos + 1}") from error
    except ValueError as error:  # a number of more than 4300 digits
        raise Unreadable("bad_json", str(error)[:200]) from error
    if "\\u" in text and not _encodable(value):
        raise Unreadable("lone_surrogate", "half of a surrogate pair stands alone")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Unreadable("duplicate_key", f"the key {double[:60]!a} stands twice in one object")
    return found


def _constant(name: str) -> Any:
    raise Unreadable("bad_json", f"{name} is not a JSON number")


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def record_row(record: Any, place: Mapping[str, Any], text_field: str) -> Piece:
    """Return the row of a record: its text, and the other fields in the metadata under `fields`."""
    if isinstance(record, str) and not text_field:
        return Row(record, place)
    if not isinstance(record, Mapping):
        return Reject("no_text", f"the record is {type(record).__name__}, not an object", place)
    try:
        fields = {str(name): storable(value) for name, value in record.items()}
    except Unreadable as problem:
        return Reject(problem.reason, problem.detail, place)
    name = text_field or "text"
    text = fields.get(name)
    if isinstance(text, str):
        others = {key: value for key, value in fields.items() if key != name}
        return Row(text, {**place, "fields": others} if others else place)
    if text_field or name in fields:
        found = "is not there" if name not in fields else f"is {type(record[name]).__name__}, not text"
        return Reject("no_text", f"the field {name!r} {found}", place)
    lines = [f"{key}: {_line(value)}" for key, value in fields.items() if value not in (None, "", [], {})]
    return Row("\n".join(lines), place)


def _line(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def storable(value: Any, depth: int = 0) -> Any:
    """Return a value that JSON can hold: dates as ISO 8601, large integers and decimals as text."""
    if depth > DEEPEST:
        raise Unreadable("too_deep", f"a field is nested more than {DEEPEST} deep")
    if isinstance(value, Mapping):
        return {str(key): storable(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item, depth + 1) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode() if len(value) <= KEPT_BYTES else f"sha256:{sha256(value)}"
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -SAFE_INT <= value < SAFE_INT else str(value)
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    return value if value is None or isinstance(value, str | bool) else _as_text(value)


def _as_text(value: Any) -> str:
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    raise Unreadable("bad_value", f"a field is {type(value).__name__}, which JSON cannot hold")
