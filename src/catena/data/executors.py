"""Who works on shards: processes of this machine, or a Ray cluster. Both do every shard, or raise.

A local worker is `python -m catena.data.worker`, which is given shards as lines of JSON and answers with a line for
each: nothing is pickled, and a script that calls a stage needs no `if __name__ == "__main__"`.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import IO, TYPE_CHECKING, Any, cast

from catena.core import errors
from catena.core.errors import CatenaError, EnvironmentProblem
from catena.core.registry import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from catena.data.shards import Shard

Finished = Callable[["Shard"], None]
# A shard that ends its worker this often is not tried again.
ATTEMPTS = 3
IN_FLIGHT = 4


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_local(shards: Sequence[Shard], workers: int, finished: Finished) -> None:
    """Do the shards in `workers` processes; with one, in this process."""
    from catena.data.shards import run_shard

    if workers <= 1:
        for shard in shards:
            run_shard(shard)
            finished(shard)
        return
    waiting: queue.SimpleQueue[Shard] = queue.SimpleQueue()
    for shard in shards:
        waiting.put(shard)
    problems: list[BaseException] = []
    team = [_Worker(waiting, finished, problems) for _ in range(workers)]
    for worker in team:
        worker.start()
    try:
        for worker in team:
            worker.join()
    except BaseException as error:
        problems.append(error)  # so that no worker is started again
        raise
    finally:
        for worker in team:
            worker.stop()
    if problems:
        raise problems[0]


class _Worker(threading.Thread):
    """A thread that keeps one worker process busy, and starts another if that one dies."""

    def __init__(self, waiting: queue.SimpleQueue[Shard], finished: Finished, problems: list[BaseException]) -> None:
        super().__init__(daemon=True)
        self._waiting, self._finished, self._problems = waiting, finished, problems
        self._process: subprocess.Popen[str] | None = None

    def run(self) -> None:
        """Do shards until there are none left, or one of the team has a problem."""
        try:
            while not self._problems:
                try:
                    shard = self._waiting.get_nowait()
                except queue.Empty:
                    return
                self._do(shard)
                self._finished(shard)
        except BaseException as error:  # noqa: BLE001 - it is raised again, in the thread that waits
            self._problems.append(error)
        finally:
            self.stop()

    def _do(self, shard: Shard) -> None:
        for _ in range(ATTEMPTS):
            if self._problems:
                raise self._problems[0]
            process = self._process = self._process or _start()
            stdin, stdout = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)
            try:
                stdin.write(shard.to_json() + "\n")
                stdin.flush()
                answer = stdout.readline()
            except (BrokenPipeError, ValueError):
                answer = ""
            if answer:
                problem = json.loads(answer).get("problem")
                if problem:
                    raise problem_of(problem)
                return
            self.stop()
        raise EnvironmentProblem(
            f"the rows {shard.start} to {shard.stop} ended their worker {ATTEMPTS} times",
            hint="Most likely memory ran out: use fewer workers.",
        )

    def stop(self) -> None:
        """End the worker process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    try:
                        stream.close()
                    except OSError:  # what was written to a dead process
                        continue


def _start() -> subprocess.Popen[str]:
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "catena.data.worker"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def problem_of(told: dict[str, str]) -> BaseException:
    """Return the error that a worker told of."""
    kind = getattr(errors, told["kind"], None)
    if isinstance(kind, type) and issubclass(kind, CatenaError):
        return kind(told["message"], hint=told["hint"])
    return RuntimeError(f"a worker failed: {told['message']}\n{told['trace']}")


def run_on_ray(shards: Sequence[Shard], workers: int, finished: Finished) -> None:
    """Do the shards on the Ray cluster of RAY_ADDRESS, or on one that is started here for as long as it is needed."""
    from catena.data.shards import run_shard

    with connected() as ray:
        remote = ray.remote(run_shard).options(max_retries=ATTEMPTS, num_cpus=1)
        waiting = list(reversed(shards))
        running: dict[Any, Shard] = {}
        while waiting or running:
            while waiting and len(running) < max(workers, 1) * IN_FLIGHT:
                shard = waiting.pop()
                running[remote.remote(shard)] = shard
            ready, _ = ray.wait(list(running), num_returns=1)
            for reference in ready:
                try:
                    ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                finished(running.pop(reference))


@contextmanager
def connected() -> Iterator[Any]:
    """Hold a connection to the Ray cluster of RAY_ADDRESS, or to one that is started here; gives the module `ray`.

    It ends with the block, or with the block of `one_cluster` around it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report home
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray: Any = require("ray", "ray")
    held = _held.get()
    with nullcontext(held) if held is not None else ExitStack() as stack:
        if not ray.is_initialized():
            stack.callback(ray.shutdown)
            _connect(ray)
        yield ray


@contextmanager
def one_cluster() -> Iterator[None]:
    """Let all work of the block share the connection that the first of it makes: a start takes Ray some seconds."""
    with ExitStack() as stack:
        token = _held.set(stack)
        try:
            yield
        finally:
            _held.reset(token)


_held: ContextVar[ExitStack | None] = ContextVar("held", default=None)
"""What `one_cluster` closes at its end."""


def _connect(ray: Any) -> None:
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False}
    if address is None:
        os.environ.setdefault("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # its workers inherit it
        options |= {"num_cpus": processors(), "include_dashboard": False}
    ray.init(address=address, **options)


EXECUTORS: dict[str, Callable[[Sequence[Shard], int, Finished], None]] = {"local": run_local, "ray": run_on_ray}
