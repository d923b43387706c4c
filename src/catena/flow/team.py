"""Who runs the trials of a search: this process, several processes of this machine, or a Ray cluster.

Each takes trials as JSON and gives them back in the order in which they end; `tune.py` decides what that may matter.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from typing import IO, Any, cast

from catena.core.errors import EnvironmentProblem
from catena.core.events import Listener
from catena.flow.trial import RELAYED, run_remotely, run_trial
from catena.hub.store import Store

Work = Mapping[str, Any]
ATTEMPTS = 3
"""A trial that ends its process this often is not tried again."""
GRACE_S = 30.0
"""How long a process may take to leave a checkpoint when it is to end."""


def relay_to(listen: Listener, number: int) -> Listener:
    """Return a listener that passes progress and metrics of a trial on under the trial's name."""

    def relay(event: dict[str, Any]) -> None:
        if event["event"] in RELAYED:
            listen(event | {"step": f"trial {number}"})

    return relay


class Here:
    """One trial after another, in this process."""

    def __init__(self, store: Store, listen: Listener) -> None:
        self._store, self._listen = store, listen
        self._ended: list[dict[str, Any]] = []

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *about: object) -> None:
        pass

    def start(self, work: Work) -> None:
        """Run it at once."""
        self._ended.append(run_trial(self._store, work, (relay_to(self._listen, work["number"]),)))

    def next(self) -> dict[str, Any]:
        """Return the oldest that has ended."""
        return self._ended.pop(0)


class Processes:
    """Trials in processes of this machine, which share its processors. A process that dies is replaced."""

    def __init__(self, store: Store, jobs: int, listen: Listener) -> None:
        self._waiting: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[dict[str, Any] | BaseException] = queue.SimpleQueue()
        self._team = [_Worker(str(store.root), jobs, self._waiting, self._ended, listen) for _ in range(jobs)]

    def __enter__(self) -> Processes:
        for worker in self._team:
            worker.start()
        return self

    def __exit__(self, *about: object) -> None:
        for worker in self._team:
            self._waiting.put(None)
            worker.end()
        for worker in self._team:
            worker.kill()
            worker.join()

    def start(self, work: Work) -> None:
        """Hand it to whoever is free first."""
        self._waiting.put(work)

    def next(self) -> dict[str, Any]:
        """Wait for one to end."""
        found = self._ended.get()
        if isinstance(found, BaseException):
            raise found
        return found


class _Worker(threading.Thread):
    """A thread that keeps one process busy."""

    def __init__(self, root: str, jobs: int, waiting: Any, ended: Any, listen: Listener) -> None:
        super().__init__(daemon=True)
        self._root, self._jobs, self._waiting, self._ended, self._listen = root, jobs, waiting, ended, listen
        self._process: subprocess.Popen[str] | None = None
        self._leaving = False

    def run(self) -> None:
        """Run trials until there are none left or one has a problem."""
        try:
            while (work := self._waiting.get()) is not None:
                self._ended.put(self._do(work))
        except BaseException as error:  # noqa: BLE001 - it is raised again, in the thread that waits
            self._ended.put(error)
        self.end()

    def _do(self, work: Work) -> dict[str, Any]:
        relay = relay_to(self._listen, work["number"])
        for _ in range(ATTEMPTS):
            if self._leaving:
                break
            process = self._process = self._process or self._open()
            stdin, stdout = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)
            try:
                stdin.write(json.dumps(work) + "\n")
                stdin.flush()
                for line in stdout:
                    told = json.loads(line)
                    if "event" in told:
                        relay(told["event"])
                    elif "trial" in told:
                        return cast("dict[str, Any]", told["trial"])
                    else:
                        raise _problem(told["problem"])
            except (BrokenPipeError, ValueError):
                pass  # it died while it was told or read
            self._process = None
            _let_go(process)
        raise EnvironmentProblem(
            f"trial {work['number']} ended its process {ATTEMPTS} times",
            hint="Most likely memory ran out: use fewer --jobs. What was finished is kept.",
        )

    def _open(self) -> subprocess.Popen[str]:
        threads = max(1, (os.cpu_count() or 1) // self._jobs)
        environment = {
            "OMP_NUM_THREADS": str(threads),
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        command = [sys.executable, "-m", "catena.flow.trial", self._root]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def end(self) -> None:
        """Close the process's input: it leaves a checkpoint of what it is at, and ends."""
        self._leaving = True
        process = self._process
        if process is not None and process.stdin is not None:
            try:
                process.stdin.close()
            except OSError:
                return  # it was dead

    def kill(self) -> None:
        """End the process if it still runs."""
        process = self._process
        if process is None:
            return
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
        _let_go(process)


def _let_go(process: subprocess.Popen[str]) -> None:
    process.wait()
    for stream in (process.stdin, process.stdout):
        try:
            if stream is not None:
                stream.close()
        except OSError:
            continue  # what was written to a dead process


def _problem(told: dict[str, str]) -> BaseException:
    from catena.data.executors import problem_of

    return problem_of(told)


class OnRay:
    """Trials on the Ray cluster of RAY_ADDRESS, or on one that is started here. Its nodes must see the workspace."""

    def __init__(self, store: Store, jobs: int, listen: Listener) -> None:
        self._root, self._jobs, self._listen = str(store.root.resolve()), jobs, listen
        self._held = ExitStack()
        self._running: dict[Any, int] = {}

    def __enter__(self) -> OnRay:
        from catena.data.executors import connected

        self._ray: Any = self._held.enter_context(connected())
        self._remote = self._ray.remote(run_remotely).options(max_retries=ATTEMPTS, num_cpus=1)
        return self

    def __exit__(self, *about: object) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=False)
        self._held.close()

    def start(self, work: Work) -> None:
        """Submit it."""
        self._running[self._remote.remote(self._root, json.dumps(work))] = work["number"]

    def next(self) -> dict[str, Any]:
        """Wait for one to end; what it measured is told then, and not while it runs."""
        (reference,), _ = self._ray.wait(list(self._running), num_returns=1)
        relay = relay_to(self._listen, self._running.pop(reference))
        try:
            told = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        for event in told["metrics"]:
            relay(event)
        return cast("dict[str, Any]", told["trial"])


Team = Here | Processes | OnRay


def make_team(store: Store, on: str, jobs: int, listen: Listener) -> Team:
    """Return who runs `jobs` trials at once: "ray", or "local" processes (for one job, this process)."""
    if on == "ray":
        return OnRay(store, jobs, listen)
    return Processes(store, jobs, listen) if jobs > 1 else Here(store, listen)
