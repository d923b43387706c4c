"""The journal of a collection: what came in, on disk after every batch, so that a kill loses and repeats nothing.

    journal.jsonl   the basis of the work; items, and after each batch a mark with the place to go on from; the end
    bodies.bin      the bytes of media items, one after the other

A batch counts when its mark is there: what stands behind the last mark is cut off when the journal is opened again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

Outcome = Literal["row", "reject", "gone"]
Position = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """One record of a source: a row, a record that cannot be taken, or one that is no longer there."""

    key: str
    """What the source calls it: the same record has the same key in every run."""
    outcome: Outcome = "row"
    data: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    license: str | None = None
    split: str | None = None
    reason: str = ""
    detail: str = ""

    @property
    def size(self) -> int:
        """About how many bytes it takes: the longest of its fields decides."""
        return sum(len(value) for value in self.data.values() if isinstance(value, str | bytes | list))


@dataclass(frozen=True, slots=True)
class Batch:
    """What came together, and where to go on after it. The last batch of a pass has a `cursor`."""

    items: tuple[Item, ...]
    position: Position
    """Enough to go on behind this batch in the same pass, in JSON."""
    cursor: Position | None = None
    """What the next run begins with, in JSON; None while the pass goes on."""
    stop: bool = False
    """A limit of the connector's own is reached: this run ends here, and the next one goes on at `position`."""


class Journal:
    """The folder of one collection."""

    def __init__(self, folder: Path, basis: Mapping[str, Any]) -> None:
        self.folder, self._basis = folder, dict(basis)
        self.position: Position | None = None
        self.end: Position | None = None
        """What `finish` was given, or None while the collection is not complete."""
        self.items = 0
        self._path, self._bodies_path = folder / "journal.jsonl", folder / "bodies.bin"
        self._bodies_size = 0
        if not self._recover():
            self.restart()

    def restart(self) -> None:
        """Throw away what is there and begin anew."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.position, self.end, self.items, self._bodies_size = None, None, 0, 0
        self._bodies_path.touch()
        self._append([{"basis": self._basis}])

    def _recover(self) -> bool:
        """Read what an earlier try of the same work left, and cut off a batch that is not whole."""
        whole = 0
        for offset, line in self._lines():
            if whole == 0 and line.get("basis") != self._basis:
                return False
            if "mark" in line:
                self.position, self._bodies_size, self.items = line["mark"], line["bodies"], line["items"]
            if "end" in line:
                self.end = line["end"]
            if whole == 0 or "mark" in line or "end" in line:
                whole = offset
        if whole == 0 or not self._bodies_path.exists() or self._bodies_path.stat().st_size < self._bodies_size:
            return False
        os.truncate(self._path, whole)
        os.truncate(self._bodies_path, self._bodies_size)
        return True

    def write(self, batch: Batch) -> None:
        """Add a batch; it is durable when this returns."""
        lines: list[dict[str, Any]] = []
        with self._bodies_path.open("ab") as bodies:
            for item in batch.items:
                content = item.data.get("content")
                line: dict[str, Any] = {"item": _plain(item)}
                if isinstance(content, bytes):
                    line["body"] = [self._bodies_size, len(content)]
                    self._bodies_size += bodies.write(content)
                lines.append(line)
            bodies.flush()
            os.fsync(bodies.fileno())
        self.items += len(batch.items)
        self.position = batch.position
        self._append([*lines, {"mark": batch.position, "bodies": self._bodies_size, "items": self.items}])

    def finish(self, end: Position) -> None:
        """Say that nothing more comes, and what the next run has to know."""
        self.end = end
        self._append([{"end": end}])

    def index(self) -> dict[str, int]:
        """Return where each key's last item stands, in the order of keys."""
        found = {line["item"]["key"]: start for start, line in self._starts() if "item" in line}
        return dict(sorted(found.items()))

    def read(self, offsets: Iterable[int]) -> Iterator[Item]:
        """Yield the items at these places."""
        with self._path.open("rb") as lines, self._bodies_path.open("rb") as bodies:
            for offset in offsets:
                lines.seek(offset)
                line = orjson.loads(lines.readline())
                item = Item(**line["item"])
                if "body" in line:
                    start, size = line["body"]
                    bodies.seek(start)
                    item = Item(**{**line["item"], "data": {"content": bodies.read(size), **item.data}})
                yield item

    def _append(self, lines: list[dict[str, Any]]) -> None:
        with self._path.open("ab") as stream:
            stream.write(b"".join(orjson.dumps(line) + b"\n" for line in lines))
            stream.flush()
            os.fsync(stream.fileno())

    def _lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (end, line) of every whole line up to the first that is not whole."""
        if not self._path.exists():
            return
        end = 0
        with self._path.open("rb") as stream:
            for text in stream:
                end += len(text)
                try:
                    line = orjson.loads(text)
                except orjson.JSONDecodeError:
                    return
                if not text.endswith(b"\n") or not isinstance(line, dict):
                    return
                yield end, line

    def _starts(self) -> Iterator[tuple[int, dict[str, Any]]]:
        start = 0
        for end, line in self._lines():
            yield start, line
            start = end


def storable(item: Item) -> str:
    """Return why an item cannot be written as JSON and in a table, or nothing."""
    try:
        orjson.dumps(_plain(item))
    except (orjson.JSONEncodeError, TypeError, RecursionError) as error:
        return str(error)
    return ""


def _plain(item: Item) -> dict[str, Any]:
    data = {key: value for key, value in item.data.items() if not isinstance(value, bytes)}
    return {
        "key": item.key,
        "outcome": item.outcome,
        "data": data,
        "metadata": dict(item.metadata),
        "source": item.source,
        "license": item.license,
        "split": item.split,
        "reason": item.reason,
        "detail": item.detail,
    }
