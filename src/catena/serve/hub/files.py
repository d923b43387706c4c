"""Files as answers: whole or a range, copied by the kernel from the file to the socket (sendfile) where that goes.

Nothing of a file sits in memory. A client that takes nothing for `send_timeout_s` is cut off.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from starlette.types import Receive, Scope, Send

from catena.serve.connections import CONNECTION, GuardedProtocol

RANGE = re.compile(r"bytes=(\d*)-(\d*)")
SLICE = 1 << 20
SMALL = 128 << 10
"""Up to so many bytes go out with the head, in one write: fetching them costs less than a call of sendfile."""
PLAIN = (".json", ".jsonl", ".md", ".txt", ".py", ".yaml", ".yml", ".csv", ".tsv", ".jinja", ".toml", ".model.index")


class FileAnswer:
    """ASGI: one stored file. `source` is its path, or a stream for bytes that are elsewhere or in memory."""

    def __init__(self, source: Path | BinaryIO, size: int, name: str, headers: Mapping[str, str]) -> None:
        self._source, self._size, self._name, self._headers = source, size, name, dict(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a GET or HEAD, with Range and If-None-Match."""
        given = {name: value.decode("latin-1") for name, value in scope["headers"]}
        headers = {
            **self._headers,
            "accept-ranges": "bytes",
            "content-type": _type_of(self._name),
            "x-content-type-options": "nosniff",
            "content-security-policy": "default-src 'none'; sandbox",
        }
        etag = headers.get("etag", "")
        if etag and etag in [word.strip() for word in given.get(b"if-none-match", "").split(",")]:
            await _send_head(send, 304, headers)
            await send({"type": "http.response.body"})
            return
        wanted = given.get(b"range", "")
        if wanted and given.get(b"if-range", etag) == etag:
            found = byte_range(wanted, self._size)
            if found is None:
                await _send_head(
                    send, 416, {**headers, "content-range": f"bytes */{self._size}", "content-length": "0"}
                )
                await send({"type": "http.response.body"})
                return
            start, end = found
        else:
            wanted, start, end = "", 0, self._size
        if wanted and (start, end) != (0, self._size):
            headers["content-range"] = f"bytes {start}-{end - 1}/{self._size}"
        headers["content-length"] = str(end - start)
        status = 206 if "content-range" in headers else 200
        small = self._read(start, end) if scope["method"] == "GET" and end - start <= SMALL else None
        await _send_head(send, status, headers)
        if small is not None or scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": small or b""})
        else:
            await self._send_bytes(scope, send, start, end)

    def _read(self, start: int, end: int) -> bytes | None:
        """Return a few bytes of a file on this machine; None where they are elsewhere, or fewer than they were."""
        if not isinstance(self._source, Path):
            return None
        with self._source.open("rb", buffering=0) as stream:
            found = os.pread(stream.fileno(), end - start, start)
        return found if len(found) == end - start else None

    async def _send_bytes(self, scope: Scope, send: Send, start: int, end: int) -> None:
        stream = self._source.open("rb") if isinstance(self._source, Path) else self._source
        connection = scope.get(CONNECTION)
        try:
            if isinstance(self._source, Path) and connection is not None and end > start:
                protocol, cycle = connection
                await _by_kernel(protocol, cycle, stream, (start, end))
                await send({"type": "http.response.body"})
            else:
                await _by_hand(send, stream, start, end)
        finally:
            stream.close()


async def _by_kernel(protocol: GuardedProtocol, cycle: Any, stream: BinaryIO, bounds: tuple[int, int]) -> None:
    """Copy from file to socket in the kernel. By hand and not by the loop's `sendfile`, which uvloop does not have."""
    transport: Any = protocol.transport
    start, end = bounds
    pause = 0.0
    while transport.get_write_buffer_size() and not transport.is_closing():
        await asyncio.sleep(pause)  # the head goes first
        pause = 0.001
    if transport.is_closing():
        return
    descriptor = os.dup(transport.get_extra_info("socket").fileno())  # ours to wait for: the other is the transport's
    try:
        while start < end and not transport.is_closing():
            try:
                sent = os.sendfile(descriptor, stream.fileno(), start, min(SLICE, end - start))
            except BlockingIOError:
                await _writable(descriptor, protocol.bounds.send_timeout_s)
                continue
            if not sent:
                break  # the file is shorter than it was: the connection ends before its promised length
            start += sent
            cycle.expected_content_length -= sent
            await asyncio.sleep(0)  # others get their turn
    except (OSError, TimeoutError):
        pass
    finally:
        os.close(descriptor)
    if start < end:
        cycle.expected_content_length = 0
        transport.abort()


async def _writable(descriptor: int, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(descriptor, ready.set)
    try:
        async with asyncio.timeout(seconds):
            await ready.wait()
    finally:
        loop.remove_writer(descriptor)


async def _by_hand(send: Send, stream: BinaryIO, start: int, end: int) -> None:
    await asyncio.to_thread(stream.seek, start)
    while start < end:
        data = await asyncio.to_thread(stream.read, min(SLICE, end - start))
        if not data:
            break
        start += len(data)
        await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body"})


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """Return the (start, end) that a Range header asks for; the whole for what is no single range; None for none."""
    match = RANGE.fullmatch(header.strip().replace(" ", ""))
    if match is None or match[0] == "bytes=-":
        return (0, size)
    first, last = match[1], match[2]
    if not first:
        return (max(0, size - int(last)), size) if int(last) and size else None
    start, end = int(first), min(int(last) + 1, size) if last else size
    return (start, end) if start < size and start < end else None


async def _send_head(send: Send, status: int, headers: Mapping[str, str]) -> None:
    raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


def _type_of(name: str) -> str:
    return "text/plain; charset=utf-8" if name.lower().endswith(PLAIN) else "application/octet-stream"
