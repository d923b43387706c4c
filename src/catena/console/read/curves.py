"""Curves of a run: which metrics its steps have, and the points of one to draw, of one run or of several.

What a killed attempt at the same step wrote belongs to the curve; a step that was taken from the store has the
curves of the run that made it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import select

from catena.console.charts import Floats, thin
from catena.console.read.course import last_of_each
from catena.console.read.events import Followed
from catena.console.read.runs import RunBook, RunState, StepState
from catena.console.read.tables import reading
from catena.console.read.thin import between, means
from catena.hub.schema import runs as table

FIRST = ("loss", "val_loss", "learning_rate", "grad_norm", "tokens_per_s", "mfu")
"""Metrics in the order of the page; others come after them by name."""
SOURCE = "events.jsonl"
MOST = 1000
"""Points of one curve: a panel is about so many pixels wide."""


@dataclass(frozen=True)
class Drawn:
    """One curve, thinned for the screen."""

    x: Floats
    y: Floats
    level: tuple[Floats, Floats]
    """Means of wider stretches: the course behind the noise. Empty for a curve of few points."""
    total: int
    """Points within the range."""
    broken: tuple[int, ...]
    """Steps at which the value was no finite number."""
    last: float | None
    """The newest value of the whole curve."""
    ends: tuple[int, int] | None
    """First and last step of the whole curve."""


class CurveBook:
    """The curves of runs. For threads."""

    def __init__(self, book: RunBook) -> None:
        self._book = book
        self._attempts: dict[str, list[tuple[str, str]]] = {}

    def metrics(self, run: RunState) -> dict[str, list[str]]:
        """Return the metrics that have a course, by step, in the order of steps."""
        found: dict[str, list[str]] = {}
        for step in run.steps:
            names = {name for source, of in self._sources(run, step) for name, course in source.courses(of).items()}
            if names:
                found[step.step] = sorted(names, key=lambda name: (_place(name), name))
        return found

    def curve(self, run: RunState, step: StepState, name: str) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Return all steps and values, and the steps without a finite value."""
        parts = [source.points(of, name) for source, of in self._sources(run, step)]
        parts = [part for part in parts if len(part[0]) or part[2]]
        if not parts:
            return np.zeros(0, dtype=np.int64), np.zeros(0), []
        steps, values, broken = parts[0]
        if len(parts) > 1:
            joined = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
            steps, values = last_of_each(*joined)
            broken = sorted({at for part in parts for at in part[2]})
        return steps, values, broken

    def drawn(
        self,
        run: RunState,
        step: StepState,
        name: str,
        *,
        low: float | None = None,
        high: float | None = None,
        most: int = MOST,
        coarse: int = 0,
    ) -> Drawn:
        """Return a curve thinned to `most` points between two steps, and to `coarse` ones outside of them."""
        steps, values, broken = self.curve(run, step, name)
        span = between(steps, low, high)
        shown = steps[span], values[span]
        x, y = thin(*shown, most)
        if coarse and len(shown[0]) < len(steps):
            x, y = _with_rest((x, y), (steps, values), coarse)
        ends = (int(steps[0]), int(steps[-1])) if len(steps) else None
        last = float(values[-1]) if len(values) else None
        return Drawn(x, y, means(*shown), len(shown[0]), tuple(broken), last, ends)

    def progress(self, run: RunState) -> dict[str, dict[str, Any]]:
        """Return the last progress of each step of a run."""
        return self._follow(run.group).progress()

    def unread(self, run: RunState) -> int:
        """Return how many bytes of a run's events were never read: a gigabyte takes seconds."""
        return self._book.shelf.unread(self._book.folder(run.group) / SOURCE)

    def follow(self, group: str) -> Followed:
        """Return the events of a run, read up to their end."""
        return self._follow(group)

    def _follow(self, group: str) -> Followed:
        return self._book.shelf.follow(self._book.folder(group) / SOURCE)

    def _sources(self, run: RunState, step: StepState) -> list[tuple[Followed, str]]:
        """Return where the points of a step stand: of attempts before, oldest first, then its own."""
        if not step.key:
            return []
        mark = f"{run.group} {step.id} {step.state}"
        if mark not in self._attempts:
            self._attempts[mark] = list(self._found(run, step))
        groups = self._attempts[mark]
        return [(self._follow(group), name) for group, name in groups]

    def _found(self, run: RunState, step: StepState) -> Iterable[tuple[str, str]]:
        made = step.id if step.state != "cached" else str(step.metrics.get("origin") or step.id)
        query = select(table.c.id, table.c.run_group, table.c.step).where(table.c.key == step.key)
        with reading(self._book.store) as connection:
            rows = connection.execute(query.order_by(table.c.started, table.c.id)).all()
        for row in rows:
            yield row.run_group, row.step
            if row.id == made:
                return


def _with_rest(part: tuple[Floats, Floats], whole: tuple[Any, Any], coarse: int) -> tuple[Floats, Floats]:
    """Return the points of a part, and before and after it few of the whole: what a window moves to is there."""
    x, y = thin(*whole, coarse)
    first, last = (part[0][0], part[0][-1]) if len(part[0]) else (np.inf, np.inf)
    before, after = x < first, x > last
    return np.concatenate([x[before], part[0], x[after]]), np.concatenate([y[before], part[1], y[after]])


def _place(name: str) -> int:
    if name in FIRST:
        return FIRST.index(name)
    return 1 if "loss" in name else len(FIRST)
