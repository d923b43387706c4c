"""How words of jobs lie in the database and in files: sealed where the gateway has a sealer, else as they are.

What was kept before there was a sealer is read as it is, and sealed when a gateway starts (`Runner`).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from catena.core.errors import IntegrityError
from catena.govern.seal import HEAD, Sealer, is_sealed

START = "sealed:"
HEAD_TEXT = len(START) + HEAD // 3 * 4 + 4
"""So many characters of a sealed text tell its key."""
COPY = 1 << 18


class Seals:
    """Seals and opens the texts of rows, and files."""

    def __init__(self, sealer: Sealer | None = None) -> None:
        self._sealer = sealer

    @property
    def on(self) -> bool:
        """Whether what is written now is sealed."""
        return self._sealer is not None

    def generation(self) -> Any:
        """Return what differs after each erasure."""
        return self._sealer.generation() if self._sealer is not None else None

    def put(self, text: str, tenant: str, about: str, *, like: str = "") -> str:
        """Return a text as it is kept: under its tenant's key, or that of a row (`like`); raises `Erased`."""
        if self._sealer is None:
            return text
        before = _bytes(like[:HEAD_TEXT]) if like.startswith(START) else b""
        sealed = self._sealer.seal(tenant, text.encode("utf-8", "surrogatepass"), about.encode(), like=before)
        return START + base64.b64encode(sealed).decode()

    def get(self, kept: str, about: str) -> str:
        """Return a text that was kept; raises `Erased`."""
        if not kept.startswith(START):
            return kept
        return self._with().open(_bytes(kept), about.encode()).decode("utf-8", "surrogatepass")

    def erased(self, kept: str | bytes) -> bool:
        """Tell whether the key of a kept text or file (its beginning is enough) was destroyed."""
        if self._sealer is None:
            return False
        if isinstance(kept, str):
            return kept.startswith(START) and self._sealer.erased(_bytes(kept[:HEAD_TEXT]))
        return is_sealed(kept) and self._sealer.erased(kept)

    def write(self, path: Path, tenant: str, pieces: Iterable[bytes], *, like: str = "") -> int:
        """Write a file; returns how long it is to who may read it."""
        size = 0
        before = _bytes(like[:HEAD_TEXT]) if like.startswith(START) else b""
        with path.open("wb") as stream:
            out = None if self._sealer is None else self._sealer.writer(tenant, stream, like=before)
            for piece in pieces:
                (stream if out is None else out).write(piece)
                size += len(piece)
            if out is not None:
                out.close()
        return size

    def opened(self, stream: BinaryIO) -> tuple[BinaryIO, bool]:
        """Return a file's stream as it is read, and whether it was sealed; raises `Erased`."""
        sealed = is_sealed(stream.read(4))
        stream.seek(0)
        if not sealed:
            return stream, False
        try:
            return self._with().reader(stream), True
        except BaseException:
            stream.close()
            raise

    def _with(self) -> Sealer:
        if self._sealer is None:
            hint = "Switch govern.auth or govern.audit on again: what was kept under them opens only with them."
            raise IntegrityError("what is kept of jobs is sealed, and this gateway does not govern", hint=hint)
        return self._sealer


def _bytes(kept: str) -> bytes:
    text = kept.removeprefix(START)
    return base64.b64decode(text[: len(text) // 4 * 4])
