"""Runs: every `catena run` with its steps, what it is at now, its settings, and how several differ.

    RunBook(store).find(...)   runs, newest first, filtered and cut into pages
    RunBook(store).one(group)  one run: its steps as they stand
    differences(runs)          settings in which runs differ

A run that is recorded as running and whose lock is free has died: it is told as interrupted.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import psutil
from sqlalchemy import func, select

from catena.console.read.events import Shelf, first_event
from catena.console.read.tables import Found, page_of, reading
from catena.core.errors import NotFound, did_you_mean
from catena.core.types import ENDED
from catena.hub.locks import file_lock
from catena.hub.schema import runs as table
from catena.hub.store import Store

STATES = ("running", "done", "failed", "interrupted", "cancelled")


@dataclass(frozen=True)
class StepState:
    """One step of a run."""

    id: str
    """Of its record; empty for a step that has not begun."""
    step: str
    stage: str = ""
    state: str = "waiting"
    """A run's status, or `waiting`."""
    name: str = ""
    started: datetime | None = None
    ended: datetime | None = None
    output: str | None = None
    error: str | None = None
    key: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    inputs: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """Wall time, up to now for one that runs; None for one that has not begun or whose end nobody saw."""
        if self.started is None:
            return None
        if self.ended is not None:
            return (self.ended - self.started).total_seconds()
        return (datetime.now(UTC) - self.started).total_seconds() if self.state == "running" else None


@dataclass(frozen=True)
class RunState:
    """One `catena run`."""

    group: str
    recipe: str
    state: str
    """One of `STATES`."""
    started: datetime | None
    ended: datetime | None
    steps: tuple[StepState, ...]

    @property
    def seconds(self) -> float | None:
        """Wall time from the first step's beginning to the last one's end, or to now."""
        if self.started is None or (self.ended is None and self.state != "running"):
            return None
        return ((self.ended or datetime.now(UTC)) - self.started).total_seconds()

    @property
    def finished(self) -> int:
        """How many steps have an output."""
        return sum(step.state in ("done", "cached") for step in self.steps)

    def step(self, name: str) -> StepState:
        """Return a step by its name; one that has not begun where there is none."""
        return next((step for step in self.steps if step.step == name), StepState("", name))

    @property
    def at(self) -> StepState | None:
        """The step that runs, or that ended the run badly."""
        return next((step for step in self.steps if step.state not in ("done", "cached", "waiting")), None)


class RunBook:
    """The runs of a workspace, read again only where something has changed. For threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.shelf = Shelf()
        self._lock = threading.Lock()
        self._known: dict[str, tuple[Any, RunState]] = {}

    def find(self, *, search: str = "", state: str = "", offset: int = 0, limit: int = 50) -> Found[RunState]:
        """Return runs, newest first: those with every word of `search` in recipe, id, step or stage, and this state."""
        with self._lock:
            found = self._all()
        words = search.lower().split()
        chosen = [
            run
            for run in found
            if (not state or run.state == state) and all(word in _words(run) for word in words or ("",))
        ]
        return page_of(chosen, offset, limit)

    def counts(self) -> Counter[str]:
        """Return how many runs are in each state."""
        with self._lock:
            return Counter(run.state for run in self._all())

    def one(self, group: str) -> RunState:
        """Return one run as it stands. Raises `NotFound`."""
        with reading(self.store) as connection:
            query = select(table.c.body, table.c.status, table.c.output).where(table.c.run_group == group)
            rows = connection.execute(query.order_by(table.c.started, table.c.id)).all()
        run = self._state(group, rows) if rows else self._beginning(group)
        if run is None:
            raise NotFound(f"there is no run {group!r}", hint=did_you_mean(group, self._groups()))
        return run

    def folder(self, group: str) -> Path:
        """Return where a run's events, recipe and report are. The group must be one that the index knows."""
        return self.store.root / "runs" / group

    def _groups(self) -> list[str]:
        with reading(self.store) as connection:
            return list(connection.execute(select(table.c.run_group).distinct()).scalars())

    def _all(self) -> list[RunState]:
        """Return every run, newest first; only those are read whose rows have changed since the last time."""
        running = func.sum(func.length(table.c.status))  # changes with every change of a status
        stamp = select(table.c.run_group, func.count(), func.max(table.c.started), running, func.count(table.c.output))
        with reading(self.store) as connection:
            stamps = {row[0]: tuple(row[1:]) for row in connection.execute(stamp.group_by(table.c.run_group))}
            known = self._known
            fresh = [
                group
                for group, mark in stamps.items()
                if group not in known or known[group][0] != mark or known[group][1].state == "running"
            ]
            rows: dict[str, list[Any]] = {}
            for start in range(0, len(fresh), 500):
                query = select(table.c.run_group, table.c.body, table.c.status, table.c.output)
                query = query.where(table.c.run_group.in_(fresh[start : start + 500]))
                for row in connection.execute(query.order_by(table.c.started, table.c.id)):
                    rows.setdefault(row.run_group, []).append(row[1:])
        self._known = {group: known[group] for group in stamps if group in known}
        for group, mine in rows.items():
            self._known[group] = (stamps[group], self._state(group, mine))
        oldest = datetime.min.replace(tzinfo=UTC)
        return sorted((run for _, run in self._known.values()), key=lambda run: run.started or oldest, reverse=True)

    def _state(self, group: str, rows: Sequence[Any]) -> RunState:
        steps = [self._step(orjson.loads(body), status, output) for body, status, output in rows]
        first = first_event(self.folder(group) / "events.jsonl")
        begun = {step.step for step in steps}
        waiting = [str(name) for name in first.get("steps") or () if name not in begun]
        state = _together(steps)
        if state == "done" and waiting:  # between two steps, or killed there
            state = "running" if _lives(steps[-1].machine.get("pid"), first) else "interrupted"
        ended = [step.ended for step in steps if step.ended is not None]
        return RunState(
            group,
            next((str(run["recipe"]) for run in map(orjson.loads, (rows[0][0],)) if run.get("recipe")), ""),
            state,
            min((step.started for step in steps if step.started is not None), default=None),
            max(ended, default=None) if state != "running" else None,
            (*steps, *(StepState("", name) for name in waiting)),
        )

    def _beginning(self, group: str) -> RunState | None:
        """Return a run that has no step yet: its first one may be the work of another run, which it waits for."""
        if not group or "/" in group or group.startswith("."):
            return None
        first = first_event(self.folder(group) / "events.jsonl")
        if not first:
            return None
        at = datetime.fromtimestamp(float(first.get("at") or 0), UTC)
        steps = tuple(StepState("", str(name)) for name in first.get("steps") or ())
        state = "running" if _lives(first.get("pid"), first) else "interrupted"
        return RunState(group, str(first.get("recipe") or ""), state, at, None, steps)

    def _step(self, run: Mapping[str, Any], status: str, output: str | None) -> StepState:
        if status == "running" and not self._held(str(run.get("key") or "")):
            status = "interrupted"
        return StepState(
            id=run["id"],
            step=run["step"],
            stage=run["stage"],
            state=status,
            name=run.get("name") or "",
            started=_time(run.get("started")),
            ended=_time(run.get("ended")),
            output=output,
            error=run.get("error"),
            key=run.get("key") or "",
            config=run.get("config") or {},
            seed=run.get("seed") or 0,
            inputs=run.get("inputs") or {},
            metrics=run.get("metrics") or {},
            machine=run.get("machine") or {},
        )

    def _held(self, key: str) -> bool:
        """Tell whether a process works on the step with this key: it holds the step's lock."""
        path = self.store.root / "locks" / f"step-{key[:32]}.lock"
        if not path.exists():
            return False
        with file_lock(path, shared=True, wait=False) as free:
            return not free


def _together(steps: Sequence[StepState]) -> str:
    states = {step.state for step in steps}
    return next((state for state in ("running", "failed", "cancelled", "interrupted") if state in states), "done")


def _lives(pid: Any, first: Mapping[str, Any]) -> bool:
    """Tell whether the process that ran the steps is still there, and no later one with its number."""
    try:
        return psutil.Process(int(pid)).create_time() <= float(first.get("at") or 0) + 1
    except (psutil.Error, TypeError, ValueError):
        return False


def _words(run: RunState) -> str:
    return " ".join((run.recipe, run.group, *(f"{step.step} {step.stage} {step.name}" for step in run.steps))).lower()


def _time(text: Any) -> datetime | None:
    if not text:
        return None
    found = datetime.fromisoformat(str(text))
    return found if found.tzinfo else found.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Setting:
    """One field of the configuration in which runs differ; `values` stand in the order of the runs."""

    step: str
    field: str
    values: tuple[Any, ...]


ABSENT = object()
"""The value of a field, or step, that a run does not have."""


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested configuration with dotted names; lists stay whole."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def differences(runs: Sequence[RunState]) -> list[Setting]:
    """Return the settings in which runs differ, in the order of the steps."""
    flats = [{step.step: {"seed": step.seed, **flat(step.config)} for step in run.steps if step.id} for run in runs]
    found = []
    for name in dict.fromkeys(step for run in flats for step in run):
        fields = dict.fromkeys(field for run in flats for field in run.get(name, {}))
        for field_ in fields:
            values = tuple(run.get(name, {}).get(field_, ABSENT) for run in flats)
            if any(value is ABSENT or value != values[0] for value in values):
                found.append(Setting(name, field_, values))
    return found


def unended(runs: Iterable[RunState]) -> bool:
    """Tell whether one of these goes on, so that a page must look again."""
    return any(run.state not in ENDED for run in runs)
