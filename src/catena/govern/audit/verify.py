"""Checking the audit: every byte of every record, their order, their number, and the signatures over them.

Needs no secret but for records behind the tip (a power cut leaves such): of these only a seal tells that they are ours.
`scripts/verify_audit.py` does the public half without a line of this code.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from catena.core.errors import IntegrityError
from catena.core.registry import require
from catena.govern.audit.checkpoints import SLOT, Checkpoints, Pruned, Tip
from catena.govern.audit.log import Places
from catena.govern.audit.record import GENESIS, Frame, day_of, frame_at, frames, link_of, opened
from catena.govern.audit.vault import Vault
from catena.govern.config import AuditConfig
from catena.govern.crypto import open_signer, sealing_keys
from catena.hub.locks import file_lock

MOST_FINDINGS = 100
TELL_EVERY = 512
"""Records between two words on how far it is."""
OnProgress = Callable[[int, int], None]
"""Called with the bytes that were checked and all there are."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was written."""

    where: str
    problem: str


@dataclass(slots=True)
class Verification:
    """What a check found."""

    records: int = 0
    segments: int = 0
    bytes: int = 0
    first: int = 0
    last: int = 0
    checkpoints: int = 0
    """Signed places in the chain that were met."""
    pruned: int = 0
    """Records that were pruned, by signed receipts."""
    unanchored: int = 0
    """Records behind the tip that only the sealing key vouches for: a power cut leaves such."""
    unreadable: int = 0
    """Records whose data key was destroyed, of those that were opened (`deep`)."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether everything is as it was written."""
        return not self.findings

    def add(self, where: str, problem: str) -> None:
        """Note a finding; the first hundred are kept."""
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(Finding(where, problem))


class _Check:
    def __init__(self, root: Path, config: AuditConfig, deep: bool, on_progress: OnProgress | None) -> None:
        self.places = Places(root, config).make()
        signer = open_signer(root)
        self.checkpoints = Checkpoints(self.places.checkpoints, signer)
        self.vault = Vault(self.places.subjects, partial(sealing_keys, root))
        self.deep, self.on_progress = deep, on_progress
        # Writers go on while it looks: what counts is what was there at one moment.
        with file_lock(self.places.folder / "write.lock", shared=True):
            self.raw = self.checkpoints.raw_tip()
            self.checkpoints.close()
            self.files = [(path, path.stat().st_size) for path in self.places.segment_files()]
        self.all_bytes = sum(size for _, size in self.files)
        self.found = Verification()
        self.invalid = require("cryptography.exceptions").InvalidTag

    def run(self) -> Verification:
        found = self.found
        tip = self._tip()
        receipts = self._receipts()
        marks = self._marks(tip)
        gone = {receipt.segment for receipt in receipts}
        seq = receipts[-1].last if receipts else 0
        link = bytes.fromhex(receipts[-1].link) if receipts else GENESIS
        found.pruned = seq
        for path, size in self.files:
            if path.stem in gone:  # its receipt is written before it goes
                continue
            found.segments += 1
            seq, link = self._segment(path, size, (seq, link), marks, tip)
        found.last = seq
        newest = max([*marks, tip.seq], default=0)
        if newest > seq:
            found.add("end", f"records {seq + 1} to {newest} are missing: they were signed for")
        return found

    def _tip(self) -> Tip:
        raw = self.raw
        tip = self.checkpoints.tip(raw)
        if tip is None:
            if raw or self.files or any(True for _ in self.checkpoints.log()):
                self.found.add("tip", "the signed tip is missing or forged")
            return Tip()
        for at in range(0, len(raw), SLOT):
            slot = raw[at : at + SLOT]
            if self.checkpoints.tip(slot) is None and slot.strip(b"\0"):
                self.found.add("tip", f"slot {at // SLOT} is not signed by this workspace")
            elif not slot.strip(b"\0") and tip.seq > 1:
                self.found.add("tip", f"slot {at // SLOT} is empty")
        return tip

    def _receipts(self) -> list[Pruned]:
        try:
            receipts = self.checkpoints.pruned()
        except IntegrityError as error:
            self.found.add("pruned.jsonl", error.message)
            return []
        last, link = 0, GENESIS.hex()
        for receipt in receipts:
            if receipt.first != last + 1 or receipt.before != link:
                self.found.add("pruned.jsonl", f"the receipt of {receipt.segment} does not follow the one before")
            last, link = receipt.last, receipt.link
        return receipts

    def _marks(self, tip: Tip) -> dict[int, str]:
        marks = {tip.seq: tip.link} if tip.seq else {}
        for number, mark in self.checkpoints.log():
            if mark is None:
                self.found.add(f"log.jsonl:{number}", "the checkpoint is not signed by this workspace")
            elif marks.setdefault(mark.seq, mark.link) != mark.link:
                self.found.add(f"log.jsonl:{number}", f"record {mark.seq} was signed for twice, differently")
        return marks

    def _segment(
        self, path: Path, size: int, before: tuple[int, bytes], marks: dict[int, str], tip: Tip
    ) -> tuple[int, bytes]:
        found, (seq, link) = self.found, before
        found.bytes += size
        if size == 0:
            found.add(path.name, "the segment is empty")
            return seq, link
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for end, frame in _resumed(data, size):
                if isinstance(frame, int):
                    found.add(f"{path.name}:{end}", f"{frame} bytes are no record")
                    continue
                where = f"{path.name} record {frame.seq}"
                if frame.seq != seq + 1:
                    found.add(where, f"it stands where record {seq + 1} should")
                if frame.link != link_of(link, frame.head, frame.sealed):
                    found.add(where, "it is not what was chained here")
                if day_of(frame.time) != path.stem:
                    found.add(where, "it is of another day")
                found.records += 1
                found.first = found.first or frame.seq
                self._anchored(where, frame, marks, tip)
                seq, link = frame.seq, frame.link
                if self.on_progress is not None and found.records % TELL_EVERY == 0:
                    self.on_progress(found.bytes - size + end, self.all_bytes)
        return seq, link

    def _anchored(self, where: str, frame: Frame, marks: dict[int, str], tip: Tip) -> None:
        signed = marks.get(frame.seq)
        if signed is not None:
            self.found.checkpoints += 1
            if signed != frame.link.hex():
                self.found.add(where, "a signed checkpoint says otherwise")
        beyond = frame.seq > tip.seq
        if not beyond and not self.deep:
            return
        cipher = self.vault.cipher(frame.key)
        if cipher is None:
            self.found.unreadable += 1
            if beyond:
                self.found.add(where, "it stands behind the signed tip, and nobody can open it")
            return
        try:
            opened(frame, cipher)
        except (self.invalid, ValueError):
            self.found.add(where, "its seal is broken")
            return
        self.found.unanchored += beyond


def _resumed(data: Any, size: int) -> Iterator[tuple[int, Frame | int]]:
    """Yield (end, frame), and (offset, how many bytes) for what is no frame; goes on where one begins again."""
    at = 0
    while at < size:
        for end, frame in frames(data, at, size):
            if frame is None:
                at = end
                break
            yield end, frame
            at = end
        else:
            return
        following = data.find(b"CTA1", at + 1)
        while following >= 0 and frame_at(data, following, size) is None:
            following = data.find(b"CTA1", following + 1)
        stop = size if following < 0 else following
        yield at, stop - at
        at = stop


def verify(
    root: Path, config: AuditConfig, *, deep: bool = False, on_progress: OnProgress | None = None
) -> Verification:
    """Check a workspace's audit as it is at this moment; `deep` opens every record too.

    What `on_progress` raises ends it.
    """
    places = Places(root, config)
    if not places.folder.exists() and not places.checkpoints.exists():
        return Verification()
    return _Check(root, config, deep, on_progress).run()
