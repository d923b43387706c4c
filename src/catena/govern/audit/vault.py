"""Data keys: one for each subject, wrapped by the sealing key. To destroy one is to erase all that its subject said.

A file's name holds a keyed hash of the subject (`tag`), so that a listing tells no names, and the key's id, which
stands in the records. A subject that comes back after an erasure gets another key under another id.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Any

from catena.core.errors import IntegrityError, UsageError
from catena.core.registry import require
from catena.govern.crypto import KEY_BYTES, NONCE_BYTES, aes
from catena.hub.files import write_atomically

SYSTEM = "-"
"""The subject of what belongs to nobody: starts, administration, gaps. It cannot be erased."""
GENERATION = "generation"


class Vault:
    """The data keys below a folder. Not for several threads at once."""

    def __init__(self, folder: Path, sealing: bytes) -> None:
        self._folder = folder
        self._wrap = aes(sealing)
        self._tags = hmac.digest(sealing, b"catena audit subject tags", hashlib.sha256)
        self._of_subject: dict[str, tuple[bytes, Any]] = {}
        self._of_id: dict[bytes, Any] = {}
        self._generation = b""

    def tag(self, subject: str) -> str:
        """Return the keyed hash that stands for a subject."""
        return hmac.digest(self._tags, subject.encode("utf-8", "surrogatepass"), hashlib.sha256)[:16].hex()

    def refresh(self) -> None:
        """Forget what is remembered when another process destroyed a key since."""
        try:
            told = (self._folder / GENERATION).read_bytes()
        except FileNotFoundError:
            told = b""
        if told != self._generation:
            self._of_subject.clear()
            self._of_id.clear()
            self._generation = told

    def key_for(self, subject: str) -> tuple[bytes, Any]:
        """Return id and cipher of a subject's key, made and on the disk if there was none."""
        known = self._of_subject.get(subject)
        if known is None:
            tag = self.tag(subject)
            found = self._files(tag)
            id, key = self._read(found[0]) if found else self._new(tag)
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
            with path.open("r+b") as stream:
                stream.write(secrets.token_bytes(path.stat().st_size))
                stream.flush()
                os.fsync(stream.fileno())
            path.unlink()
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        if found:
            write_atomically(self._folder / GENERATION, secrets.token_hex(8).encode())
        self.refresh()
        return len(found)

    def subjects(self) -> int:
        """Return how many keys there are."""
        return sum(1 for _ in self._folder.glob("*/*.*"))

    def _files(self, tag: str) -> list[Path]:
        return sorted((self._folder / tag[:2]).glob(f"{tag}.*"))

    def _new(self, tag: str) -> tuple[bytes, bytes]:
        id, key, nonce = secrets.token_bytes(16), secrets.token_bytes(KEY_BYTES), secrets.token_bytes(NONCE_BYTES)
        path = self._folder / tag[:2] / f"{tag}.{id.hex()}"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, nonce + self._wrap.encrypt(nonce, key, path.name.encode()), mode=0o600)
        return id, key

    def _read(self, path: Path) -> tuple[bytes, bytes]:
        raw = path.read_bytes()
        try:
            key = self._wrap.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], path.name.encode())
        except require("cryptography.exceptions").InvalidTag as error:
            raise IntegrityError(
                f"the data key {path.name} cannot be opened: it is damaged, or the sealing key is another one",
                hint="The sealing key is keys/audit.key of the workspace, or CATENA_AUDIT_KEY.",
            ) from error
        return bytes.fromhex(path.suffix[1:]), key
