"""The events of a run, read once and followed: metrics as arrays, everything else as notes.

    runs/<group>/events.jsonl -> blocks of whole lines -> Arrow's JSON reader -> a `Course` for each step and metric

A run of a million metric points is 120 MB of lines. Arrow reads them in C++ on all cores; a block that it refuses (NaN,
a line that a kill cut short, a fact whose value is text) is read line by line. What was read is never read again.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from pyarrow import json as arrow_json

BLOCK = 16 << 20
"""Bytes that are read at once."""
MOST_NOTES = 200_000
"""Of one run that are kept; of more, the oldest go."""
OPEN_FILES = 32
"""Runs that are kept in memory."""
SCHEMA = pa.schema(
    [
        ("event", pa.string()),
        ("step", pa.string()),
        ("name", pa.string()),
        ("value", pa.float64()),
        ("at_step", pa.int64()),
    ]
)
ODD = (b'"value": "', b"NaN", b"Infinity")
"""What stands in lines that Arrow would refuse, and their block with them."""
PLENTIFUL = ("metric", "progress")


class Course:
    """One metric over the steps of a training. Only grows; reading it costs nothing."""

    def __init__(self) -> None:
        self._steps = np.empty(256, dtype=np.int64)
        self._values = np.empty(256, dtype=np.float64)
        self._size = 0
        self._rising = True
        self.broken: list[int] = []
        """Steps at which the value was no finite number."""

    def add(self, steps: np.ndarray, values: np.ndarray) -> None:
        """Append points. A step that was there before counts the last time."""
        finite = np.isfinite(values)
        if not finite.all():
            self.broken += steps[~finite].tolist()
            steps, values = steps[finite], values[finite]
        if not len(steps):
            return
        before = self._steps[self._size - 1] if self._size else steps[0] - 1
        self._rising = self._rising and bool(steps[0] > before) and bool((np.diff(steps) > 0).all())
        end = self._size + len(steps)
        if end > len(self._steps):
            self._steps = _grown(self._steps, self._size, end)
            self._values = _grown(self._values, self._size, end)
        self._steps[self._size : end] = steps
        self._values[self._size : end] = values
        self._size = end

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Return steps, rising, and values: views, not to be written."""
        if not self._rising:
            steps, values = last_of_each(self._steps[: self._size], self._values[: self._size])
            self._steps, self._values, self._size, self._rising = steps, values, len(steps), True
        return self._steps[: self._size], self._values[: self._size]

    def __len__(self) -> int:
        return self._size


def _grown(old: np.ndarray, size: int, least: int) -> np.ndarray:
    grown = np.empty(max(2 * len(old), least), dtype=old.dtype)
    grown[:size] = old[:size]
    return grown


def last_of_each(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the points by rising step; of a step that stands there twice, the last."""
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    last = np.append(np.diff(steps) > 0, True) if len(steps) else np.zeros(0, dtype=bool)
    return steps[last], values[last]


Courses = dict[tuple[str, str], Course]


@dataclass
class _Read:
    """What a file has told so far."""

    courses: Courses = field(default_factory=dict)
    """By step of the recipe and metric."""
    notes: list[dict[str, Any]] = field(default_factory=list)
    """Every event that is neither metric nor progress, in order."""
    forgotten: int = 0
    """Notes that were dropped from the beginning."""
    progress: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The last one of each step."""
    offset: int = 0
    file: tuple[int, int] = (0, 0)
    """Device and inode."""


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

    def _follow(self, stream: Any) -> bool:
        status = os.fstat(stream.fileno())
        file = (status.st_dev, status.st_ino)
        if file != self._read.file or status.st_size < self._read.offset:  # another file took its place
            self._read = _Read(file=file)
        before = self._read.offset
        size = BLOCK
        while self._read.offset < status.st_size:
            stream.seek(self._read.offset)
            block = stream.read(size)
            end = block.rfind(b"\n") + 1
            if end:
                self._take(block[:end])
                self._read.offset += end
                size = BLOCK
            elif len(block) < size:  # the last line is being written
                break
            else:
                size *= 2
        return self._read.offset != before

    def _take(self, block: bytes) -> None:
        block, odd = _without_odd(block)
        if block and not self._take_fast(block):
            odd = block.splitlines() + odd
        for line in odd:
            event = _parsed(line)
            if event is not None:
                self._take_event(event)
        if odd:
            self._read.notes.sort(key=lambda note: note.get("at") or 0.0)
        if len(self._read.notes) > MOST_NOTES:
            over = len(self._read.notes) - MOST_NOTES
            del self._read.notes[:over]
            self._read.forgotten += over

    def _take_fast(self, block: bytes) -> bool:
        """Take a block by Arrow; False, and nothing is taken, where it is not as Arrow wants it."""
        try:
            table = arrow_json.read_json(
                pa.BufferReader(block),
                read_options=arrow_json.ReadOptions(block_size=1 << 20),
                parse_options=arrow_json.ParseOptions(explicit_schema=SCHEMA, unexpected_field_behavior="ignore"),
            )
        except pa.ArrowInvalid:
            return False
        if table.num_rows != block.count(b"\n"):
            return False
        columns = [table[name].combine_chunks() for name in SCHEMA.names]
        kinds, events = _coded(columns[0])
        self._take_metrics(kinds, events, columns)
        plain = np.isin(events, [code for code, name in enumerate(kinds) if name in PLENTIFUL])
        _, steps = _coded(columns[1])
        progress = np.flatnonzero(events == kinds.index("progress")) if "progress" in kinds else np.zeros(0, dtype=int)
        last = [int(progress[steps[progress] == code][-1]) for code in np.unique(steps[progress])]
        wanted = sorted([*np.flatnonzero(~plain).tolist(), *last])
        if wanted:
            ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n"))
            for row in wanted:
                event = _parsed(block[(ends[row - 1] + 1 if row else 0) : ends[row]])
                if event is not None:
                    self._take_event(event)
        return True

    def _take_metrics(self, kinds: list[str], events: np.ndarray, columns: list[Any]) -> None:
        if "metric" not in kinds:
            return
        (steps, step_codes), (names, name_codes) = _coded(columns[1]), _coded(columns[2])
        at = columns[4].to_numpy(zero_copy_only=False)  # floats where some are missing
        values = columns[3].to_numpy(zero_copy_only=False)
        there = (events == kinds.index("metric")) & ~(np.isnan(at) if at.dtype.kind == "f" else np.zeros(1, dtype=bool))
        pairs = step_codes * len(names) + name_codes
        for pair in np.unique(pairs[there]).tolist():
            rows = there & (pairs == pair)
            course = self._course(steps[pair // len(names)], names[pair % len(names)])
            course.add(at[rows].astype(np.int64), values[rows])

    def _take_event(self, event: dict[str, Any]) -> None:
        kind = event.get("event")
        if kind == "progress":
            self._read.progress[str(event.get("step") or "")] = event
        elif kind != "metric":
            self._read.notes.append(event)
        elif type(event.get("at_step")) is int and isinstance(event.get("value"), int | float):
            course = self._course(str(event.get("step") or ""), str(event.get("name")))
            course.add(np.array([event["at_step"]]), np.array([event["value"]], dtype=float))

    def _course(self, step: str, name: str) -> Course:
        return self._read.courses.setdefault((step, name), Course())

    # -- what was read -----------------------------------------------------------------------------------------------

    def courses(self, step: str) -> dict[str, Course]:
        """Return the metrics of a step by name."""
        with self._lock:
            return {name: course for (of, name), course in sorted(self._read.courses.items()) if of == step}

    def points(self, step: str, name: str) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Return copies of a metric's steps and values, and the steps at which it was no finite number."""
        with self._lock:
            course = self._read.courses.get((step, name)) or Course()
            steps, values = course.points()
            return steps.copy(), values.copy(), list(course.broken)

    def notes(self, wanted: Callable[[dict[str, Any]], bool] | None = None) -> list[dict[str, Any]]:
        """Return the events that are neither metric nor progress, oldest first."""
        with self._lock:
            kept = list(self._read.notes)
        return kept if wanted is None else [note for note in kept if wanted(note)]

    def progress(self) -> dict[str, dict[str, Any]]:
        """Return the last progress of each step."""
        with self._lock:
            return dict(self._read.progress)


def _coded(column: Any) -> tuple[list[str], np.ndarray]:
    """Return the distinct texts of a column, and for each row which of them it has; nothing is the empty text."""
    coded = column.fill_null("").dictionary_encode()
    return coded.dictionary.to_pylist(), coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _without_odd(block: bytes) -> tuple[bytes, list[bytes]]:
    """Return a block without the lines that Arrow would refuse, and these."""
    spans: set[tuple[int, int]] = set()
    for mark in ODD:
        found = block.find(mark)
        while found >= 0:
            end = block.index(b"\n", found) + 1
            spans.add((block.rfind(b"\n", 0, found) + 1, end))
            found = block.find(mark, end)
    if not spans:
        return block, []
    kept, at = [], 0
    for first, end in sorted(spans):
        kept.append(block[at:first])
        at = end
    return b"".join([*kept, block[at:]]), [block[first:end] for first, end in sorted(spans)]


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
        found.update()
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
