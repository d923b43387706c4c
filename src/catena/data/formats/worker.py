"""The child process that opens files: it has limits of the system's and hands pieces back; see `wire` and `pool`.

    request {path, name, start} -> archive? -> each member, unpacked -> format -> reader -> pieces -> standard output

Whatever a hostile file does to a parser, it does it here: to a process without secrets that its parent may kill.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

import orjson

from catena.data.decode import normalise
from catena.data.formats.containers import Member
from catena.data.formats.pieces import Piece, Reading, Reject, Row, Source, Unreadable
from catena.data.formats.table import READERS, Format, detect
from catena.data.formats.unpack import Budget
from catena.data.formats.wire import BEGIN, END, FINISHED, FRAME, PIECES, READY, pack, plain

SEND_BYTES = 1 << 20
SEND_AFTER_S = 0.5


class Outbox:
    """Pieces on their way to the parent, sent in large frames; no longer than half a second is anything kept."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._waiting: list[bytes] = []
        self._size, self._last = 0, time.monotonic()

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        """Send a frame at once, and what waits before it."""
        self._flush()
        self._stream.write(FRAME.pack(kind, len(payload)) + payload)
        self._stream.flush()

    def put(self, packed: bytes) -> None:
        """Put a piece in the next frame."""
        self._waiting.append(packed)
        self._size += len(packed)
        if self._size >= SEND_BYTES or time.monotonic() - self._last > SEND_AFTER_S:
            self._flush()
            self._stream.flush()

    def _flush(self) -> None:
        if self._waiting:
            self._stream.write(FRAME.pack(PIECES, self._size))
            self._stream.writelines(self._waiting)
        self._waiting, self._size, self._last = [], 0, time.monotonic()


@dataclass
class Visit:
    """One file: its documents are numbered in the order in which they stand in it, archives counted too."""

    reading: Reading
    out: Outbox
    scratch: Path
    start: int
    """Documents with a lower number were read before: they are passed over."""
    budget: Budget
    count: int = 0
    pieces: int = 0

    def visit(self, member: str, name: str, fetch: Callable[[], Path], depth: int) -> None:
        """Read a document, or an archive's documents; nothing that is wrong with it ends the process."""
        number = self.count
        self.count += 1
        wanted = number >= self.start
        if wanted:
            self.out.send(BEGIN, orjson.dumps({"number": number, "member": plain(member)}))
        format: Format | None = None
        try:
            path, before = fetch(), (self.pieces, self.count)
            format = self._known(path, name)
            if format.kind == "container":
                self._open(path, member, name, format, depth)
            elif wanted:
                self._read(Source(path, name, format, self.reading), member)
            if wanted and before == (self.pieces, self.count):
                raise Unreadable("empty", "there are no rows in it")
        except Unreadable as problem:
            self._refuse(wanted, Reject(problem.reason, problem.detail), member, format)
        except MemoryError:
            self._refuse(wanted, Reject("out_of_memory", "limits.memory_bytes is too low for it"), member, format)
        except RecursionError:
            self._refuse(wanted, Reject("too_deep", "it is nested too deep"), member, format)
        except Exception as error:  # noqa: BLE001  a third party's parser on bytes of anyone: each mishap is a reject
            self._refuse(wanted, Reject("reader_failed", f"{type(error).__name__}: {error}"), member, format)
        if wanted:
            self.out.send(FINISHED)

    def _known(self, path: Path, name: str) -> Format:
        if not path.stat().st_size:
            raise Unreadable("empty", "the file is empty")
        format = detect(path, name)
        if format is None:
            raise Unreadable("unsupported_format", f"neither the bytes nor the name {name[-80:]!r} tell a known format")
        wanted = self.reading.formats
        if wanted and format.kind != "container" and format.name not in wanted:
            raise Unreadable("not_wanted", f"{format.name} is not among `formats`")
        return format

    def _refuse(self, wanted: bool, reject: Reject, member: str, format: Format | None) -> None:
        if wanted:
            self.out.put(pack(reject, member, format.name if format else ""))

    def _open(self, path: Path, member: str, name: str, format: Format, depth: int) -> None:
        if depth >= self.reading.limits.depth:
            raise Unreadable("archive_bomb", f"archives stand over {self.reading.limits.depth} deep in one another")
        opener: Callable[[Path, str, Budget], Iterator[Member]] = READERS.load(format.reader)
        for inner in opener(path, name, self.budget):
            target = self.scratch / f"member-{depth}"
            inside = f"{member}!/{inner.name}" if member else inner.name
            try:
                self.visit(inside, inner.name, partial(_fetched, inner, target), depth + 1)
            finally:
                target.unlink(missing_ok=True)

    def _read(self, source: Source, member: str) -> None:
        media = self.reading.shape == "media"
        if source.format.kind == "refused" or (media and source.format.kind == "media"):
            pieces = READERS.load(source.format.reader)(source)
        elif media:
            pieces = iter([Row(source.read_bytes())])
        elif source.format.kind == "media":
            raise Unreadable("not_text", f"{source.format.name} holds no text; read it with shape: media")
        else:
            pieces = READERS.load(source.format.reader)(source)
        for piece in pieces:
            self.pieces += 1
            self.out.put(self._packed(piece, source.format, member))

    def _packed(self, piece: Piece, format: Format, member: str) -> bytes:
        """Encode a piece, made fit: in the normal form, not empty, not too large, all of it valid Unicode."""
        if isinstance(piece, Row) and isinstance(piece.body, str):
            piece = self._fit(piece, piece.body)
        try:
            return pack(piece, member, format.name, format.media_type)
        except UnicodeEncodeError:
            reject = Reject("lone_surrogate", "half of a surrogate pair stands alone", piece.metadata)
            return pack(reject, member, format.name)
        except orjson.JSONEncodeError as error:
            return pack(Reject("bad_value", f"its fields cannot be stored: {error}"), member, format.name)

    def _fit(self, row: Row, text: str) -> Piece:
        changed = row.changed
        if self.reading.normalise and not _is_normal(text):
            text, more = normalise(text)
            changed = (*changed, *more)
        if not text.strip():
            return Reject("empty", "there is no text", row.metadata)
        most = self.reading.limits.row_bytes
        if len(text) > most or len(text.encode("utf-8", "surrogatepass")) > most:
            said = f"{len(text)} characters; limits.row_bytes is {most}"
            return Reject("too_large", said, row.metadata, text[:100])
        return Row(text, row.metadata, tuple(dict.fromkeys(changed)))


def _is_normal(text: str) -> bool:
    """Whether a text is one line of plain characters, on which the four patterns of `normalise` would be wasted."""
    return text.isascii() and text.isprintable() and not text.endswith(" ")


def _fetched(member: Member, target: Path) -> Path:
    if member.problem is not None:
        raise Unreadable(*member.problem)
    member.unpack(target)
    return target


def set_limits(reading: Reading) -> None:
    """Bound this process's memory, the files that it writes, and what it leaves behind when it crashes."""
    try:
        import resource
    except ImportError:
        return  # Windows: the parent's clock is the only limit there
    limits = reading.limits
    bounds = {"RLIMIT_AS": limits.memory_bytes, "RLIMIT_FSIZE": limits.unpacked_bytes + (1 << 20), "RLIMIT_CORE": 0}
    for name, bound in bounds.items():
        _, hard = resource.getrlimit(getattr(resource, name))
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS refuses some of them
            resource.setrlimit(getattr(resource, name), (bound, bound))


def _requests(stream: BinaryIO) -> SimpleQueue[dict[str, Any]]:
    """Return a queue of what the parent asks for; when the parent is gone, this process ends, whatever it is at."""
    waiting: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def listen() -> None:
        for line in stream:
            waiting.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=listen, daemon=True, name="requests").start()
    return waiting


def main() -> None:
    """Serve requests until standard input ends."""
    warnings.simplefilter("ignore")
    requests, pipe = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the frames
    job: dict[str, Any] = json.loads(requests.readline())
    reading, scratch, out = Reading.model_validate(job["reading"]), Path(job["scratch"]), Outbox(pipe)
    set_limits(reading)
    waiting = _requests(requests)
    out.send(READY)
    while True:
        asked = waiting.get()
        visit = Visit(reading, out, scratch, asked["start"], Budget(reading.limits))
        visit.visit("", asked["name"], partial(Path, asked["path"]), 0)
        out.send(END)


if __name__ == "__main__":
    main()
