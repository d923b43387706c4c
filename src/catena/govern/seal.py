"""Words that lie outside the audit (kept answers, jobs, their files), sealed under their subject's own data key.

    b"\xc3CT1" | mark of the vault, 8 | id of the data key, 16 | nonce, 12 | AES-256-GCM        a value
    b"\xc3CF1" | mark of the vault, 8 | id of the data key, 16 | prefix, 7 | pieces             a file

The data keys are those of the audit, so that `catena audit erase SUBJECT` makes all of it unreadable at once, in every
process and in every copy. Pieces of a file are sealed each under a counter, and the last one is marked as such: cut
off, exchanged or doubled ones do not open (STREAM, Hoang et al. 2015).
"""

from __future__ import annotations

import hashlib
import hmac
import io
import os
import secrets
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from catena.core.errors import IntegrityError
from catena.core.registry import require
from catena.govern.audit.log import Places
from catena.govern.audit.vault import GENERATION, SYSTEM, Vault
from catena.govern.config import AuditConfig
from catena.govern.crypto import NONCE_BYTES, sealing_keys
from catena.hub.locks import file_lock

VALUE, FILE = b"\xc3CT1", b"\xc3CF1"
MARK_BYTES, ID_BYTES, PREFIX_BYTES, TAG_BYTES = 8, 16, 7, 16
HEAD = len(VALUE) + MARK_BYTES + ID_BYTES
PIECE = 1 << 16
OTHER = "it was sealed in another workspace, or under another sealing key"
HINT = "Gateways that share what they keep must share audit/subjects and the sealing key (docs/governance.md)."


class Erased(IntegrityError):
    """The key of its subject was destroyed: nobody can read it any more."""

    def __init__(self) -> None:
        super().__init__("it was erased with all that is kept of its subject")


def is_sealed(data: bytes) -> bool:
    """Tell whether bytes (their beginning is enough) are sealed, whoever may open them."""
    return data[: len(VALUE)] in (VALUE, FILE)


class Sealer:
    """Seals and opens, from any thread. Without `subjects` everything belongs to the system: nobody says who asks."""

    def __init__(self, root: Path, config: AuditConfig, *, subjects: bool = True) -> None:
        self._places, self._subjects = Places(root, config).make(), subjects
        self._vault = Vault(self._places.subjects, partial(sealing_keys, root))
        self._turn = threading.Lock()
        self._generation = str(self._places.subjects / GENERATION)
        self._ciphers: dict[bytes, Any] = {}
        self._keys: dict[str, tuple[bytes, Any]] = {}
        self._seen = self.generation()
        self._mark = bytes.fromhex(self._vault.tag("mark of this vault"))[:MARK_BYTES]
        self._invalid = require("cryptography.exceptions").InvalidTag

    def generation(self) -> tuple[int, ...]:
        """Return what differs after each erasure."""
        try:
            told = os.stat(self._generation)  # noqa: PTH116  it is asked at every value
        except FileNotFoundError:
            return ()
        return told.st_ino, told.st_mtime_ns, told.st_ctime_ns

    def secret(self, purpose: str) -> bytes:
        """Return 32 bytes that only this workspace knows, the same each time, for one purpose."""
        return hmac.digest(bytes.fromhex(self._vault.tag(purpose)), purpose.encode(), hashlib.sha256)

    def seal(self, subject: str, data: bytes, about: bytes = b"", *, like: bytes = b"") -> bytes:
        """Seal a value; it opens only where `about` is the same.

        With `like`, something sealed before, under that one's key: raises `Erased` where it was destroyed since.
        """
        id, cipher = self._key(subject, like)
        head, nonce = VALUE + self._mark + id, secrets.token_bytes(NONCE_BYTES)
        sealed: bytes = cipher.encrypt(nonce, data, head + about)
        return head + nonce + sealed

    def open(self, sealed: bytes, about: bytes = b"") -> bytes:
        """Return what a value was; raises `Erased`, or `IntegrityError` for what is changed or not ours."""
        cipher = self._cipher(sealed)
        try:
            opened: bytes = cipher.decrypt(
                sealed[HEAD : HEAD + NONCE_BYTES], sealed[HEAD + NONCE_BYTES :], sealed[:HEAD] + about
            )
        except (self._invalid, ValueError) as error:
            raise IntegrityError("a sealed value is damaged, or stands in another's place") from error
        return opened

    def erased(self, sealed: bytes) -> bool:
        """Tell whether the key of something sealed (its beginning is enough) was destroyed."""
        try:
            self._cipher(sealed)
        except Erased:
            return True
        return False

    def writer(self, subject: str, stream: BinaryIO, *, like: bytes = b"") -> SealedWriter:
        """Return what seals a file as it is written."""
        id, cipher = self._key(subject, like)
        return SealedWriter(stream, cipher, FILE + self._mark + id + secrets.token_bytes(PREFIX_BYTES))

    def reader(self, stream: BinaryIO) -> io.BufferedReader:
        """Return what opens a sealed file as it is read; raises as `open` does, also while it is read."""
        head = stream.read(HEAD + PREFIX_BYTES)
        return io.BufferedReader(SealedReader(stream, self._cipher(head), head), PIECE)

    def _key(self, subject: str, like: bytes) -> tuple[bytes, Any]:
        if like:
            return like[HEAD - ID_BYTES : HEAD], self._cipher(like)
        subject = subject if subject and self._subjects else SYSTEM
        with self._turn:
            self._refresh()
            try:
                known = self._remembered(subject, self._vault.known)
            except (FileNotFoundError, IntegrityError):  # it is being erased, or it is damaged: told below
                known = None
        if known is None:  # who waits here, for a rewrap perhaps, keeps nobody from keys that there are
            with file_lock(self._places.folder / "write.lock"), self._turn:  # no erasure at this moment
                self._refresh()
                known = self._remembered(subject, self._vault.key_for)
                assert known is not None
        return known

    def _remembered(self, subject: str, ask: Callable[[str], tuple[bytes, Any] | None]) -> tuple[bytes, Any] | None:
        """Return id and cipher of a subject's key, as the vault says where they are not known here."""
        known = self._keys.get(subject) or ask(subject)
        if known is not None:
            self._keys[subject], self._ciphers[known[0]] = known, known[1]
        return known

    def _cipher(self, head: bytes) -> Any:
        if not is_sealed(head) or len(head) < HEAD:
            raise IntegrityError("this is not sealed, or not whole")
        if head[len(VALUE) : len(VALUE) + MARK_BYTES] != self._mark:
            raise IntegrityError(OTHER, hint=HINT)
        id = head[HEAD - ID_BYTES : HEAD]
        with self._turn:
            self._refresh()
            if (cipher := self._ciphers.get(id)) is None:
                if (cipher := self._vault.cipher(id)) is None:
                    raise Erased
                self._ciphers[id] = cipher
            return cipher

    def _refresh(self) -> None:
        if (now := self.generation()) != self._seen:
            self._vault.refresh()
            self._ciphers.clear()
            self._keys.clear()
            self._seen = now


class SealedWriter:
    """Seals pieces of a file. `close` writes the last one, and leaves the stream open."""

    def __init__(self, stream: BinaryIO, cipher: Any, head: bytes) -> None:
        self._stream, self._cipher, self._head = stream, cipher, head
        self._kept, self._number = bytearray(), 0
        self.size = 0
        """How many bytes were written, before they were sealed."""
        stream.write(head)

    def write(self, data: bytes) -> None:
        """Take bytes in."""
        self._kept += data
        self.size += len(data)
        while len(self._kept) > PIECE:
            self._put(bytes(self._kept[:PIECE]), last=False)
            del self._kept[:PIECE]

    def close(self) -> None:
        """Write what is left, as the last piece."""
        self._put(bytes(self._kept), last=True)

    def _put(self, piece: bytes, *, last: bool) -> None:
        self._stream.write(self._cipher.encrypt(_nonce(self._head, self._number, last), piece, self._head))
        self._number += 1


class SealedReader(io.RawIOBase):
    """Opens pieces of a file."""

    def __init__(self, stream: BinaryIO, cipher: Any, head: bytes) -> None:
        self._stream, self._cipher, self._head = stream, cipher, head
        self._ahead = stream.read(PIECE + TAG_BYTES)
        self._opened = memoryview(b"")
        self._number, self._ended = 0, False
        self._invalid = require("cryptography.exceptions").InvalidTag

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what fits; raises `IntegrityError` where the file is not what was written."""
        while not self._opened and not self._ended:
            self._next()
        count = min(len(buffer), len(self._opened))
        buffer[:count] = self._opened[:count]
        self._opened = self._opened[count:]
        return count

    def close(self) -> None:
        """Close the stream below too."""
        self._stream.close()
        super().close()

    def _next(self) -> None:
        piece, self._ahead = self._ahead, self._stream.read(PIECE + TAG_BYTES)
        self._ended = not self._ahead
        nonce = _nonce(self._head, self._number, self._ended)
        try:
            self._opened = memoryview(self._cipher.decrypt(nonce, piece, self._head))
        except (self._invalid, ValueError) as error:
            raise IntegrityError("a sealed file is damaged or cut off") from error
        self._number += 1


def _nonce(head: bytes, number: int, last: bool) -> bytes:
    return head[HEAD:] + number.to_bytes(4, "big") + bytes([last])
