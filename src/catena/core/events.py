"""Events: what happens in a run, as JSON lines for machines and as callbacks for whoever shows it.

A stage writes through `Events`; nothing here prints. Kinds: `step` (status changes), `progress`, `metric`,
`fact`, `log`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

Listener = Callable[[dict[str, Any]], None]
Item = TypeVar("Item")

PROGRESS_EVERY_S = 0.2


class Events:
    """A stream of events. Each is a JSON object with `at` (Unix seconds), `event` and, inside a step, `step`."""

    def __init__(self, path: Path | None = None, listeners: Iterable[Listener] = (), **common: Any) -> None:
        self._path = path
        self._listeners = tuple(listeners)
        self._common = common
        self._lock = threading.Lock()

    def bind(self, *, listen: Listener | None = None, **common: Any) -> Events:
        """Return a stream to the same places (and to `listen`) whose events carry these fields too."""
        extra = () if listen is None else (listen,)
        return Events(self._path, (*self._listeners, *extra), **{**self._common, **common})

    def emit(self, event: str, **fields: Any) -> None:
        """Write one event."""
        record = {"at": round(time.time(), 3), "event": event, **self._common, **fields}
        if self._path is not None:
            line = json.dumps(record, ensure_ascii=False, default=str) + "\n"
            # One write of one line in append mode: lines of two processes never mix, a kill loses at most the last one.
            with self._lock, self._path.open("a", encoding="utf-8") as stream:
                stream.write(line)
        for listener in self._listeners:
            listener(record)

    def log(self, message: str, **fields: Any) -> None:
        """Say something that a person may want to read later."""
        self.emit("log", message=message, **fields)

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """Record a number; with `step` (training step, round) it becomes a curve in the report."""
        self.emit("metric", name=name, value=value, at_step=step)

    def fact(self, name: str, value: str) -> None:
        """Record what was found or chosen and is no number; it stands in the run beside the numbers."""
        self.emit("fact", name=name, value=value)

    def progress(self, label: str, total: int | None = None, unit: str = "rows", *, done: int = 0) -> Progress:
        """Start a progress line; `done` units were done before, by a run that was killed."""
        return Progress(self, label, total, unit, done)


class Progress:
    """Counts work done and emits at most five events a second, with the rate and the time left."""

    def __init__(self, events: Events, label: str, total: int | None, unit: str, done: int = 0) -> None:
        self._events, self.label, self.total, self.unit = events, label, total, unit
        self.done = self._before = done
        self._start = time.monotonic()
        self._last = 0.0

    def advance(self, count: int = 1, **extra: Any) -> None:
        """Add `count` done units; `extra` (a loss, a norm) is shown beside."""
        self.done += count
        now = time.monotonic()
        if now - self._last >= PROGRESS_EVERY_S:
            self._last = now
            self._emit(extra)

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """Pass items through and count them."""
        for item in items:
            yield item
            self.advance()
        self.finish()

    def finish(self, **extra: Any) -> None:
        """Emit the last event."""
        self._emit(extra)

    def _emit(self, extra: dict[str, Any]) -> None:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        rate = (self.done - self._before) / elapsed
        left = None if not self.total or not rate else max(self.total - self.done, 0) / rate
        self._events.emit(
            "progress",
            label=self.label,
            done=self.done,
            total=self.total,
            unit=self.unit,
            rate=round(rate, 3),
            seconds_left=None if left is None else round(left, 1),
            **extra,
        )


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Read a file of events; a last line cut short by a kill is passed over."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue
