"""Rows of data files (Parquet, JSON lines, JSON, CSV) one after the other, and samples of rows. No network."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, cast

from catena.core.types import Shape
from catena.data.collect.card import kind_of
from catena.hub.fields import near

# Column names that tell a shape, best first; the field of the sample is the key.
USUAL: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation"),
    "input": ("input", "prompt", "question", "instruction"),
    "output": ("output", "completion", "response", "answer"),
    "content": ("content", "image", "audio"),
    "text": ("text", "content", "document", "article", "body"),
}
FIELDS: dict[Shape, tuple[str, ...]] = {
    "conversation": ("messages",),
    "example": ("input", "output"),
    "media": ("content",),
    "document": ("text",),
}
ROLES = {"human": "user", "gpt": "assistant", "bing": "assistant", "chatgpt": "assistant"}
PARQUET_ROWS = 256
PIECE = 1 << 16
BETWEEN = re.compile(r"[\s,]*")
PLAIN = (str, int, float, bool, type(None))


class BadFile(ValueError):
    """A data file that cannot be read (further)."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class BadRow:
    """Why a row is no sample."""

    reason: str
    detail: str


Row = Mapping[str, Any] | BadRow


def rows_of(stream: BinaryIO, path: str, max_row: int, start: int) -> Iterator[Row]:
    """Yield the rows of a data file from number `start` on; raises `BadFile` where it is damaged.

    A line longer than `max_row` bytes is a `BadRow`, read and thrown away in pieces.
    """
    try:
        yield from islice(_rows(stream, path, max_row), start, None)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise BadFile("bad_file", f"the file is damaged or ends early: {error}") from error


def _rows(stream: BinaryIO, path: str, max_row: int) -> Iterator[Row]:
    kind = kind_of(path)
    if kind == ".parquet":
        yield from _parquet(stream)
        return
    plain = _unpacked(stream, path)
    if kind in (".csv", ".tsv"):
        yield from _csv(plain, "\t" if kind == ".tsv" else ",", max_row)
    elif kind == ".json" and _first_byte(plain) == b"[":
        yield from _json_list(plain, max_row)
    else:
        yield from _json_lines(plain, max_row)


def _unpacked(stream: BinaryIO, path: str) -> BinaryIO:
    name = path.lower()
    if name.endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream, mode="rb"))
    if name.endswith(".bz2"):
        return cast(BinaryIO, bz2.BZ2File(stream))
    if name.endswith(".xz"):
        return cast(BinaryIO, lzma.LZMAFile(stream))
    return stream


def _parquet(stream: BinaryIO) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(stream).iter_batches(PARQUET_ROWS):
            yield from batch.to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise BadFile("bad_file", f"it is no sound Parquet file: {error}") from error


def _lines(stream: BinaryIO, max_row: int) -> Iterator[bytes | None]:
    """Yield lines; None in place of one that is too long."""
    while line := stream.readline(max_row + 1):
        if len(line) > max_row and not line.endswith(b"\n"):
            while (rest := stream.readline(1 << 20)) and not rest.endswith(b"\n"):
                pass
            yield None
        else:
            yield line


def _json_lines(stream: BinaryIO, max_row: int) -> Iterator[Row]:
    for number, line in enumerate(_lines(stream, max_row)):
        if line is None:
            yield BadRow("too_large", f"a line of more than {max_row} bytes")
        elif (line.removeprefix(codecs.BOM_UTF8) if number == 0 else line).strip():
            yield _json_row(line.removeprefix(codecs.BOM_UTF8))


def _json_row(line: bytes) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRow("bad_row", f"not JSON: {error}")
    return row if isinstance(row, dict) else BadRow("bad_row", f"a {type(row).__name__} is no row")


def _first_byte(stream: BinaryIO) -> bytes:
    """Look at the first byte that is no blank, and go back to the start."""
    head = stream.read(1024).removeprefix(codecs.BOM_UTF8).lstrip()
    stream.seek(0)
    return head[:1]


def _json_list(stream: BinaryIO, max_row: int) -> Iterator[Row]:
    """Yield the entries of one large JSON array, one decoded at a time; memory holds one entry and one piece."""
    decoder = json.JSONDecoder()
    text = codecs.getincrementaldecoder("utf-8-sig")("replace")
    buffer, at, more = text.decode(stream.read(PIECE)).lstrip().removeprefix("["), 0, True
    while True:
        at = BETWEEN.match(buffer, at).end()  # type: ignore[union-attr]
        if buffer.startswith("]", at):
            return
        try:
            row, at = decoder.raw_decode(buffer, at)
            # A number may go on in the next piece; rows are objects, so what matters is whole.
            yield row if isinstance(row, dict) else BadRow("bad_row", f"a {type(row).__name__} is no row")
            continue
        except RecursionError as error:
            raise BadFile("bad_file", "JSON nested too deep") from error
        except json.JSONDecodeError as error:
            if not more:
                raise BadFile("bad_file", f"the JSON list ends early or is broken: {error}") from error
        buffer, at = buffer[at:], 0
        if len(buffer) > max_row + PIECE:
            raise BadFile("too_large", f"an entry of the JSON list has more than {max_row} bytes")
        # As much again as is there: a long entry is tried a few times and not once for every piece.
        piece = stream.read(max(PIECE, len(buffer)))
        more = bool(piece)
        buffer += text.decode(piece, final=not more)


def _csv(stream: BinaryIO, delimiter: str, max_row: int) -> Iterator[Row]:
    """Yield rows of a CSV file with a header line (RFC 4180); a row of another length is a `BadRow`."""

    def text() -> Iterator[str]:
        for number, line in enumerate(_lines(stream, max_row)):
            if line is None:
                raise BadFile("too_large", f"a line of more than {max_row} bytes")
            yield line.decode("utf-8-sig" if number == 0 else "utf-8", "replace")

    before = csv.field_size_limit(max_row)
    try:
        reader = csv.reader(text(), delimiter=delimiter, strict=True)
        header = next(reader, [])
        for values in reader:
            csv.field_size_limit(max_row)  # process-wide: another reader may have set its own between two rows
            if len(values) == len(header):
                yield dict(zip(header, values, strict=True))
            elif values:
                yield BadRow("bad_row", f"{len(values)} fields where the header has {len(header)}")
    except csv.Error as error:
        raise BadFile("bad_file", f"the CSV is broken: {error}") from error
    finally:
        csv.field_size_limit(before)


def shape_of(row: Mapping[str, Any], columns: Mapping[str, str]) -> Shape:
    """Tell the shape of samples from a row's columns; a document where nothing says otherwise."""
    for shape, fields in FIELDS.items():
        if all(column_of(row, name, columns) is not None for name in fields):
            value = row[column_of(row, fields[0], columns) or ""]
            told = shape not in ("media", "conversation")
            if (
                told
                or (shape == "media" and _bytes_of(value)[0])
                or (shape == "conversation" and isinstance(value, list))
            ):
                return shape
    return "document"


def column_of(row: Mapping[str, Any], name: str, columns: Mapping[str, str]) -> str | None:
    """Return the column that holds a field of the sample."""
    if name in columns:
        return columns[name] if columns[name] in row else None
    return next((column for column in USUAL[name] if column in row), None)


def sample_of(
    row: Mapping[str, Any], shape: Shape, columns: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any]] | BadRow:
    """Return (data, metadata) of a row: metadata are the columns that hold no field."""
    used = {name: column_of(row, name, columns) for name in FIELDS[shape]}
    missing = [name for name, column in used.items() if column is None or row[column] is None]
    if missing:
        return BadRow("bad_row", _no_column(missing[0], row))
    values = {name: row[column] for name, column in used.items() if column is not None}
    rest = {k: v for k, v in row.items() if k not in used.values() and k != "key" and isinstance(v, PLAIN)}
    if shape == "conversation":
        turns = _turns(values["messages"])
        return ({"messages": turns}, rest) if turns else BadRow("bad_row", "messages are no list of role and content")
    if shape == "media":
        body, name = _bytes_of(values["content"])
        if not body:
            return BadRow("bad_row", "no bytes in the media column")
        from catena.data.collect.objects import media_type_of

        return {"content": body, "media_type": media_type_of(name)}, {**rest, "name": name}
    wrong = [name for name, value in values.items() if not isinstance(value, str | int | float)]
    if wrong:
        return BadRow("bad_row", f"{wrong[0]} is a {type(values[wrong[0]]).__name__} and no text")
    if not any(str(value).strip() for value in values.values()):
        return BadRow("bad_row", "no text in it")
    return {name: str(value) for name, value in values.items()}, rest


def _no_column(name: str, row: Mapping[str, Any]) -> str:
    """Say that no column holds a field, which there are, and whether one is nearly called as one that is known."""
    known = {column for columns in USUAL.values() for column in columns}
    columns = sorted(map(str, row))
    guess = next((f" {told}" for column in columns if column not in known and (told := near(column, known))), "")
    return f"no column for {name}: it has {', '.join(columns)}.{guess}".rstrip()


def _turns(value: Any) -> list[dict[str, str]]:
    """Return messages as role and content; also of `from` and `value` (ShareGPT); empty for anything else."""
    turns = []
    for turn in value if isinstance(value, list) else []:
        if not isinstance(turn, dict):
            return []
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            return []
        turns.append({"role": ROLES.get(role, role), "content": content})
    return turns


def _bytes_of(value: Any) -> tuple[bytes, str]:
    """Return bytes and file name of a media column: plain bytes, or Hugging Face's `{bytes, path}`."""
    if isinstance(value, bytes):
        return value, ""
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return value["bytes"], str(value.get("path") or "")
    return b"", ""
