"""Writers: the events of a run in other programs' forms, TensorBoard's files and MLflow's tracking.

    events -> TensorBoard   a folder for each step, <folder>/<recipe>-<group>/<step>, a scalar for each metric
           -> MLflow        a run for each step in the experiment <recipe>: its config, and metrics by step

Both are listeners of the event stream (`core.events`) and know nothing of training.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from catena.core.errors import RemoteError
from catena.core.events import Listener
from catena.core.registry import require

SEND_EVERY_S = 5.0
MOST_AT_ONCE = 500
"""Metrics in one request; MLflow takes 1000."""
LONGEST = 6000
"""Characters of an MLflow parameter."""
MOST_PARAMETERS = 100
"""Of one request, says MLflow."""


@contextmanager
def writers(tensorboard: Path | None = None, mlflow: str = "") -> Iterator[tuple[Listener, ...]]:
    """Give listeners that write to a TensorBoard folder and to an MLflow tracking URI, as far as these are given.

    Raises `MissingExtra` without the packages, and `RemoteError` where MLflow did not take everything.
    """
    with ExitStack() as held:
        listeners: list[Listener] = []
        if tensorboard is not None:
            board = TensorBoardWriter(tensorboard)
            held.callback(board.close)
            listeners.append(board)
        if mlflow:
            tracker = MlflowWriter(mlflow)
            held.callback(tracker.close)
            listeners.append(tracker)
        yield tuple(listeners)


class TensorBoardWriter:
    """Writes metrics as scalars, by the training step where they have one and at step 0 where not."""

    def __init__(self, folder: Path) -> None:
        require("tensorboard", "tensorboard")
        self._folder, self._run = folder, ""
        self._files: dict[str, Any] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "start":
            self.close()
            self._run = _run_name(event)
        elif event["event"] == "metric":
            self._write(event)

    def _write(self, event: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        step = str(event.get("step", ""))
        if step not in self._files:
            self._files[step] = EventFileWriter(str(self._folder / self._run / step.replace(" ", "-")))
        value = Summary.Value(tag=event["name"], simple_value=float(event["value"]))
        self._files[step].add_event(
            Event(wall_time=event["at"], step=event.get("at_step") or 0, summary=Summary(value=[value]))
        )

    def close(self) -> None:
        """Write what is buffered and close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()


class MlflowWriter:
    """Sends each step as an MLflow run; metrics go in batches.

    A server that is not there at the start is an error at once. One that goes away later does not stop a training:
    what it did not take is tried again with the next batch, and told of at the end.
    """

    def __init__(self, uri: str) -> None:
        # A training must not stand still for the minutes that MLflow tries by default.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        require("mlflow", "mlflow")
        from mlflow.tracking import MlflowClient

        self._uri, self._client = uri, MlflowClient(tracking_uri=uri)
        self._experiment, self._group = "", ""
        self._runs: dict[str, str] = {}
        self._waiting: list[tuple[str, Any]] = []
        self._sent = time.monotonic()
        self._problem: RemoteError | None = None

    def __call__(self, event: dict[str, Any]) -> None:
        kind, step = event["event"], str(event.get("step", ""))
        if kind == "start":
            self._end_all()
            with self._translated("begin an experiment"):
                self._begin(event)
        elif kind == "step" and event["status"] == "running":
            with self._kept("begin a run"):
                self._open(step, event)
        elif kind == "metric" and step in self._runs:
            self._add(step, event)
        elif kind == "step" and step in self._runs:
            self._send()
            self._end(step, event["status"])

    def _begin(self, event: Mapping[str, Any]) -> None:
        name = str(event.get("recipe") or "catena")
        found = self._client.get_experiment_by_name(name)
        self._experiment = found.experiment_id if found else self._client.create_experiment(name)
        self._group = str(event["group"])

    def _open(self, step: str, event: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        tags = {"catena.stage": str(event.get("stage", "")), "catena.group": self._group, "catena.step": step}
        run = self._client.create_run(self._experiment, run_name=f"{step} {self._group}", tags=tags)
        self._runs[step] = run.info.run_id
        parameters = [Param(name, text[:LONGEST]) for name, text in _flat(event.get("config") or {})]
        for start in range(0, len(parameters), MOST_PARAMETERS):
            self._client.log_batch(run.info.run_id, params=parameters[start : start + MOST_PARAMETERS])

    def _add(self, step: str, event: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        value = float(event["value"])
        if math.isfinite(value):
            metric = Metric(event["name"], value, round(1000 * event["at"]), event.get("at_step") or 0)
            self._waiting.append((self._runs[step], metric))
        if time.monotonic() - self._sent > SEND_EVERY_S:
            self._send()

    def _send(self) -> None:
        """Send what waits, a batch of one run after another."""
        self._sent = time.monotonic()
        try:
            with self._translated("take metrics"):
                while self._waiting:
                    run = self._waiting[0][0]
                    batch = [metric for owner, metric in self._waiting if owner == run][:MOST_AT_ONCE]
                    self._client.log_batch(run, metrics=batch)
                    taken = set(map(id, batch))
                    self._waiting = [item for item in self._waiting if id(item[1]) not in taken]
        except RemoteError:
            return  # what was not taken still waits

    def _end(self, step: str, status: str) -> None:
        ends = {"done": "FINISHED", "cached": "FINISHED", "cancelled": "KILLED"}
        run = self._runs.pop(step)
        with self._kept("end a run"):
            self._client.set_terminated(run, ends.get(status, "FAILED"))

    def _end_all(self) -> None:
        self._send()
        for step in list(self._runs):
            self._end(step, "cancelled")

    def close(self) -> None:
        """Send the rest. Raises `RemoteError` where the server did not take everything."""
        self._end_all()
        if self._waiting:
            raise RemoteError(
                f"MLflow at {self._uri} did not take {len(self._waiting)} metrics",
                hint="They are in the run's events.jsonl; look whether the tracking server is up.",
            )
        if self._problem is not None:
            raise self._problem

    @contextmanager
    def _kept(self, what: str) -> Iterator[None]:
        """Keep a problem for the end."""
        try:
            with self._translated(what):
                yield
        except RemoteError as error:
            self._problem = self._problem or error

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            raise RemoteError(
                f"MLflow at {self._uri} did not {what}: {str(error).splitlines()[0][:200]}",
                hint="Look whether the tracking server is up; without --mlflow the run needs none.",
            ) from error


def _run_name(event: Mapping[str, Any]) -> str:
    return f"{event.get('recipe') or 'catena'}-{event['group']}".replace("/", "-")


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Return `a.b` and the text of every value of a config."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value)
