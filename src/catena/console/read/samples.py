"""The samples of evaluations: found by split, right or wrong, and words; two models' answers to the same questions.

A file of samples is read through once; where each line begins, its score and its split stay in memory. A page of lines
is then read from the file, however long it is.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson

from catena.console.read.tables import Found
from catena.core.errors import UsageError
from catena.core.types import Report
from catena.hub.store import Store

FILES = ("samples.jsonl", "documents.jsonl")
RIGHT = 1.0
"""From this score on an answer is right, as in reports."""
OPEN_FILES = 16
Outcome = Literal["", "right", "wrong"]
Pairing = Literal["", "both", "lost", "gained", "neither"]
"""Who was right: both, only the first model, only the second, neither."""
PAIRINGS: tuple[Pairing, ...] = ("both", "lost", "gained", "neither")
Line = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """The same question answered by two models."""

    first: Line
    second: Line
    pairing: str


class Lines:
    """The lines of a report's files of samples, by number."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        places: list[tuple[int, int, int]] = []
        scores: list[float] = []
        splits: list[str] = []
        ids: list[str] = []
        for file, path in enumerate(paths):
            with path.open("rb") as stream:
                at = 0
                for raw in stream:
                    line = orjson.loads(raw)
                    places.append((file, at, len(raw)))
                    score = line.get("score")
                    scores.append(float(score) if isinstance(score, int | float) else np.nan)
                    splits.append(str(line.get("split") or ""))
                    ids.append(str(line.get("id") or len(ids)))
                    at += len(raw)
        self._places = np.array(places, dtype=np.int64).reshape(-1, 3)
        self.scores = np.array(scores, dtype=float)
        self.splits = splits
        self.ids = ids
        self.order = list(dict.fromkeys(splits))
        """The splits (tasks), as they come."""
        self._split_codes = np.array([self.order.index(name) for name in splits], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.scores)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return for each split how many lines it has and how many of them are right."""
        right = self.scores >= RIGHT
        return {
            name: (int((self._split_codes == code).sum()), int(right[self._split_codes == code].sum()))
            for code, name in enumerate(self.order)
        }

    def rows(self, split: str = "", outcome: Outcome = "") -> np.ndarray:
        """Return the numbers of the lines of a split, right ones or wrong ones."""
        wanted = np.ones(len(self), dtype=bool)
        if split:
            wanted &= self._split_codes == (self.order.index(split) if split in self.order else -1)
        if outcome:
            wanted &= (self.scores >= RIGHT) if outcome == "right" else (self.scores < RIGHT)
        return np.flatnonzero(wanted)

    def search(self, rows: np.ndarray, words: str) -> np.ndarray:
        """Return those of these lines that have every word, in any field."""
        wanted = [orjson.dumps(word)[1:-1] for word in words.lower().split()]
        if not wanted:
            return rows
        kept = [
            int(row)
            for row, raw in zip(rows.tolist(), self._raw(rows), strict=True)
            if all(word in raw.decode().lower().encode() for word in wanted)
        ]
        return np.array(kept, dtype=np.int64)

    def read(self, rows: Sequence[int] | np.ndarray) -> list[Line]:
        """Return lines by their numbers."""
        return [orjson.loads(raw) for raw in self._raw(np.asarray(rows, dtype=np.int64))]

    def _raw(self, rows: np.ndarray) -> Iterator[bytes]:
        opened = [path.open("rb") for path in self._paths]
        try:
            for file, at, size in self._places[rows].tolist():
                opened[file].seek(at)
                yield opened[file].read(size)
        finally:
            for stream in opened:
                stream.close()


class SampleBook:
    """The samples of a workspace's reports. For threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._opened: OrderedDict[str, Lines] = OrderedDict()

    def lines(self, report: Report) -> Lines:
        """Return the lines of a report; the bytes are verified when they are opened. Raises `IntegrityError`."""
        with self._lock:
            found = self._opened.get(report.digest)
        if found is None:
            names = [file.path for file in report.files if file.path in FILES]
            folder = self.store.checkout(report) if names else Path()
            found = Lines([folder / name for name in names])
        with self._lock:
            self._opened[report.digest] = found
            self._opened.move_to_end(report.digest)
            while len(self._opened) > OPEN_FILES:
                self._opened.popitem(last=False)
        return found

    def page(
        self,
        report: Report,
        *,
        split: str = "",
        outcome: Outcome = "",
        search: str = "",
        offset: int = 0,
        limit: int = 20,
    ) -> Found[Line]:
        """Return samples of a report: of a split, right or wrong, with every word of `search` in any field."""
        lines = self.lines(report)
        rows = lines.search(lines.rows(split, outcome), search)
        return Found(tuple(lines.read(rows[offset : offset + limit])), len(rows))

    def pairing(self, first: Report, second: Report) -> Pairs:
        """Return the questions that two reports have in common. Raises `UsageError` where there are none."""
        return Pairs(self.lines(first), self.lines(second))


class Pairs:
    """The questions that two models answered, by number; who was right in each."""

    def __init__(self, first: Lines, second: Lines) -> None:
        self._lines = first, second
        places = {key: row for row, key in enumerate(zip(second.splits, second.ids, strict=True))}
        both = [
            (row, places[key]) for row, key in enumerate(zip(first.splits, first.ids, strict=True)) if key in places
        ]
        if not both:
            raise UsageError(
                "the two evaluations have no question in common", hint="Choose two of the same task and data."
            )
        self._rows = np.array(both, dtype=np.int64)
        self.splits = [name for name in first.order if name in set(second.order)]
        self._names = [first.splits[row] for row in self._rows[:, 0].tolist()]
        scores = first.scores[self._rows[:, 0]], second.scores[self._rows[:, 1]]
        one, other = scores[0] >= RIGHT, scores[1] >= RIGHT
        self._kinds = np.where(one, np.where(other, 0, 1), np.where(other, 2, 3))
        self.judged = bool(np.isfinite(scores[0]).any() and np.isfinite(scores[1]).any())
        """Whether the lines have scores of their own: texts that were foretold have none."""

    def __len__(self) -> int:
        return len(self._rows)

    def counts(self, split: str = "") -> dict[str, int]:
        """Return how many questions there are of each pairing."""
        kinds = Counter(self._kinds[self._of(split)].tolist())
        return {name: kinds[number] for number, name in enumerate(PAIRINGS)}

    def _of(self, split: str) -> np.ndarray:
        return np.array([not split or name == split for name in self._names], dtype=bool)

    def page(
        self, *, split: str = "", pairing: Pairing = "", search: str = "", offset: int = 0, limit: int = 20
    ) -> Found[Pair]:
        """Return pairs: of a split, of one kind, with every word of `search` in the first model's line."""
        wanted = self._of(split)
        if pairing:
            wanted &= self._kinds == PAIRINGS.index(pairing)
        chosen = np.flatnonzero(wanted)
        first, second = self._lines
        if search.strip():
            kept = set(first.search(self._rows[chosen, 0], search).tolist())
            chosen = np.array([row for row in chosen.tolist() if int(self._rows[row, 0]) in kept], dtype=np.int64)
        part = chosen[offset : offset + limit]
        mine, theirs = first.read(self._rows[part, 0]), second.read(self._rows[part, 1])
        kinds = [PAIRINGS[kind] for kind in self._kinds[part].tolist()]
        pairs = tuple(Pair(*sides) for sides in zip(mine, theirs, kinds, strict=True))
        return Found(pairs, len(chosen))
