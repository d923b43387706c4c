"""Writing the audit: entries of many requests, one commit, one sync of the disk. Many processes share one chain.

    write(entry) -> waiting -> [thread] all that wait: lock, seal, chain, append, sync, sign the tip -> done(problem)

A commit is few calls of the system: after each one the thread waits for the interpreter's lock, for milliseconds where
requests keep it busy. Who finds the log behind its tip, or changed before it, stops: `catena audit verify` says what
was done. What a kill left half-written is cut off, and that is written down.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from catena.core.errors import CatenaError, DiskFull, IntegrityError, environment_problem
from catena.core.registry import require
from catena.govern.audit.checkpoints import Checkpoints, Tip
from catena.govern.audit.record import day_of, frames, link_of, opened, pack, sealed_frame
from catena.govern.audit.vault import SYSTEM, Vault
from catena.govern.config import AuditConfig
from catena.govern.crypto import open_signer, sealing_keys

logger = logging.getLogger(__name__)
RETRY_S = 1.0
HOLD_S = 0.03
"""So long a writer keeps others out between commits that come one after the other..."""
ALONE_S = 10.0
"""...where nobody else has written for so long."""
MOST_WAITING = 10_000
MOST_AT_ONCE = 512
VERIFY = "`catena audit verify` says where."
Done = Callable[[CatenaError | None], None]
Entry = Mapping[str, Any]
Waiting = tuple[str, Callable[[], Entry] | bytes, Done]


class Places:
    """Where a workspace's audit is."""

    def __init__(self, root: Path, config: AuditConfig) -> None:
        self.folder = config.folder or root / "audit"
        self.segments = self.folder / "segments"
        self.subjects = self.folder / "subjects"
        self.checkpoints = config.checkpoints or root / "checkpoints"

    def make(self) -> Places:
        """Make the folders."""
        for folder in (self.folder, self.segments, self.subjects, self.checkpoints):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self

    def segment_files(self) -> list[Path]:
        """Return the segments, oldest first."""
        return sorted(self.segments.glob("????-??-??.log"))


class Log:
    """The writing end. `write` is for any thread; one thread of its own commits."""

    def __init__(self, root: Path, config: AuditConfig) -> None:
        self.places, self._config = Places(root, config).make(), config
        self.vault = Vault(self.places.subjects, partial(sealing_keys, root))
        self.checkpoints = Checkpoints(self.places.checkpoints, open_signer(root))
        self._raw: bytes | None = None
        self._tip = Tip()
        self._descriptor: tuple[str, int] = ("", -1)
        self._waiting: list[Waiting] = []
        self._wake = threading.Condition()
        self._closing = False
        self._problem: CatenaError | None = None
        self._lost = self._lost_ever = 0
        self._lost_since = 0.0
        self._tried = 0.0
        self._held_since = self._others_at = 0.0
        self._lock = os.open(self.places.folder / "write.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._take()
            self._sync()
            self._give_back()
            self._others_at = 0.0
        except BaseException:
            os.close(self._lock)
            raise
        self._thread = threading.Thread(target=self._run, name="catena-audit", daemon=True)
        self._thread.start()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- from any thread ---------------------------------------------------------------------------------------------

    def write(self, subject: str, entry: Callable[[], Entry] | bytes, done: Done, *, soon: bool = False) -> None:
        """Hand over an entry; `done` is called from the log's thread when it is on the disk, or with the problem.

        `entry` is called in that thread too, so that a large one holds up nobody. A small one had better come made
        (`made`): the log's thread then keeps the interpreter's lock for all of a batch, instead of waiting for it in
        the middle of each entry.
        With `soon` it waits for the next entry without, or for `flush`: so the record of a request that is answered at
        once shares a commit with that of its answer. Raises `DiskFull` while nothing can be written and the policy is
        to stop.
        """
        with self._wake:
            if self._problem is not None and self._config.when_full == "stop":
                self._wake.notify()
                raise self._problem
            if len(self._waiting) >= MOST_WAITING:
                raise DiskFull("the audit cannot keep up with what is asked", hint="Try again in a moment.")
            self._waiting.append((subject, entry, done))
            if not soon:
                self._wake.notify()

    def flush(self) -> None:
        """Let what waits be written now."""
        with self._wake:
            self._wake.notify()

    def act(self, entry: Entry, subject: str = SYSTEM) -> None:
        """Write an administrative act, and wait until it is on the disk; raises what went wrong."""
        ended = threading.Event()
        problems: list[CatenaError | None] = []

        def done(problem: CatenaError | None) -> None:
            problems.append(problem)
            ended.set()

        self.write(subject, lambda: {"kind": "act", **entry}, done)
        ended.wait()
        if problems[0] is not None:
            raise problems[0]

    @property
    def problem(self) -> str:
        """Why nothing can be written at the moment; empty while it can."""
        return self._problem.message if self._problem is not None else ""

    def status(self) -> dict[str, float]:
        """Tell how it goes, for metrics."""
        return {
            "records_total": self._tip.seq,
            "lost_total": self._lost_ever,
            "waiting": len(self._waiting),
            "stopped": self._problem is not None,
        }

    def close(self) -> None:
        """Write what waits, and a checkpoint."""
        with self._wake:
            if self._closing:
                return
            self._closing = True
            self._wake.notify()
        self._thread.join()
        if self._tip.seq and self._problem is None:
            self.checkpoints.keep(self._tip)
        if self._descriptor[1] >= 0:
            os.close(self._descriptor[1])
        os.close(self._lock)
        self.checkpoints.close()

    # -- the log's own thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._closing:
                    patience = RETRY_S if self._problem is not None else HOLD_S if self._held_since else None
                    self._wake.wait(patience)
                    if self._problem is not None:
                        break
                    if not self._waiting:
                        self._give_back()
                batch, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
                if not batch and self._closing:
                    return
            problem = self._try(batch)
            for _, _, done in batch:
                done(problem)

    def _try(self, batch: Sequence[Waiting]) -> CatenaError | None:
        """Commit a batch; returns the problem that the entries' owners must hear of."""
        if self._problem is not None and time.monotonic() - self._tried < RETRY_S:
            return self._settled(len(batch), self._problem)
        self._tried = time.monotonic()
        entries = [(subject, make if isinstance(make, bytes) else made(make)) for subject, make, _ in batch]
        if self._lost:
            gap: Entry = {"kind": "gap", "lost": self._lost, "since": self._lost_since}
            entries.insert(0, (SYSTEM, pack(orjson.dumps(gap))))
        elif self._problem is not None:
            gap = {"kind": "gap", "lost": 0, "reason": self._problem.message}
            entries.insert(0, (SYSTEM, pack(orjson.dumps(gap))))
        if not entries:
            return None
        try:
            self._commit(entries)
        except OSError as error:
            return self._failed(len(batch), environment_problem(error, self.places.folder) or _unknown(error))
        except CatenaError as error:
            return self._failed(len(batch), error)
        except Exception as error:
            logger.exception("the audit cannot be written")
            return self._failed(len(batch), _unknown(error))
        if self._problem is not None:
            logger.error("the audit is written again; %d records were lost", self._lost)
        self._problem, self._lost = None, 0
        return None

    def _failed(self, count: int, problem: CatenaError) -> CatenaError | None:
        if self._problem is None:
            logger.error("the audit cannot be written (policy: %s): %s", self._config.when_full, problem)
        self._problem = problem
        return self._settled(count, problem)

    def _settled(self, count: int, problem: CatenaError) -> CatenaError | None:
        """Return what the owners of entries that could not be written hear: the problem, or nothing, but counted."""
        if self._config.when_full == "stop":
            return problem
        if not self._lost:
            self._lost_since = time.time()
        self._lost += count
        self._lost_ever += count
        if count:
            logger.error("%d records of the audit were lost: %s", count, problem)
        return None

    def _commit(self, entries: Sequence[tuple[str, bytes]]) -> None:
        try:
            if self._take():
                self._sync()
                self.vault.refresh()
            self._append(entries)
        except BaseException:
            self._give_back()
            raise
        now = time.monotonic()
        if now - self._held_since > HOLD_S or now - self._others_at < ALONE_S:
            self._give_back()

    def _append(self, entries: Sequence[tuple[str, bytes]]) -> None:
        tip = self._tip
        now = max(time.time_ns() // 1000, tip.time)  # a clock that is set back does not reorder the past
        day = day_of(now)
        start = tip.end if tip.segment == day else 0
        descriptor = self._open(day)
        pieces, link, seq = [], bytes.fromhex(tip.link), tip.seq
        for subject, entry in entries:
            seq += 1
            piece, link = sealed_frame(entry, seq, now, self.vault.key_for(subject), link)
            pieces.append(piece)
        data = b"".join(pieces)
        try:
            _write_all(descriptor, data, start)
        except OSError:
            os.ftruncate(descriptor, start)
            raise
        if tip.segment not in ("", day):
            self.checkpoints.keep(tip)
        self._tip = Tip(seq, link.hex(), day, start + len(data), now)
        self._raw = self.checkpoints.write_tip(self._tip, self._raw or b"")

    def _take(self) -> bool:
        """Keep other writers out; tells whether they were not kept out already."""
        if self._held_since:
            return False
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._held_since = time.monotonic()
        return True

    def _give_back(self) -> None:
        """Let other writers in."""
        if self._held_since:
            self._held_since = 0.0
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _open(self, day: str) -> int:
        name, descriptor = self._descriptor
        if name != day:
            if descriptor >= 0:
                os.close(descriptor)
            path = self.places.segments / f"{day}.log"
            fresh = not path.exists()
            # What is written is on the disk when the write returns: one call, not two.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_DSYNC, 0o600)
            self._descriptor = (day, descriptor)
            if fresh:
                folder = os.open(self.places.segments, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
        return descriptor

    def _sync(self) -> None:
        """Learn where the chain stands: from memory if nobody else wrote since, else from the tip and what follows."""
        raw = self.checkpoints.raw_tip()
        if self._raw is not None and raw == self._raw:
            return
        self._others_at = time.monotonic()
        tip = self.checkpoints.tip(raw)
        files = self.places.segment_files()
        if tip is None:
            pruned = self.checkpoints.pruned()
            if raw or files or pruned:
                raise IntegrityError(f"the audit's tip in {self.places.checkpoints} is missing or forged", hint=VERIFY)
            self._raw, self._tip = raw, Tip()
            return
        self._tip = self._recovered(tip)
        self._raw = raw if self._tip == tip else self.checkpoints.write_tip(self._tip, raw)

    def _recovered(self, tip: Tip) -> Tip:
        """Return the tip with what a kill left behind it; what is torn is cut off."""
        newest = tip
        for path in self.places.segment_files():
            if path.stem < tip.segment:
                continue
            start = tip.end if path.stem == tip.segment else 0
            size = path.stat().st_size
            if size < start:
                raise IntegrityError(f"{path.name} is shorter than what was written to it", hint=VERIFY)
            if size == start:
                continue
            newest, torn = self._beyond(path, start, newest)
            if torn:
                logger.warning("%d bytes at the end of %s were half-written and are cut off", torn, path.name)
                os.truncate(path, size - torn)
        if tip.segment and not (self.places.segments / f"{tip.segment}.log").exists():
            raise IntegrityError(f"the segment {tip.segment} is missing", hint=VERIFY)
        return newest

    def _beyond(self, path: Path, start: int, tip: Tip) -> tuple[Tip, int]:
        """Follow the chain behind a tip: frames that only we can have sealed go on it."""
        invalid = require("cryptography.exceptions").InvalidTag
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for end, frame in frames(data, start):
                if frame is None:
                    return tip, len(data) - end
                cipher = self.vault.cipher(frame.key)
                before = bytes.fromhex(tip.link)
                good = frame.seq == tip.seq + 1 and frame.link == link_of(before, frame.head, frame.sealed)
                try:
                    if not good or cipher is None:
                        raise invalid
                    opened(frame, cipher)
                except invalid as error:
                    raise IntegrityError(f"{path.name} was added to behind record {tip.seq}", hint=VERIFY) from error
                tip = Tip(frame.seq, frame.link.hex(), path.stem, end, frame.time)
        return tip, 0


def made(make: Callable[[], Entry]) -> bytes:
    """Return an entry, packed; one that cannot be made leaves a record that says so, and takes no others with it."""
    try:
        return pack(orjson.dumps(make()))
    except Exception as error:
        logger.exception("an entry of the audit cannot be made")
        return pack(orjson.dumps({"kind": "damaged", "problem": f"{type(error).__name__}: {error}"}))


def _write_all(descriptor: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written


def _unknown(error: Exception) -> CatenaError:
    return DiskFull(f"the audit cannot be written: {error}", hint="Look at its disk.")
