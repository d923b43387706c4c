"""Where the chain stands, signed, kept apart from the records: who can write one place cannot rewrite the past.

`tip` has two slots that are written in turn, so that a kill in between leaves the other. It is written at every commit
and not synced: after a power cut it may be a little behind the records, never before them. `log.jsonl` keeps one
checkpoint a minute, and what stands there may be copied anywhere.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from catena.core.digest import canonical_json
from catena.core.errors import IntegrityError
from catena.govern.audit.record import GENESIS
from catena.govern.crypto import Signer

SLOT = 512
EVERY_S = 60.0
CHECKPOINT, PRUNED = "audit checkpoint", "audit pruned"


@dataclass(frozen=True, slots=True)
class Tip:
    """The newest frame's place."""

    seq: int = 0
    """0 where there is none yet."""
    link: str = GENESIS.hex()
    segment: str = ""
    end: int = 0
    """Where in the segment it ends."""
    time: int = 0


@dataclass(frozen=True, slots=True)
class Pruned:
    """A segment that is no more."""

    segment: str
    first: int
    last: int
    before: str
    """Link of the frame before its first."""
    link: str
    """Link of its last frame."""
    sha256: str
    bytes: int
    time: int


class Checkpoints:
    """The folder of checkpoints."""

    def __init__(self, folder: Path, signer: Signer) -> None:
        self.folder, self._signer = folder, signer
        self._logged = 0.0
        self._turn = 0
        self._descriptor = -1

    # -- the tip -----------------------------------------------------------------------------------------------------

    def raw_tip(self) -> bytes:
        """Return both slots as they are."""
        if self._descriptor < 0:
            try:
                self._descriptor = os.open(self.folder / "tip", os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                return b""
        return os.pread(self._descriptor, 4 * SLOT, 0)

    def close(self) -> None:
        """Close the file of the tip."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def tip(self, raw: bytes) -> Tip | None:
        """Return the newest tip that is truly signed; None where there is none."""
        found = []
        for at in range(0, len(raw), SLOT):
            told = self._checked(raw[at : at + SLOT])
            if told is not None:
                found.append((told, at // SLOT))
        if not found:
            return None
        newest, slot = max(found, key=lambda pair: pair[0].seq)
        self._turn = 1 - slot
        return newest

    def write_tip(self, tip: Tip, raw: bytes) -> bytes:
        """Write the newest tip in the older one's place; from both slots as they were, returns them as they are."""
        line = self._signed(tip)
        assert len(line) <= SLOT, "a slot is long enough for a tip"
        if self._descriptor < 0:
            self._descriptor = os.open(self.folder / "tip", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        at, slot = self._turn * SLOT, line.ljust(SLOT)
        os.pwrite(self._descriptor, slot, at)
        self._turn = 1 - self._turn
        now = time.monotonic()
        if now - self._logged >= EVERY_S:
            self._logged = now
            append(self.folder / "log.jsonl", line)
        return raw[:at].ljust(at, b"\0") + slot + raw[at + SLOT :]

    def keep(self, tip: Tip) -> None:
        """Write a checkpoint into the log."""
        self._logged = time.monotonic()
        append(self.folder / "log.jsonl", self._signed(tip))

    def _signed(self, tip: Tip) -> bytes:
        body = asdict(tip)
        return json.dumps({**body, "signature": self._signer.sign(CHECKPOINT, _message(body))}).encode()

    def _checked(self, line: bytes) -> Tip | None:
        try:
            body = json.loads(line.rstrip(b"\0 "))
            signature = body.pop("signature")
            tip = Tip(**body)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        return tip if self._signer.holds(CHECKPOINT, _message(body), str(signature)) else None

    # -- the log and what was pruned ---------------------------------------------------------------------------------

    def log(self) -> Iterator[tuple[int, Tip | None]]:
        """Yield (line number, checkpoint) of the log; None for a line that is not truly signed."""
        for number, line in lines_of(self.folder / "log.jsonl"):
            yield number, self._checked(line)

    def pruned(self) -> list[Pruned]:
        """Return what was pruned, oldest first; raises `IntegrityError` for a receipt that is not truly signed."""
        found = []
        for number, line in lines_of(self.folder / "pruned.jsonl"):
            try:
                body = json.loads(line)
                signature = body.pop("signature")
                receipt = Pruned(**body)
            except (ValueError, TypeError, KeyError, AttributeError):
                receipt, signature = None, ""
            if receipt is None or not self._signer.holds(PRUNED, _message(asdict(receipt)), str(signature)):
                raise IntegrityError(f"line {number} of pruned.jsonl is not signed by this workspace")
            found.append(receipt)
        return found

    def add_pruned(self, receipt: Pruned) -> None:
        """Write down that a segment is about to go."""
        body = asdict(receipt)
        signed = {**body, "signature": self._signer.sign(PRUNED, _message(body))}
        append(self.folder / "pruned.jsonl", json.dumps(signed).encode())


def _message(body: dict[str, Any]) -> bytes:
    return canonical_json(body)


def append(path: Path, line: bytes) -> None:
    """Append a line and sync it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line.rstrip(b"\0 ") + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line) of a file that may be absent."""
    if path.exists():
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if line.strip():
                yield number, line
