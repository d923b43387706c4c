"""Data keys: one for each subject, wrapped by the sealing key. To destroy one is to erase all that its subject said.

A file's name holds a keyed hash of the subject (`tag`), so that a listing tells no names, and the key's id, which
stands in the records. A subject that comes back after an erasure gets another key under another id.

`master` says which sealing key wraps them by now, `tags` keeps the key of the hashes when the sealing key changes, and
`generation` changes with every change that others must see.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from catena.core.errors import IntegrityError, UsageError
from catena.core.registry import require
from catena.govern.crypto import KEY_BYTES, NONCE_BYTES, aes, write_over
from catena.hub.files import write_atomically

SYSTEM = "-"
"""The subject of what belongs to nobody: starts, administration, gaps. It cannot be erased."""
GENERATION, MASTER, TAGS = "generation", "master", "tags"
SETTLED_NS = 1_000_000_000
"""A file that changed so long ago has another time or inode when it changes again, however coarse the clock is."""


class Vault:
    """The data keys below a folder. Not for several threads at once."""

    def __init__(self, folder: Path, sealing: Callable[[], Sequence[bytes]]) -> None:
        self._folder, self._sealing = folder, sealing
        self._of_subject: dict[str, tuple[bytes, Any]] = {}
        self._of_id: dict[bytes, Any] = {}
        self._seen: tuple[int, ...] = ()
        self._generation = self._told(GENERATION)
        self._load()

    def _told(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return b""

    def _load(self) -> None:
        """Find the sealing key that is in use among those that are known."""
        keys, master = list(self._sealing()), self._told(MASTER).decode("latin-1")
        chosen = next((key for key in keys if _fingerprint(key) == master), None) if master else keys[0]
        if chosen is None:
            raise IntegrityError(
                "the audit's data keys are sealed by another key than the one that is known here",
                hint="After `catena audit rewrap` start servers again with the new CATENA_AUDIT_KEY.",
            )
        self._wraps = [aes(chosen), *(aes(key) for key in keys if key != chosen)]
        kept = self._told(TAGS)
        self._tags = (
            self._unwrapped(kept, TAGS)[0]
            if kept
            else hmac.digest(keys[0], b"catena audit subject tags", hashlib.sha256)
        )

    def tag(self, subject: str) -> str:
        """Return the keyed hash that stands for a subject."""
        return hmac.digest(self._tags, subject.encode("utf-8", "surrogatepass"), hashlib.sha256)[:16].hex()

    def refresh(self) -> None:
        """Forget what is remembered when another process destroyed a key since."""
        # Asked at every commit: one look at the file's status, and not opening, reading and closing it.
        try:
            status = (self._folder / GENERATION).stat()
        except FileNotFoundError:
            seen: tuple[int, ...] = ()
        else:
            seen = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
            if seen == self._seen and time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED_NS:
                return
        told = self._told(GENERATION)
        self._seen = seen
        if told != self._generation:
            self._load()
            self._of_subject.clear()
            self._of_id.clear()
            self._generation = told

    def rewrap(self, sealing: bytes) -> int:
        """Wrap every data key by another sealing key, which the vault knows already; returns how many there were.

        A kill in between costs nothing: both keys open, and the next time goes on. Records are not touched.
        """
        nonce = secrets.token_bytes(NONCE_BYTES)
        kept = nonce + aes(sealing).encrypt(nonce, self._tags, TAGS.encode())
        write_atomically(self._folder / TAGS, kept, mode=0o600)
        write_atomically(self._folder / MASTER, _fingerprint(sealing).encode())
        self._changed()
        self.refresh()
        count = 0
        while old := [path for path in self._all() if not self._is_current(path)]:
            for path in old:
                key = self._read(path)[1]
                nonce = secrets.token_bytes(NONCE_BYTES)
                sealed = self._wraps[0].encrypt(nonce, key, path.name.encode())
                write_atomically(path, nonce + sealed, mode=0o600)
                count += 1
        return count

    def _all(self) -> list[Path]:
        return [path for path in self._folder.glob("*/*.*") if not path.name.startswith(".")]

    def _is_current(self, path: Path) -> bool:
        try:
            return self._unwrapped(path.read_bytes(), path.name)[1]
        except FileNotFoundError:  # erased meanwhile
            return True

    def _changed(self) -> None:
        write_atomically(self._folder / GENERATION, secrets.token_hex(8).encode())

    def key_for(self, subject: str) -> tuple[bytes, Any]:
        """Return id and cipher of a subject's key, made and on the disk if there was none."""
        return self.known(subject) or self._remembered(subject, *self._new(self.tag(subject)))

    def known(self, subject: str) -> tuple[bytes, Any] | None:
        """Return id and cipher of a subject's key; None where there is none yet."""
        if (known := self._of_subject.get(subject)) is not None:
            return known
        found = self._files(self.tag(subject))
        return self._remembered(subject, *self._read(found[0])) if found else None

    def _remembered(self, subject: str, id: bytes, key: bytes) -> tuple[bytes, Any]:
        known = self._of_subject[subject] = (id, aes(key))
        self._of_id[id] = known[1]
        return known

    def cipher(self, id: bytes) -> Any | None:
        """Return the cipher of a key's id; None where it was destroyed."""
        if id not in self._of_id:
            found = sorted(self._folder.glob(f"*/*.{id.hex()}"))
            self._of_id[id] = aes(self._read(found[0])[1]) if found else None
        return self._of_id[id]

    def key_ids(self, subject: str) -> set[bytes]:
        """Return the ids of a subject's keys."""
        return {bytes.fromhex(path.suffix[1:]) for path in self._files(self.tag(subject))}

    def destroy(self, subject: str) -> int:
        """Destroy a subject's keys; returns how many there were. What they sealed can never be read again."""
        if subject == SYSTEM:
            raise UsageError("the system's own records belong to nobody, and are not erased")
        found = self._files(self.tag(subject))
        for path in found:
            write_over(path)
            path.unlink()
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        if found:
            self._changed()
        self.refresh()
        return len(found)

    def subjects(self) -> int:
        """Return how many keys there are."""
        return len(self._all())

    def _files(self, tag: str) -> list[Path]:
        return sorted((self._folder / tag[:2]).glob(f"{tag}.*"))

    def _new(self, tag: str) -> tuple[bytes, bytes]:
        self.refresh()
        id, key, nonce = secrets.token_bytes(16), secrets.token_bytes(KEY_BYTES), secrets.token_bytes(NONCE_BYTES)
        path = self._folder / tag[:2] / f"{tag}.{id.hex()}"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, nonce + self._wraps[0].encrypt(nonce, key, path.name.encode()), mode=0o600)
        return id, key

    def _read(self, path: Path) -> tuple[bytes, bytes]:
        return bytes.fromhex(path.suffix[1:]), self._unwrapped(path.read_bytes(), path.name)[0]

    def _unwrapped(self, raw: bytes, name: str) -> tuple[bytes, bool]:
        """Return a wrapped key, and whether the sealing key that is in use wraps it."""
        invalid = require("cryptography.exceptions").InvalidTag
        for wrap in self._wraps:
            try:
                return wrap.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], name.encode()), wrap is self._wraps[0]
            except (invalid, ValueError):
                continue
        raise IntegrityError(
            f"the data key {name} cannot be opened: it is damaged, or the sealing key is another one",
            hint="The sealing key is keys/audit.key of the workspace, or CATENA_AUDIT_KEY.",
        )


def _fingerprint(sealing: bytes) -> str:
    return hmac.digest(sealing, b"catena audit master", hashlib.sha256)[:16].hex()
