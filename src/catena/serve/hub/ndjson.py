"""The body of a commit: lines of JSON, some with a whole file in base64. Fed in pieces of any size; files go to disk.

{"key": "header", "value": {"summary", "description", "parentCommit"}}
{"key": "file", "value": {"content": base64, "path", "encoding": "base64"}}
{"key": "lfsFile", "value": {"path", "algo", "oid", "size"}}      bytes that were uploaded before
{"key": "deletedFile" | "deletedFolder", "value": {"path"}}
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import Any

import orjson

from catena.core.errors import NotFound, UsageError
from catena.hub.files import FileStore
from catena.hub.repo.inspect import is_pickle
from catena.hub.repo.records import RepoFile, pointer_id
from catena.hub.repo.spool import Spool
from catena.hub.repo.tree import Add, Copy, Delete, Operation, checked_path
from catena.hub.store import Store
from catena.serve.hub.answers import TooLarge
from catena.serve.hub.config import HubConfig

LONGEST_LINE = 1 << 16
"""A longer line is a file whose content comes first, and is decoded while it comes."""
CONTENT = re.compile(rb'\s*\{\s*"key"\s*:\s*"file"\s*,\s*"value"\s*:\s*\{\s*"content"\s*:\s*"')
OID = re.compile(r"[0-9a-f]{64}")


class CommitBody:
    """Takes a body apart. For one thread at a time; `close` when it is over, well or not."""

    def __init__(self, store: Store, config: HubConfig, source: Callable[[str, str], RepoFile]) -> None:
        """`source` returns the file at (path, revision) of the repository, for copies."""
        self._store, self._config, self._source = store, config, source
        self.header: dict[str, Any] = {}
        self.operations: list[Operation] = []
        self._buffer = bytearray()
        self._spool: Spool | None = None
        self._start = b""
        self._padded = False

    def feed(self, data: bytes) -> None:
        """Take the next piece; raises `UsageError` for what is no commit."""
        self._buffer += data
        while self._step():
            pass

    def finish(self) -> None:
        """Say that the body is at its end; raises `UsageError` where it broke off."""
        if self._spool is not None:
            raise UsageError("the commit ends in the middle of a file", hint="Nothing was committed.")
        if self._buffer.strip():
            self._line(bytes(self._buffer))
        if not self.header:
            raise UsageError("the commit has no header line", hint="Nothing was committed.")

    def close(self) -> None:
        """Let go of a file that was not whole."""
        if self._spool is not None:
            self._spool.__exit__()
            self._spool = None

    def _step(self) -> bool:
        if self._spool is not None:
            return self._content(self._spool)
        end = self._buffer.find(b"\n")
        if end >= 0 and end < LONGEST_LINE:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            if line.strip():
                self._line(line)
            return True
        if len(self._buffer) < LONGEST_LINE:
            return False
        match = CONTENT.match(self._buffer)
        if match is None:
            raise UsageError("a line of the commit is too long and no file", hint="Nothing was committed.")
        self._start, self._padded = bytes(match[0]), False
        del self._buffer[: match.end()]
        self._spool = Spool(self._store)
        return True

    def _content(self, spool: Spool) -> bool:
        end = self._buffer.find(b'"')
        usable = end if end >= 0 else len(self._buffer) // 4 * 4
        if usable:
            if self._padded:
                raise UsageError("a file of the commit is not base64: it goes on after its end")
            self._padded = self._buffer[usable - 1] == ord("=")
            spool.write(decoded(bytes(memoryview(self._buffer)[:usable])))
            self._within(spool.size)
            del self._buffer[:usable]
        if end < 0:
            return False
        close = self._buffer.find(b"\n")
        if close < 0 and len(self._buffer) > LONGEST_LINE:
            raise UsageError("a line of the commit does not end")
        if close < 0:
            if b"}}" not in self._buffer:
                return False
            close = len(self._buffer)  # the last line may have no end; it is tried when all of it may be there
            try:
                orjson.loads(self._start + bytes(self._buffer[:close]))
            except orjson.JSONDecodeError:
                return False
        entry = parsed(self._start + bytes(self._buffer[:close]))
        del self._buffer[: close + 1]
        path = checked_path(_text(entry["value"], "path"))
        self._add(spool.file(path))
        self.close()
        return True

    def _line(self, line: bytes) -> None:
        entry = parsed(line)
        key, value = entry["key"], entry["value"]
        if key == "header":
            self.header = value
        elif key == "file":
            self._small(value)
        elif key == "lfsFile":
            self._add(uploaded(self._store.files, value))
        elif key in ("deletedFile", "deletedEntry"):
            self._add_operation(Delete(_text(value, "path")))
        elif key == "deletedFolder":
            self._add_operation(Delete(_text(value, "path"), folder=True))
        elif key == "copyFile":
            source = self._source(_text(value, "srcPath"), str(value.get("srcRevision") or ""))
            self._add_operation(Copy(source, checked_path(_text(value, "path"))))
        else:
            raise UsageError(f"a commit has no {str(key)[:40]!r}", hint="Nothing was committed.")

    def _small(self, value: dict[str, Any]) -> None:
        content, encoding = value.get("content"), value.get("encoding", "utf-8")
        if not isinstance(content, str) or encoding not in ("base64", "utf-8"):
            raise UsageError("a file of the commit has no content that can be read", hint="Nothing was committed.")
        with Spool(self._store) as spool:
            spool.write(decoded(content.encode()) if encoding == "base64" else content.encode("utf-8", "surrogatepass"))
            self._within(spool.size)
            self._add(spool.file(checked_path(_text(value, "path"))))

    def _within(self, size: int) -> None:
        limit = self._config.max_file_bytes
        if size > limit:
            raise TooLarge(f"a file is longer than {limit} bytes", hint="See the setting hub.max_file_bytes.")

    def _add(self, file: RepoFile) -> None:
        if file.pickle and self._config.safetensors_only:
            raise UsageError(
                f"{file.path!r} is a pickle, which runs code when it is loaded",
                hint="Save it as safetensors; hub.safetensors_only is set here.",
            )
        self._add_operation(Add(file))

    def _add_operation(self, one: Operation) -> None:
        self.operations.append(one)
        if len(self.operations) > self._config.max_files:
            raise TooLarge(f"a commit has more than {self._config.max_files} operations")


def uploaded(files: FileStore, value: dict[str, Any]) -> RepoFile:
    """Return the entry of a large file whose bytes were uploaded before; raises where they are not here."""
    path, digest, size = checked_path(_text(value, "path")), _text(value, "oid"), value.get("size")
    if value.get("algo", "sha256") != "sha256" or not OID.fullmatch(digest):
        raise UsageError(f"{path!r} is named by no SHA-256", hint="Nothing was committed.")
    stored = files.size(digest)
    if stored is None:
        raise NotFound(f"the bytes of {path!r} are not here", hint="Upload them first; nothing was committed.")
    if size is not None and size != stored:
        raise UsageError(f"{path!r} has {stored} bytes and not {size}", hint="Nothing was committed.")
    with files.open(digest) as stream:
        pickle = is_pickle(path, stream)
    return RepoFile(path=path, size=stored, sha256=digest, oid=pointer_id(digest, stored), large=True, pickle=pickle)


def parsed(line: bytes) -> dict[str, Any]:
    """Return a line as an object with `key` and `value`; raises `UsageError`."""
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"a line of the commit is not JSON: {error}", hint="Nothing was committed.") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("value"), dict) or "key" not in entry:
        raise UsageError("a line of the commit has no key and value", hint="Nothing was committed.")
    return entry


def decoded(text: bytes) -> bytes:
    """Decode base64 as it must be; raises `UsageError`."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise UsageError(f"a file of the commit is not base64: {error}", hint="Nothing was committed.") from error


def _text(value: dict[str, Any], key: str) -> str:
    found = value.get(key)
    if not isinstance(found, str):
        raise UsageError(f"a line of the commit has no {key!r}", hint="Nothing was committed.")
    return found
