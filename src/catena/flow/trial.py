"""One trial of a search: a step, and what measures it, run as `catena run RECIPE --set ...` would run them.

Told in JSON, answered in JSON: a trial runs in this process, in a worker (`python -m catena.flow.trial`) or on Ray, and
is the same everywhere. A worker reads a trial a line from standard input and writes events and results a line each.
"""

from __future__ import annotations

import json
import math
import os
import queue
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from catena.core.config import parse
from catena.core.errors import Cancelled, CatenaError, DataError, UsageError, did_you_mean
from catena.core.events import Listener
from catena.core.stage import stage_of
from catena.core.types import Artifact, ModelVersion, Report, Run
from catena.flow.plan import step_key
from catena.flow.recipe import Recipe, Step
from catena.flow.run import RecipeRun, run_recipe
from catena.flow.search import Trial
from catena.flow.space import Objective
from catena.flow.table import STAGES
from catena.hub.store import Store, open_store

RELAYED = frozenset({"progress", "metric"})
"""Events of a trial that whoever shows or keeps the search is told."""


class Pruned(Cancelled):
    """A trial was given up because its curve is worse than that of the others."""


def step_record(step: Step) -> dict[str, Any]:
    """Return a step as JSON that `step_from` reads."""
    return {
        "key": step.key,
        "stage": step.stage.name,
        "config": step.config.model_dump(mode="json"),
        "use": dict(step.use),
        "name": step.name,
        "seed": step.seed,
    }


def step_from(record: Mapping[str, Any]) -> Step:
    """Return the step that a record tells of; it puts no tags."""
    stage = stage_of(STAGES.load(record["stage"]))
    config = parse(stage.config, record["config"], where=record["stage"])
    return Step(record["key"], stage, config, record["use"], record["name"], (), record["seed"])


def run_trial(store: Store, work: Mapping[str, Any], listeners: Iterable[Listener] = ()) -> dict[str, Any]:
    """Run a trial and return a `Trial` as JSON.

    A training that diverges (`DataError`) is a result: the trial failed. Any other error stops the search.
    """
    steps = {record["key"]: step_from(record) for record in work["steps"]}
    objectives = [Objective.model_validate(item) for item in work["objectives"]]
    tuned = steps[work["tuned"]]
    watch = _Watch(tuned.key, objectives[0], {int(step): bar for step, bar in work["bars"].items()})
    recipe = Recipe(work["recipe"], steps, text=work["text"])
    trial = Trial(work["number"], work["phase"], work["values"])
    try:
        done = run_recipe(store, recipe, listeners=(*listeners, watch))
    except Pruned as error:
        key = step_key(tuned, {name: store.resolve(target) for name, target in tuned.use.items()})
        shutil.rmtree(store.workdir(key), ignore_errors=True)  # nobody goes on with it
        return asdict(trial) | {"status": "pruned", "scores": (watch.last,), "error": error.message}
    except DataError as error:
        return asdict(trial) | {"status": "failed", "error": error.message}
    return asdict(trial) | _measured(store, done, tuned.key, work["measure"], objectives)


class _Watch:
    """Follows the curve of the step that is tuned, and gives it up above the bar."""

    def __init__(self, step: str, objective: Objective, bars: Mapping[int, float]) -> None:
        self._step, self._metric, self._bars = step, objective.metric, bars
        self._sign = 1.0 if objective.goal == "lower" else -1.0
        self.last = 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] != "metric" or event.get("step") != self._step or event["name"] != self._metric:
            return
        at, self.last = event.get("at_step"), float(event["value"])
        if at is not None and self._sign * self.last > self._bars.get(at, math.inf):
            raise Pruned(f"given up at step {at}: {self._metric} {self.last:.5g} is worse than the median")


def _measured(
    store: Store, done: RecipeRun, tuned: str, measure: str | None, objectives: list[Objective]
) -> dict[str, Any]:
    from catena.flow.report_curves import curves_of, origin_of

    run, output = origin_of(store, done.runs[tuned]), done.outputs[tuned]
    curves = curves_of(store, done.runs[tuned])
    known = _numbers(run, output) | {name: points[max(points)] for name, points in curves.items()}
    for objective in objectives:
        if objective.point == "best" and objective.metric in curves:
            pick = min if objective.goal == "lower" else max
            known[objective.metric] = pick(curves[objective.metric].values())
    if measure is not None:
        known |= _numbers(origin_of(store, done.runs[measure]), done.outputs[measure]) | {"seconds": known["seconds"]}
    for objective in objectives:
        if objective.metric not in known:
            raise UsageError(
                f"the step {measure or tuned!r} tells of no metric {objective.metric!r}",
                hint=did_you_mean(objective.metric, known),
            )
    return {
        "scores": tuple(known[objective.metric] for objective in objectives),
        "curve": curves.get(objectives[0].metric, {}),
        "ref": done.names[tuned],
        "digest": output.digest,
        "seconds": run.seconds or 0.0,
    }


def _numbers(run: Run, output: Artifact) -> dict[str, float]:
    """Return every number that a finished step is known by."""
    known = {name: float(value) for name, value in run.metrics.items() if isinstance(value, int | float)}
    known["seconds"] = run.seconds or 0.0
    if isinstance(output, ModelVersion):
        known |= {"size": float(output.size), "parameters": float(output.parameters)}
    if isinstance(output, Report):
        known |= {name: score.value for name, score in output.scores.items()}
    return known


def run_remotely(root: str, line: str) -> dict[str, Any]:
    """Run a trial, told as a line of JSON, in the workspace at `root`; the result holds its `metrics` too."""
    store, metrics = open_store(Path(root)), []

    def keep(event: dict[str, Any]) -> None:
        if event["event"] == "metric":
            metrics.append(event)

    try:
        return {"trial": run_trial(store, json.loads(line), (keep,)), "metrics": metrics}
    finally:
        store.close()


def main() -> None:
    """Do the trials on standard input until it ends; what a stage prints goes to standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits, which ends this one
    store, waiting = open_store(Path(sys.argv[1])), queue.SimpleQueue[str]()
    threading.Thread(target=_read, args=(waiting,), daemon=True).start()

    def say(kind: str, value: Any) -> None:
        try:
            answers.write(json.dumps({kind: value}, default=str) + "\n")
            answers.flush()
        except BrokenPipeError:
            # Nobody waits any more. What is still buffered must not fail again when Python flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), answers.fileno())

    def relay(event: dict[str, Any]) -> None:
        if event["event"] in RELAYED:
            say("event", event)

    while line := waiting.get():
        try:
            say("trial", run_trial(store, json.loads(line), (relay,)))
        except CatenaError as error:
            say("problem", {"kind": type(error).__name__, "message": error.message, "hint": error.hint})
        except Exception as error:  # noqa: BLE001 - the process that waits raises it
            told = f"{type(error).__name__}: {error}"
            say("problem", {"kind": "", "message": told, "hint": "", "trace": traceback.format_exc()})


def _read(waiting: queue.SimpleQueue[str]) -> None:
    """Pass lines on. When whoever gives them is gone, what goes on is stopped: it leaves a checkpoint."""
    for line in sys.stdin:
        waiting.put(line)
    waiting.put("")
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
