"""`/v1/files`: bytes are stored under their SHA-256; a row says whose they are and what they are called.

Without a sealer equal bytes are stored once. With one they are sealed under their tenant's key (`sealing.py`), and what
is stored, and named by its digest, is what was sealed.

POST /v1/files (multipart: file, purpose, expires_after)      GET /v1/files?purpose=&limit=&after=&order=
GET | DELETE /v1/files/{id}                                   GET /v1/files/{id}/content
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message, Receive

from catena.core.errors import IntegrityError
from catena.core.registry import require
from catena.govern.seal import HEAD, Erased, is_sealed
from catena.hub.files import FileStore
from catena.hub.locks import file_lock
from catena.serve.jobs.config import JobsConfig
from catena.serve.jobs.forms import ExpiresAfter, attachment, known_only, limit_of, page, plain_name
from catena.serve.jobs.queue import Queue
from catena.serve.jobs.sealing import Seals
from catena.serve.jobs.tables import FileRow
from catena.serve.jobs.who import tenant_of
from catena.serve.wire import WireError

CHUNK = 1 << 18
FRAME_BYTES = 1 << 16
"""A multipart body may be so much longer than its file."""
FIELDS = {"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"}
LISTED = 10_000
PART = "part-"
LEFT_S = 3600.0
"""A part that nobody has written to for so long is of a process that is gone, in seconds."""


class Files:
    """Files of tenants."""

    def __init__(self, queue: Queue, config: JobsConfig, state: Path, seals: Seals | None = None) -> None:
        self._queue, self._config, self.seals = queue, config, seals or Seals()
        self._store = FileStore(config.files or str(state / "files"))
        self._lock = state / "files.lock"
        self._state = state

    # -- routes ------------------------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        """Take a file in."""
        require("python_multipart", "gateway")
        _refuse_pages(request)
        tenant = tenant_of(request.scope)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data":
            message = "the content type must be multipart/form-data"
            raise WireError(message, code="unsupported_media_type", status=415)
        receive = _bounded(request.receive, self._config.max_file_bytes + FRAME_BYTES)
        try:
            async with asyncio.timeout(self._config.upload_timeout_s):
                async with Request(request.scope, receive).form(max_files=1, max_fields=8) as form:
                    row = await self._taken(form, tenant)
        except TimeoutError as error:
            message = f"the file did not arrive within {self._config.upload_timeout_s:g} s"
            raise WireError(message, code="request_timeout", status=408) from error
        except (MultiPartException, ClientDisconnect) as error:
            raise WireError(f"the body is not a whole form: {error}", code="invalid_form") from error
        return JSONResponse(row.shown())

    async def _taken(self, form: FormData, tenant: str) -> FileRow:
        if unknown := sorted(set(form) - FIELDS):
            raise WireError(f"unknown parameter: {unknown[0]}", param=unknown[0], code="unknown_parameter")
        upload, purpose = form.get("file"), form.get("purpose")
        if not isinstance(upload, UploadFile):
            raise WireError("file is required", param="file", code="missing_required_parameter")
        if purpose != "batch":
            message = f"the purpose {purpose!r} is not supported by this server; only batch is"
            raise WireError(message, param="purpose", code="unsupported_purpose")
        size = upload.size or 0
        if not size:
            raise WireError("the file is empty", param="file", code="empty_file")
        if size > self._config.max_file_bytes:
            raise _too_long(self._config.max_file_bytes)
        lifetime = _lifetime(form)
        await asyncio.to_thread(self._require_room, tenant, size)
        return await asyncio.to_thread(self._copied, upload, (tenant, plain_name(upload.filename or "")), lifetime)

    def _copied(self, upload: UploadFile, whose: tuple[str, str], lifetime: float | None) -> FileRow:
        with self.written() as path:
            size = self.seals.write(path, whose[0], iter(partial(upload.file.read, CHUNK), b""))
            with file_lock(self._lock):  # or somebody deletes the same bytes, or takes the same room, at this moment
                self._require_room(whose[0], size)
                row = self.put((path, size), whose, "batch", lifetime)
                self._queue.add_file(row)
            return row

    def _require_room(self, tenant: str, size: int) -> None:
        if self._queue.used(tenant) + size > self._config.max_tenant_bytes:
            message = f"files would have more than {self._config.max_tenant_bytes} bytes; delete some"
            raise WireError(message, param="file", code="storage_limit_reached", status=413)

    async def list(self, request: Request) -> Response:
        """List a tenant's files."""
        query = request.query_params
        known_only(query, ("purpose", "limit", "after", "order"))
        limit, order = limit_of(query, LISTED, LISTED), query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise WireError("order must be asc or desc", param="order", code="invalid_value")
        wanted = (query.get("after", ""), limit + 1, order == "asc")
        tenant = tenant_of(request.scope)
        rows = await asyncio.to_thread(self._queue.files_of, tenant, query.get("purpose", ""), wanted)
        return JSONResponse(page([row.shown() for row in rows], limit))

    async def show(self, request: Request) -> Response:
        """Show a file."""
        return JSONResponse((await self._asked(request)).shown())

    async def delete(self, request: Request) -> Response:
        """Delete a file; not while a batch reads it."""
        row = await self._asked(request)
        if await asyncio.to_thread(self._queue.needed, row.id):
            message = "a batch that is not finished reads this file; cancel the batch first"
            raise WireError(message, code="file_in_use", status=409)
        await asyncio.to_thread(self.remove, row)
        return JSONResponse({"id": row.id, "object": "file", "deleted": True})

    async def content(self, request: Request) -> Response:
        """Give a file's bytes."""
        row = await self._asked(request)
        if not await asyncio.to_thread(self._store.has, row.sha256):
            raise IntegrityError(f"the bytes of {row.id} are missing")
        try:
            stream, _ = await asyncio.to_thread(self._opened, row)
        except Erased as error:
            raise _missing(row.id) from error
        headers = {
            "content-length": str(row.bytes),
            "content-disposition": attachment(row.name),
            "x-content-type-options": "nosniff",
        }
        return StreamingResponse(_pieces(stream), media_type="application/octet-stream", headers=headers)

    async def _asked(self, request: Request) -> FileRow:
        return await self.find(request.path_params["id"], tenant_of(request.scope))

    # -- for batches -------------------------------------------------------------------------------------------------

    async def find(self, id: str, tenant: str, param: str | None = None) -> FileRow:
        """Return a tenant's file; raises `WireError` 404, whosever it may be."""
        row = await asyncio.to_thread(self._queue.file, id, tenant)
        if row is None:
            raise _missing(id, param)
        return row

    def written(self) -> _Temporary:
        """Give a path to write a file to; it is gone afterwards."""
        return _Temporary(self._state / "parts")

    def batch_output(self, lines: Iterable[bytes], whose: tuple[str, str], keep_s: float, like: str) -> FileRow:
        """Store what a batch made, under the key of the batch (`like`); the row has yet to be written."""
        with self.written() as path:
            size = self.seals.write(path, whose[0], lines, like=like)
            return self.put((path, size), whose, "batch_output", keep_s)

    def put(self, made: tuple[Path, int], whose: tuple[str, str], purpose: str, lifetime: float | None) -> FileRow:
        """Store a file that is this long to who may read it, and return the row that has yet to be written."""
        stored, moment = self._store.put(made[0], whose[1]), time.time()
        expires = None if lifetime is None else moment + lifetime
        id = f"file-{secrets.token_hex(12)}"
        return FileRow(id, whose[0], whose[1], purpose, made[1], stored.sha256, moment, expires)

    def locked(self) -> Any:
        """Hold what keeps bytes from being deleted between `put` and their row."""
        return file_lock(self._lock)

    def remove(self, row: FileRow) -> None:
        """Forget a file, and its bytes where nobody else has the same."""
        with file_lock(self._lock):
            if self._queue.remove_file(row.id) and self._store.has(row.sha256):
                self._store.remove(row.sha256)

    def sweep(self) -> None:
        """Remove files whose time is over, and what a kill left half-written."""
        for part in (self._state / "parts").glob(f"{PART}*"):
            with contextlib.suppress(FileNotFoundError):  # one that was just finished
                if time.time() - part.stat().st_mtime > LEFT_S:
                    part.unlink()
        for row in self._queue.expired_files():
            if not self._queue.needed(row.id):
                self.remove(row)

    def lines(self, row: FileRow) -> Iterator[bytes]:
        """Yield a file's lines; raises `IntegrityError` at the end where they are not what was stored."""
        digest = hashlib.sha256()
        stream, sealed = self._opened(row)
        with stream:
            for line in stream:
                digest.update(line)
                yield line
        if not sealed and digest.hexdigest() != row.sha256:
            raise IntegrityError(f"the bytes of {row.id} are not what was stored")

    def remove_erased(self) -> int:
        """Forget files that nobody can read any more; returns how many."""
        gone = [row for row in self._queue.all_files() if self.seals.erased(self._head(row))]
        for row in gone:
            self.remove(row)
        return len(gone)

    def seal(self) -> int:
        """Seal files that lie in clear from before; returns how many."""
        count = 0
        for row in self._queue.all_files() if self.seals.on else ():
            with file_lock(self._lock):
                head = self._head(row)
                if not head or is_sealed(head) or self._queue.file(row.id, row.tenant, over=True) is None:
                    continue
                with self.written() as path:
                    self.seals.write(path, row.tenant, self.lines(row))
                    self._queue.move_file(row.id, self._store.put(path, row.name).sha256)
                if not self._queue.has_bytes(row.sha256):
                    self._store.remove(row.sha256)
                count += 1
        return count

    def _head(self, row: FileRow) -> bytes:
        try:
            with self._store.open(row.sha256) as stream:
                return stream.read(HEAD)
        except FileNotFoundError:
            return b""

    def _opened(self, row: FileRow) -> tuple[BinaryIO, bool]:
        return self.seals.opened(self._store.open(row.sha256))


async def _pieces(stream: BinaryIO) -> AsyncIterator[bytes]:
    try:
        while block := await asyncio.to_thread(stream.read, CHUNK):
            yield block
    finally:
        stream.close()


class _Temporary:
    """A file of a block."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, path = tempfile.mkstemp(prefix=PART, dir=folder)
        os.close(descriptor)
        self._path = Path(path)

    def __enter__(self) -> Path:
        return self._path

    def __exit__(self, *error: object) -> None:
        self._path.unlink(missing_ok=True)


def _bounded(receive: Receive, limit: int) -> Receive:
    """Return what receives at most so many bytes."""
    size = 0

    async def bounded() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:
            raise _too_long(limit - FRAME_BYTES)
        return message

    return bounded


def _missing(id: str, param: str | None = None) -> WireError:
    return WireError(f"there is no file {id!r}", param=param, code="file_not_found", status=404)


def _too_long(limit: int) -> WireError:
    return WireError(f"the file is longer than {limit} bytes", param="file", code="request_too_large", status=413)


def _lifetime(form: FormData) -> float | None:
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    try:
        number = int(str(seconds))
        return float(ExpiresAfter.model_validate({"anchor": anchor, "seconds": number}).seconds)
    except ValueError as error:
        message = "expires_after needs anchor=created_at and seconds from 3600 to 2592000"
        raise WireError(message, param="expires_after", code="invalid_value") from error


def _refuse_pages(request: Request) -> None:
    """Refuse what a page of another site sends: unlike JSON, a form needs no leave of a browser."""
    origin, host = request.headers.get("origin", ""), request.headers.get("host", "")
    if origin and origin.partition("://")[2] != host:
        raise WireError("files are not taken from pages of other sites", code="forbidden_origin", status=403)
