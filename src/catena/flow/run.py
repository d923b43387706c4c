"""Running a recipe: step after step, each from the store where it can be, each committed in one transaction.

A run may be killed at any moment. What was finished is in the store; what was begun has its folder `work/<key>`, which
the same step finds again. Two runs of the same work wait for one another: the second takes the first one's output.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import threading
import time
import traceback
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from catena.core.cpu import guard
from catena.core.errors import Cancelled, CatenaError, environment_problem
from catena.core.events import Events, Listener
from catena.core.stage import Context
from catena.core.types import KINDS, Artifact, Run, RunStatus
from catena.data.executors import one_cluster
from catena.flow.plan import after_stored, find_done, pinned, step_key, stored_inputs
from catena.flow.recipe import Recipe, Step
from catena.hub.files import write_atomically
from catena.hub.index import now
from catena.hub.store import Store


@dataclass
class RecipeRun:
    """What `run_recipe` did: the outputs by step, and the record of each step."""

    group: str
    recipe: str
    status: RunStatus = "running"
    outputs: dict[str, Artifact] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Step to `name@version` of its output."""
    seconds: float = 0.0
    report: Path | None = None
    on: str = "local"
    """Who works on shards of rows."""


def run_recipe(
    store: Store,
    recipe: Recipe,
    *,
    refresh: bool = False,
    until: str | None = None,
    report: Path | None = None,
    listeners: Iterable[Listener] = (),
    on: str = "local",
) -> RecipeRun:
    """Run a checked recipe to the end (or until a step) and write its report.

    `refresh` makes steps that depend on the outside world run again. `on` says who works on shards of rows: "local"
    processes or "ray"; the outputs are the same. Raises what the failing step raised, after its
    record is written; `Cancelled` on SIGINT and SIGTERM.
    """
    guard()
    started = time.monotonic()
    group = f"{now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
    result = RecipeRun(group, recipe.name, on=on)
    steps = recipe.until(until)
    try:
        folder = store.group_folder(group)
        write_atomically(folder / "recipe.yaml", recipe.text.encode())
        events = Events(folder / "events.jsonl", listeners)
        events.emit("start", group=group, recipe=recipe.name, steps=[step.key for step in steps], pid=os.getpid())
        with store.lock("gc", shared=True), interruptible(), one_cluster():
            stored = stored_inputs(store, recipe, steps)
            for step in steps:
                known = stored | result.outputs
                inputs = {name: known[target] for name, target in step.use.items()}
                step = pinned(store, after_stored(store, step, inputs))
                _Step(store, recipe, step, inputs, events, result).run(refresh=refresh and step.stage.volatile)
            result.status = "done"
            result.seconds = time.monotonic() - started
            result.report = _write_report(store, group, report or folder / "report.html", events)
    except KeyboardInterrupt:
        raise Cancelled("stopped", hint="What was finished is kept; the same command goes on from there.") from None
    except OSError as error:
        raise environment_problem(error) or error from error
    return result


class _Step:
    """One step of one run."""

    def __init__(
        self,
        store: Store,
        recipe: Recipe,
        step: Step,
        inputs: Mapping[str, Artifact],
        events: Events,
        result: RecipeRun,
    ) -> None:
        self.store, self.step, self.inputs, self.result = store, step, inputs, result
        self.metrics: dict[str, Any] = {}
        self.events = events.bind(step=step.key, listen=self._note)
        self.key = step_key(step, inputs)
        self.record = Run(
            id=uuid.uuid4().hex[:12],
            group=result.group,
            recipe=recipe.name,
            name=step.name,
            step=step.key,
            stage=step.stage.name,
            config=step.config.model_dump(mode="json"),
            seed=step.seed,
            inputs={name: artifact.digest for name, artifact in inputs.items()},
            uses=dict(step.use),
            key=self.key,
            code=step.stage.code(step.config),
            machine=describe_machine(),
            started=now(),
        )

    def _note(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "fact" or (event["event"] == "metric" and event.get("at_step") is None):
            self.metrics[event["name"]] = event["value"]

    def run(self, *, refresh: bool) -> None:
        """Take the output from the store, or make it; then it is in `result`."""
        name = f"step-{self.key[:32]}"
        with self.store.lock(name, wait=False) as free:
            if free:
                return self._run(refresh)
        self.events.log(f"another run works on step {self.step.key!r}; waiting for it")
        with self.store.lock(name):
            return self._run(refresh)

    def _run(self, refresh: bool) -> None:
        found = None if refresh else find_done(self.store, self.key)
        if found is None:
            self._make()
        else:
            self._finish("cached", found[1], origin=found[0])
            # Whoever made it may have died between its last commit and the removal of its folder.
            shutil.rmtree(self.store.workdir(self.key), ignore_errors=True)

    def _make(self) -> None:
        # Whoever left a record "running" under this key is dead: its lock is ours.
        for stale in self.store.index.find_runs(key=self.key, status="running"):
            self.store.index.put_run(stale.model_copy(update={"status": "interrupted", "ended": now()}))
        self.store.index.put_run(self.record)
        told = {"config": dict(self.record.config), "seed": self.record.seed}
        self.events.emit("step", status="running", stage=self.step.stage.name, **told)
        workdir = self.store.workdir(self.key)
        context = Context(self.store, workdir, self.step.seed, self.events, self.step.name, executor=self.result.on)
        try:
            output = self.step.stage.function(context, self.step.config, **self.inputs)
            if not isinstance(output, tuple(KINDS.values())):
                raise TypeError(f"stage {self.step.stage.name} returned {type(output).__name__}, not an artifact")
        except KeyboardInterrupt:
            self._fail("cancelled", "stopped by a signal")
            raise
        except CatenaError as error:
            self._fail("failed", error.message)
            error.message = f"step {self.step.key!r}: {error.message}"
            raise
        except BaseException as error:
            known = environment_problem(error, self.store.root)
            (self.store.group_folder(self.result.group) / "error.txt").write_text(traceback.format_exc())
            self._fail("failed", str(known or f"{type(error).__name__}: {error}"))
            if known is None:
                raise
            known.message = f"step {self.step.key!r}: {known.message}"
            raise known from error
        parents = tuple(dict.fromkeys(self.record.inputs.values()))
        self._finish(
            "done", output.model_copy(update={"made_by": self.record.id, "parents": parents, "created": now()})
        )
        shutil.rmtree(workdir, ignore_errors=True)

    def _fail(self, status: RunStatus, message: str) -> None:
        self.record = self.record.model_copy(
            update={"status": status, "error": message, "ended": now(), "metrics": self.metrics}
        )
        self.result.runs[self.step.key] = self.record
        try:
            self.store.index.put_run(self.record)
            self.events.emit("step", status=status, stage=self.step.stage.name, message=message)
        except (CatenaError, OSError):
            # The disk that the step could not write to may refuse this record too; the next run marks it interrupted.
            return

    def _finish(self, status: RunStatus, output: Any, origin: Run | None = None) -> None:
        step, index = self.step, self.store.index
        metrics = {**self.metrics, **({"origin": origin.id} if origin else {})}
        profile = origin.profile if origin else getattr(output, "profile", {})
        self.record = self.record.model_copy(
            update={"status": status, "output": output.digest, "ended": now(), "metrics": metrics, "profile": profile}
        )
        moved = tuple(tag for tag in step.tags if index.tags(step.name).get((step.name, tag)) != output.digest)
        artifact, version = index.finish(self.record, output, step.name, moved)
        self.result.outputs[step.key] = artifact
        self.result.runs[step.key] = self.record
        self.result.names[step.key] = f"{step.name}@{version}"
        self.events.emit(
            "step",
            status=status,
            stage=step.stage.name,
            ref=f"{step.name}@{version}",
            kind=artifact.kind,
            digest=artifact.digest,
            seconds=self.record.seconds,
            tags=list(step.tags),
        )


def _write_report(store: Store, group: str, path: Path, events: Events) -> Path:
    from catena.flow.report import write_report

    written = write_report(store, group, path)
    events.emit("report", path=str(written))
    return written


def describe_machine() -> dict[str, Any]:
    """Return what a reader of old runs will want to know about the machine."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "pid": os.getpid(),
    }


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM stop a run as Ctrl-C does: stages get the chance to leave a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_: int, __: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
