"""The events of a run, read once and followed: metrics as arrays, everything else as notes.

    runs/<group>/events.jsonl -> blocks of whole lines -> Arrow's JSON reader -> a `Course` for each step and metric

A run of a million metric points is 120 MB of lines. Arrow reads them in C++ on all cores, one block ahead of what takes
its columns apart; lines that it refuses (NaN, a fact whose value is text) are read by themselves, as is each line of a
block in which a kill cut one short. What was read is never read again, by this process or (`kept`) by one that comes
later.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import orjson
import pyarrow as pa

from catena.console.read import kept
from catena.console.read.course import Course
from catena.console.read.kept import Curve, Kept
from catena.console.read.lines import SCHEMA, Reader, Spans, coded, line_edges

logger = logging.getLogger(__name__)
MOST_NOTES = 200_000
"""Of one run that are kept; of more, the oldest go."""
KEEP_FROM = 8 << 20
"""Bytes of events from which on what was read is kept: a tenth of a second and more."""
KEEP_AFTER_S = 1.0
"""So long after it was read it is kept, in seconds: whoever waits for a page does not wait for this too."""
OPEN_FILES = 32
"""Runs that are kept in memory."""
PLENTIFUL = ("metric", "progress")


Courses = dict[tuple[str, str], Course]


class Note(NamedTuple):
    """An event that is no metric, and where its line stands in the file."""

    event: dict[str, Any]
    first: int
    end: int


@dataclass
class _Read:
    """What a file has told so far."""

    courses: Courses = field(default_factory=dict)
    """By step of the recipe and metric."""
    notes: list[Note] = field(default_factory=list)
    """Every event that is neither metric nor progress, in order."""
    forgotten: int = 0
    """Notes that were dropped from the beginning."""
    progress: dict[str, Note] = field(default_factory=dict)
    """The last one of each step."""
    offset: int = 0
    file: tuple[int, int] = (0, 0)
    """Device and inode."""
    kept: int = 0
    """Up to where it is on the disk."""
    reader: Reader = field(default_factory=Reader)


class Followed:
    """A file of events that is followed. For threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._read = _Read()

    @property
    def offset(self) -> int:
        """How many bytes were read."""
        return self._read.offset

    def update(self) -> bool:
        """Read what is new; returns whether there was anything."""
        with self._lock:
            try:
                with self.path.open("rb") as stream:
                    return self._follow(stream)
            except FileNotFoundError:
                return False

    def _follow(self, stream: BinaryIO) -> bool:
        status = os.fstat(stream.fileno())
        file = (status.st_dev, status.st_ino)
        before = self._read.offset
        if file != self._read.file or status.st_size < self._read.offset:  # another file took its place
            before = 0
            self._read = _Read(file=file)
            if status.st_size >= KEEP_FROM:
                self._recall(stream)
        for block, table, odd in self._read.reader.read(stream, self._read.offset, status.st_size):
            self._take(block, table, odd)
            self._read.offset += len(block)
        return self._read.offset != before

    def _take(self, block: bytes, table: pa.Table | None, odd: Spans) -> None:
        if table is None:
            odd = list(zip(*(edges.tolist() for edges in line_edges(block, [])), strict=True))
        else:
            self._take_table(block, table, odd)
        for first, end in odd:
            self._take_line(block, first, end)
        if odd:
            self._read.notes.sort(key=lambda note: note.first)
        if len(self._read.notes) > MOST_NOTES:
            over = len(self._read.notes) - MOST_NOTES
            del self._read.notes[:over]
            self._read.forgotten += over

    def _take_table(self, block: bytes, table: pa.Table, blank: Spans) -> None:
        """Take a block, but for its blank lines."""
        columns = [table[name].combine_chunks() for name in SCHEMA.names]
        kinds, events = coded(columns[0])
        self._take_metrics(kinds, events, columns)
        plain = np.isin(events, [code for code, name in enumerate(kinds) if name in PLENTIFUL])
        _, steps = coded(columns[1])
        progress = np.flatnonzero(events == kinds.index("progress")) if "progress" in kinds else np.zeros(0, dtype=int)
        last = [int(progress[steps[progress] == code][-1]) for code in np.unique(steps[progress])]
        wanted = sorted([*np.flatnonzero(~plain).tolist(), *last])
        if wanted:
            firsts, ends = line_edges(block, blank)
            for row in wanted:
                self._take_line(block, int(firsts[row]), int(ends[row]))

    def _take_line(self, block: bytes, first: int, end: int) -> None:
        event = _parsed(block[first:end])
        if event is not None:
            self._take_event(Note(event, self._read.offset + first, self._read.offset + end))

    def _take_metrics(self, kinds: list[str], events: np.ndarray, columns: list[Any]) -> None:
        if "metric" not in kinds:
            return
        (steps, step_codes), (names, name_codes) = coded(columns[1]), coded(columns[2])
        at = columns[4].to_numpy(zero_copy_only=False)  # floats where some are missing
        values = columns[3].to_numpy(zero_copy_only=False)
        there = (events == kinds.index("metric")) & ~(np.isnan(at) if at.dtype.kind == "f" else np.zeros(1, dtype=bool))
        pairs = step_codes * len(names) + name_codes
        for pair in np.unique(pairs[there]).tolist():
            rows = there & (pairs == pair)
            course = self._course(steps[pair // len(names)], names[pair % len(names)])
            course.add(at[rows].astype(np.int64), values[rows])

    def _take_event(self, note: Note) -> None:
        event = note.event
        kind = event.get("event")
        if kind == "progress":
            self._read.progress[str(event.get("step") or "")] = note
        elif kind != "metric":
            self._read.notes.append(note)
        elif type(event.get("at_step")) is int and isinstance(event.get("value"), int | float):
            course = self._course(str(event.get("step") or ""), str(event.get("name")))
            course.add(np.array([event["at_step"]]), np.array([event["value"]], dtype=float))

    def _course(self, step: str, name: str) -> Course:
        return self._read.courses.setdefault((step, name), Course())

    # -- what was read, on the disk ----------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether much more was read than is kept: a quarter more, so that a run that grows is not written for ever."""
        return self._read.offset - self._read.kept >= max(KEEP_FROM, self._read.kept // 4)

    def keep(self) -> None:
        """Keep what was read, if it is time to. Where that cannot be written, the next process reads for itself."""
        with self._lock:
            read = self._read
            if not self.due:
                return
            read.kept = read.offset
            curves = [Curve(step, name, *course.copied()) for (step, name), course in read.courses.items()]
            spans = [_spans(read.notes), _spans(list(read.progress.values()))]
            told = Kept(read.file, read.offset, curves, spans[0], spans[1], read.forgotten)
        try:
            kept.write(self.path, told)
        except OSError as error:
            logger.info("what was read of %s is not kept: %s", self.path.name, error)

    def _recall(self, stream: BinaryIO) -> None:
        """Take what was kept of this file, if it is whole and of this file."""
        told = kept.read(self.path, stream)
        if told is None:
            return
        notes = [_noted(stream, first, end) for first, end in told.notes.tolist()]
        progress = [_noted(stream, first, end) for first, end in told.progress.tolist()]
        if None in notes or None in progress:
            return
        read = self._read
        read.courses = {(one.step, one.name): Course.of(one.steps, one.values, one.broken) for one in told.curves}
        read.notes = [note for note in notes if note is not None]
        read.progress = {str(note.event.get("step") or ""): note for note in progress if note is not None}
        read.forgotten, read.offset, read.kept = told.forgotten, told.offset, told.offset

    # -- what was read -----------------------------------------------------------------------------------------------

    def courses(self, step: str) -> dict[str, Course]:
        """Return the metrics of a step by name."""
        with self._lock:
            return {name: course for (of, name), course in sorted(self._read.courses.items()) if of == step}

    def points(self, step: str, name: str) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Return copies of a metric's steps and values, and the steps at which it was no finite number."""
        with self._lock:
            return self._read.courses.get((step, name), Course()).copied()

    def notes(self, wanted: Callable[[dict[str, Any]], bool] | None = None) -> list[dict[str, Any]]:
        """Return the events that are neither metric nor progress, oldest first."""
        with self._lock:
            found = [note.event for note in self._read.notes]
        return found if wanted is None else [event for event in found if wanted(event)]

    def progress(self) -> dict[str, dict[str, Any]]:
        """Return the last progress of each step."""
        with self._lock:
            return {step: note.event for step, note in self._read.progress.items()}


def _spans(notes: list[Note]) -> np.ndarray:
    return np.array([(note.first, note.end) for note in notes], dtype=np.int64).reshape(-1, 2)


def _noted(stream: BinaryIO, first: int, end: int) -> Note | None:
    """Return the event that stands there, or None where there is none."""
    stream.seek(first)
    event = _parsed(stream.read(end - first))
    return Note(event, first, end) if event is not None else None


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return an event, or None for a line that a kill cut short."""
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            event = json.loads(line)  # knows NaN and infinity
        except (json.JSONDecodeError, UnicodeDecodeError):
            return None
    return event if isinstance(event, dict) else None


class Shelf:
    """The files that were asked for last, kept open for the next look."""

    def __init__(self, most: int = OPEN_FILES) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._files: OrderedDict[Path, Followed] = OrderedDict()

    def follow(self, path: Path) -> Followed:
        """Return a file of events, read up to its end."""
        with self._lock:
            found = self._files.setdefault(path, Followed(path))
            self._files.move_to_end(path)
            while len(self._files) > self._most:
                self._files.popitem(last=False)
        if found.update() and found.due:
            later = threading.Timer(KEEP_AFTER_S, found.keep)
            later.daemon = True
            later.start()
        return found

    def unread(self, path: Path) -> int:
        """Return how many bytes of a file were never read."""
        with self._lock:
            found = self._files.get(path)
        try:
            size = path.stat().st_size
        except OSError:
            return 0
        return size if found is None else max(size - found.offset, 0)


def first_event(path: Path) -> dict[str, Any]:
    """Return the first event of a file; nothing where there is none."""
    for line in _first_lines(path):
        return _parsed(line) or {}
    return {}


def _first_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            yield from stream
    except FileNotFoundError:
        return
