"""Bytes on their way into the store: hashed while they are written, moved in when they are whole."""

from __future__ import annotations

import hashlib
import os
import uuid

from catena.hub.repo.inspect import is_pickle
from catena.hub.repo.records import LARGE, RepoFile, git_blob, pointer_id
from catena.hub.store import Store


class Spool:
    """A file that is being uploaded: written and hashed in pieces, then moved into the store, or gone."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._path = store.root / "work" / f"tmp-upload-{uuid.uuid4().hex[:12]}"
        self._state = hashlib.sha256()
        self._stream = self._path.open("w+b")
        self.size = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._path.unlink(missing_ok=True)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes."""
        self._stream.write(data)
        self._state.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._state.hexdigest()

    def store(self) -> str:
        """Make what was written durable in the store, under its SHA-256, which is returned."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._store.files.take(self._path, self.sha256)
        return self.sha256

    def head(self, count: int) -> bytes:
        """Return the first bytes."""
        self._stream.flush()
        self._stream.seek(0)
        return self._stream.read(count)

    def file(self, path: str) -> RepoFile:
        """Store it and return its entry in a commit."""
        self._stream.flush()
        self._stream.seek(0)
        pickle = is_pickle(path, self._stream)
        large = self.size >= LARGE
        oid = pointer_id(self.sha256, self.size) if large else git_blob(self.head(self.size))
        return RepoFile(path=path, size=self.size, sha256=self.store(), oid=oid, large=large, pickle=pickle)
