"""The reading of all files that changed: some threads, each with a child process, and one journal."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import BinaryIO

from catena.core.digest import sha256_of_file
from catena.core.errors import DiskFull, environment_problem
from catena.core.events import Progress
from catena.data.formats.before import Before, Facts
from catena.data.formats.journal import Done, Journal
from catena.data.formats.listing import Entry, fetch
from catena.data.formats.pieces import Reading, Reject
from catena.data.formats.pool import Child
from catena.data.formats.wire import pack


@dataclass
class Work:
    """What is to be read, and what came of it."""

    folder: Path
    """Where children and fetched files have their place."""
    reading: Reading
    before: Before
    journal: Journal
    unchanged: set[str] = field(default_factory=set)
    """Files whose rows are taken from the version before."""
    facts: dict[str, Facts] = field(default_factory=dict)
    """Name to size, stamp and SHA-256 of every file that could be opened."""
    read: int = 0
    """Files that were read, in this run."""
    bytes: int = 0
    _lock: Lock = field(default_factory=Lock)
    _started: float = 0.0

    def waiting(self, entries: list[Entry]) -> list[Entry]:
        """Return the files that have to be opened; those of the same size and stamp as before are `unchanged`.

        So are those of which people changed rows.
        """
        found = []
        for entry in entries:
            known = self.before.files.get(entry.name)
            stamped = known and entry.stamp and known[:2] == (entry.size, entry.stamp)
            if known and (stamped or entry.name in self.before.by_hand.keys):
                self.unchanged.add(entry.name)
                self.facts[entry.name] = known
            elif entry.problem is None:
                found.append(entry)
        return found

    def run(self, waiting: list[Entry], workers: int, progress: Progress) -> None:
        """Read these files, by so many children at once."""
        self._started = time.monotonic()
        queue: SimpleQueue[Entry | None] = SimpleQueue()
        for entry in [*waiting, *[None] * workers]:
            queue.put(entry)
        children = [Child(self.reading, self.folder / f"reader-{number}") for number in range(workers)]
        with ThreadPoolExecutor(workers, thread_name_prefix="ingest") as threads:
            futures = [threads.submit(self._serve, child, queue.get, progress) for child in children]
            try:
                _finish(futures)
            except BaseException:
                for child in children:
                    child.stop()
                raise
        progress.finish()

    def _serve(self, child: Child, take: Callable[[], Entry | None], progress: Progress) -> None:
        with self.journal.new_spool() as spool, child:
            while (entry := take()) is not None:
                self._one(entry, child, spool)
                with self._lock:
                    rate = self.bytes / 1e6 / max(time.monotonic() - self._started, 1e-9)
                    progress.advance(mb_per_s=round(rate, 2))

    def _one(self, entry: Entry, child: Child, spool: BinaryIO) -> None:
        fetched, offset, digest, size = child.folder / "fetched", spool.tell(), "", entry.size or 0
        most = self.reading.limits.file_bytes
        try:
            path = entry.path or fetched
            if size > most or (entry.path is None and not fetch(entry.address, fetched, most)):
                spool.write(pack(Reject("too_large", f"over {most} bytes; limits.file_bytes is {most}"), "", ""))
            else:
                digest, size = sha256_of_file(path), path.stat().st_size
                if self._is_known(entry, size, digest):
                    return
                child.read(path, entry.name, spool)
        except OSError as error:
            if isinstance(environment_problem(error), DiskFull):
                raise
            said = f"{type(error).__name__}: {error.strerror or error}"
            spool.write(pack(Reject("unreadable", said), "", ""))
        finally:
            fetched.unlink(missing_ok=True)
        spool.flush()
        name = Path(spool.name).name
        self.journal.add(Done(entry.name, digest, size, entry.stamp, name, offset, spool.tell() - offset))
        with self._lock:
            self.read += 1
            self.bytes += size

    def _is_known(self, entry: Entry, size: int, digest: str) -> bool:
        """Whether the file is what it was in the version before, or when a run that was killed read it."""
        self.facts[entry.name] = (size, entry.stamp, digest)
        known, done = self.before.files.get(entry.name), self.journal.get(entry.name)
        if known and known[2] == digest:
            self.unchanged.add(entry.name)
            return True
        return done is not None and done.sha256 == digest


def _finish(futures: list[Future[None]]) -> None:
    """Wait for all, or for the first that fails, and raise what it raised."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()
