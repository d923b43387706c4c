"""The stage `data.collect_warc`: the responses in WARC files (web archives, Common Crawl) become media samples.

    files of a folder -> fastwarc -> response records -> what is kept -> rows by address and time

Rows look like those of `data.crawl`, so that everything behind it works the same.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from email.message import Message
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from catena.core.digest import sha256
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, Shape
from catena.data.collect.cursor import Past, collect, in_batches
from catena.data.collect.folder import Folder, FolderConfig, Found
from catena.data.collect.journal import Batch, Item, Position

if TYPE_CHECKING:
    from fastwarc.warc import WarcRecord

HEX = re.compile(rb"[0-9a-fA-F]{1,8}")


class WarcConfig(FolderConfig):
    """Which archives to read, and which of their records to keep."""

    glob: str = "**/*.warc*"
    """Which files below the folder, by path."""
    media_types: Annotated[tuple[str, ...], Field(min_length=1)] = ("text/html", "application/xhtml+xml", "text/plain")
    """Media types to keep, as the server declared them."""
    max_bytes: int = Field(10_000_000, ge=1)
    """Largest body; a larger one is rejected."""
    max_records: int = Field(10_000_000, ge=1)
    """About the most responses of one run; the next run goes on behind them."""
    license: str | None = None
    """Licence of what is collected, for example an SPDX identifier."""


@stage("data.collect_warc", volatile=True)
def collect_warc(ctx: Context, cfg: WarcConfig) -> DatasetVersion:
    """Collect the responses of WARC files, and later only those of new and changed files.

    `metadata`: url, status, date, charset, sha256, warc, record. Reasons of rejects: `http_error`, `unsupported_type`,
    `too_large`, `revisit`, `not_http`, `empty`, `unsupported_encoding`, `bad_record`; for a whole file `damaged`,
    `truncated`.
    """
    return collect(ctx, WarcConnector(cfg, Folder(cfg)), cfg.max_records)


@dataclass
class WarcConnector:
    """Some archives. The cursor holds the mark of each file that was read to its end."""

    cfg: WarcConfig
    folder: Folder
    name: str = "collect_warc"
    shape: Shape = "media"
    passing: frozenset[str] = frozenset()
    license: str | None = field(init=False)
    identity: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.license = self.cfg.license
        only = {"url", "glob", "media_types", "max_bytes", "license"}
        self.identity = {"connector": self.name, **self.cfg.model_dump(mode="json", include=only)}

    def batches(self, past: Past) -> Iterator[Batch]:
        """Read file after file; inside a file, a position is the offset behind the last record."""
        position = past.position or {"marks": past.cursor.get("marks", {}), "file": "", "offset": 0}
        marks = dict(position["marks"])
        for file in self.folder.files():
            if file.mark and marks.get(file.path) == file.mark:
                continue
            same = position["file"] == file.path and position.get("mark") == file.mark
            yield from in_batches(self._read(file, marks, position["offset"] if same else 0))
            marks[file.path] = file.mark
            yield Batch((), {"marks": marks, "file": "", "offset": 0})
        yield Batch((), {"marks": marks, "file": "", "offset": 0}, {"marks": marks})

    def _read(self, file: Found, marks: dict[str, str], start: int) -> Iterator[tuple[tuple[Item, ...], Position]]:
        from fastwarc.warc import ArchiveIterator, WarcRecordType

        wanted = WarcRecordType.response | WarcRecordType.revisit
        place = {"marks": marks, "file": file.path, "mark": file.mark}
        offset = start
        verdict = Item(f"{file.path} ", "gone")
        with self.folder.open(file.path) as stream:
            stream.seek(start)
            try:
                # Bodies are decoded here and not by the iterator, for which one bad body would be the end of the file.
                for record in ArchiveIterator(stream, record_types=wanted, parse_http=True, auto_decode="none"):
                    offset = record.stream_pos
                    item = self._item(file, record)
                    if item.reason == "truncated":
                        verdict = replace(item, key=verdict.key, source=self.folder.source(file.path))
                        break
                    # Gone on from here, this record comes again, under the same key.
                    yield (item,), {**place, "offset": offset}
            except (OSError, ValueError, EOFError, RuntimeError) as error:
                source = self.folder.source(file.path)
                verdict = Item(f"{file.path} ", "reject", source=source, reason="damaged", detail=str(error))
        yield (verdict,), {**place, "offset": offset}

    def _item(self, file: Found, record: WarcRecord) -> Item:
        """Make a media sample of a response, or a reject."""
        from fastwarc.warc import WarcRecordType

        url = str(record.headers.get("WARC-Target-URI", "")).strip("<>")
        date = str(record.headers.get("WARC-Date", ""))
        http = record.http_headers
        status = int(http.status_code or 0) if http is not None else 0
        media_type, charset = content_type(str(http.get("Content-Type", "")) if http is not None else "")
        facts = {"url": url, "status": status, "date": date, "charset": charset, "warc": file.path}
        facts["record"] = str(record.record_id)
        key = f"{url} {date} {record.record_id}"
        reason, detail = "", ""
        if "Content-Length" not in record.headers:
            reason, detail = "truncated", "the file ends in the head of a record"
        elif record.record_type == WarcRecordType.revisit:
            reason, detail = "revisit", "the archive refers to an earlier record for the body"
        elif http is None or not url:
            reason, detail = "not_http", str(record.headers.get("Content-Type", ""))
        elif not 200 <= status < 300:
            reason, detail = "http_error", str(status)
        elif media_type not in self.cfg.media_types:
            reason, detail = "unsupported_type", media_type
        if reason:
            return Item(key, "reject", {}, facts, url, reason=reason, detail=detail)
        body, reason, detail = body_of(record, self.cfg.max_bytes)
        if reason:
            return Item(key, "reject", {}, facts, url, reason=reason, detail=detail)
        data = {"content": body, "media_type": media_type}
        return Item(key, data=data, metadata={**facts, "sha256": sha256(body)}, source=url)


def body_of(record: WarcRecord, max_bytes: int) -> tuple[bytes, str, str]:
    """Return the body of a response without its transfer and content encodings, or reason and detail."""
    raw = record.reader.read(max_bytes + 1)
    if len(raw) > max_bytes:
        return b"", "too_large", f"over {max_bytes} bytes"
    if len(raw) < record.content_length:
        return b"", "truncated", f"{len(raw)} of {record.content_length} bytes"
    headers = record.http_headers
    if "chunked" in str(headers.get("Transfer-Encoding", "")).lower():
        raw = dechunked(raw)
    encoding = str(headers.get("Content-Encoding", "")).strip().lower()
    # Many archives keep the header and store the body decoded.
    if encoding in ("gzip", "x-gzip", "deflate") and raw[:1] in (b"\x1f", b"\x78"):
        unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)
        try:
            raw = unpack.decompress(raw, max_bytes + 1)
        except zlib.error as error:
            return b"", "bad_record", f"the body is no sound {encoding}: {error}"
        if len(raw) > max_bytes:
            return b"", "too_large", f"over {max_bytes} bytes unpacked"
    elif encoding == "br":
        return b"", "unsupported_encoding", encoding
    return (raw, "", "") if raw else (b"", "empty", "the body is empty")


def dechunked(raw: bytes) -> bytes:
    """Return a body without the frame of chunked transfer (RFC 9112, 7.1); as it is when it has none."""
    body, at = bytearray(), 0
    while True:
        line_end = raw.find(b"\r\n", at)
        size_text = raw[at:line_end].split(b";")[0].strip() if line_end >= 0 else b""
        if not HEX.fullmatch(size_text):
            return raw if at == 0 else bytes(body)
        size = int(size_text, 16)
        if size == 0:
            return bytes(body)
        body += raw[line_end + 2 : line_end + 2 + size]
        at = line_end + 2 + size + 2


def content_type(declared: str) -> tuple[str, str]:
    """Return media type and charset of a Content-Type header; both empty where there is none."""
    if not declared.strip():
        return "", ""
    message = Message()
    message["Content-Type"] = declared.replace("\r", " ").replace("\n", " ")
    return message.get_content_type(), (message.get_content_charset() or "")
