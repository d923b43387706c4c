"""What was read, on disk as soon as a file is done: a run that was killed goes on with the next file.

basis.json       how files are read; anything else begins anew
pieces-<n>.bin   pieces, one file for each child (see `wire`)
done.jsonl       one line for each file: where its pieces stand
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from catena.data.formats.wire import Found, unpack
from catena.hub.files import write_atomically


@dataclass(frozen=True, slots=True)
class Done:
    """One file that was read."""

    name: str
    sha256: str
    size: int
    stamp: str
    spool: str
    offset: int
    length: int


class Journal:
    """The folder; safe to write to from several threads."""

    def __init__(self, folder: Path, basis: str) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        described = folder / "basis.json"
        if not described.exists() or described.read_text() != basis:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_atomically(described, basis.encode())
        self._done = {done.name: done for done in self._read()}
        self._spools = len(list(folder.glob("pieces-*.bin")))

    def _read(self) -> Iterator[Done]:
        path = self.folder / "done.jsonl"
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                done = Done(**json.loads(line))
            except (ValueError, TypeError):
                continue  # the line that a kill cut short: its file is read again
            spool = self.folder / done.spool
            if spool.exists() and spool.stat().st_size >= done.offset + done.length:
                yield done

    def __len__(self) -> int:
        return len(self._done)

    def get(self, name: str) -> Done | None:
        """Return what is known of a file."""
        return self._done.get(name)

    def new_spool(self) -> BinaryIO:
        """Open a new file for pieces."""
        with self._lock:
            self._spools += 1
            return (self.folder / f"pieces-{self._spools}.bin").open("wb")

    def add(self, done: Done) -> None:
        """Note that a file is done; its pieces are in the spool already."""
        with self._lock, (self.folder / "done.jsonl").open("ab") as stream:
            stream.write(b"\n" + json.dumps(asdict(done)).encode())
            self._done[done.name] = done

    def pieces(self, done: Done) -> Iterator[Found]:
        """Yield the pieces of a file."""
        with (self.folder / done.spool).open("rb") as stream:
            stream.seek(done.offset)
            yield from unpack(stream, done.length)
