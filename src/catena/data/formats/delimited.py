"""Tables as text: CSV and TSV (RFC 4180), where a broken quote costs its own line and not the rest of the file.

A reader that trusts quotes swallows everything from a stray quote to the next one. Here a record that spans lines is
believed only if it parses strictly and has as many fields as the header; if not, its first line is a reject and
reading goes on with the next line.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO

from catena.data.decode import Undecodable, decode
from catena.data.formats.pieces import Piece, Reject, Source, Unreadable
from catena.data.formats.plain import decoded
from catena.data.formats.records import bounded_lines, record_row, shown

SAMPLE_BYTES = 1 << 20
"""How much of the file its charset is guessed by."""
LINES = 1000
"""Most lines of one record."""
DELIMITERS = ",;\t|"

Line = tuple[int, str | None, str]
"""Number, text (None where there is none) and the reason why there is none."""


def read_delimited(source: Source) -> Iterator[Piece]:
    """Yield each record as a row; the first record names the fields."""
    csv.field_size_limit(source.limits.row_bytes)
    with source.path.open("rb") as opened:
        stream: BinaryIO = opened
        charset = _charset(stream)
        if charset == "utf-16":  # in which a line end is no single byte
            stream, charset = io.BytesIO(decoded(source.read_bytes())[0].encode()), "utf-8"
        lines = _Lines(stream, charset, source.limits.row_bytes)
        number, first, reason = next((line for line in lines if line[1] != ""), (0, None, "empty"))
        if first is None:
            raise Unreadable(reason, "there is no line that names the fields")
        delimiter = "\t" if source.format.name == "tsv" else _delimiter(first)
        header = _parse([first], delimiter)
        if header is None or len(set(header)) != len(header):
            raise Unreadable("bad_csv", f"line {number} does not name the fields, each once")
        names = [name.strip() for name in header]
        for piece in _records(lines, delimiter, names, source.limits.row_bytes):
            yield piece if isinstance(piece, Reject) else _row(piece, names, charset, source.reading.text_field)


def _row(record: tuple[int, list[str]], names: list[str], charset: str, text_field: str) -> Piece:
    number, fields = record
    return record_row(dict(zip(names, fields, strict=True)), {"line": number, "charset": charset}, text_field)


class _Lines:
    """The lines of a file, decoded one by one, with a way to put some back."""

    def __init__(self, stream: BinaryIO, charset: str, most: int) -> None:
        self._lines, self._charset = bounded_lines(stream, most), charset
        self._back: deque[Line] = deque()

    def __iter__(self) -> Iterator[Line]:
        while True:
            if self._back:
                yield self._back.popleft()
                continue
            found = next(self._lines, None)
            if found is None:
                return
            yield self._decoded(*found)

    def _decoded(self, number: int, line: bytes | None) -> Line:
        if line is None:
            return number, None, "too_large"
        if b"\0" in line:
            return number, None, "nul_bytes"
        try:
            return number, line.decode(self._charset).removeprefix("\ufeff"), ""
        except UnicodeDecodeError:
            return number, None, "undecodable"

    def put_back(self, lines: list[Line]) -> None:
        """Make these the next lines."""
        self._back.extendleft(reversed(lines))


def _records(lines: _Lines, delimiter: str, names: list[str], most: int) -> Iterator[tuple[int, list[str]] | Reject]:
    for number, text, reason in lines:
        place = {"line": number}
        if text is None:
            yield Reject(reason, f"line {number}", place)
        elif not text.strip():
            yield Reject("empty", f"line {number} is empty", place)
        else:
            fields = _parse([text], delimiter)
            if fields is None and (fields := _continued(lines, text, delimiter, len(names), most)) is None:
                yield Reject("bad_csv", f"line {number}: a quote is broken", place, shown(text))
            elif len(fields) != len(names):
                said = f"line {number}: {len(fields)} fields instead of {len(names)}"
                yield Reject("bad_csv", said, place, shown(text))
            elif not any(fields):
                yield Reject("empty", f"line {number}: all fields are empty", place)
            else:
                yield number, fields


def _continued(lines: _Lines, first: str, delimiter: str, width: int, most: int) -> list[str] | None:
    """Return the fields of a record whose quoted field goes on in the next lines, or None, with those put back."""
    taken: list[Line] = []
    texts, size, open_quote = [first], len(first), True
    for line in lines:
        taken.append(line)
        text = line[1]
        size += len(text or "")
        if text is None or len(taken) >= LINES or size > most:
            break
        texts.append(text)
        if text.count('"') % 2:
            open_quote = not open_quote
        if not open_quote:
            fields = _parse(texts, delimiter)
            if fields is not None and len(fields) == width:
                return fields
            break
    lines.put_back(taken)
    return None


def _parse(texts: list[str], delimiter: str) -> list[str] | None:
    """Return the fields of one record, or None where its quotes are broken."""
    text = "\n".join(texts)
    if '"' not in text:
        return text.split(delimiter)
    try:
        rows = list(csv.reader([line + "\n" for line in texts], delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def _charset(stream: BinaryIO) -> str:
    sample = stream.read(SAMPLE_BYTES)
    stream.seek(0)
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    whole = sample if len(sample) < SAMPLE_BYTES else sample[: sample.rfind(b"\n") + 1] or sample
    try:
        whole.decode("utf-8-sig")
        return "utf-8"
    except UnicodeDecodeError:
        pass
    try:
        found = decode(whole.replace(b"\0", b""))
    except Undecodable:
        return "utf-8"  # lines that are in another charset are rejects, each by itself
    return "utf-8" if found.replaced else found.charset


def _delimiter(header: str) -> str:
    outside = "".join(header.split('"')[::2])
    return max(DELIMITERS, key=lambda each: (outside.count(each), -DELIMITERS.index(each)))
