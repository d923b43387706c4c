"""Starting the processes of a training: on this machine, or on a Ray cluster. Any stage marked `@launched` can be.

This process then only watches: it hands the workers a spec, passes on what the main one tells, and returns what that
made.

    <workdir>/launch/spec.json       what to run (catena.train.worker)
                     events.jsonl    what the main worker tells, passed on as it comes
                     result.json     the artifact it made
                     error-0.json    why worker 0 ended; its output is in worker-0.log

If one worker dies, the others are ended and the first one's reason is raised. Nobody waits for ever: this process sees
every end at once, a worker that waits for another gives it up after `parallel.patience_s`, and all of them end with
this process.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from catena.core import errors
from catena.core.errors import CatenaError, EnvironmentProblem
from catena.core.registry import require
from catena.core.stage import Context
from catena.core.types import ARTIFACT, ArtifactBase
from catena.hub.files import write_atomically
from catena.train.parallel.contract import LISTENING, ProcessLost, is_worker, listen, sizes_of
from catena.train.settings import TrainConfig

Function = TypeVar("Function", bound=Callable[..., ArtifactBase])

LOOK_EVERY_S = 0.05
GRACE_S = 60.0
"""How long workers that are stopped may take to leave a checkpoint."""
MOURNING_S = 10.0
"""How long the others may take to notice that one has died, or to end when the main one has."""
LAST_WORDS = 400
"""Characters of its output that are shown of a worker that did not say why it ended."""
LOST = 255
"""The exit status of a worker whose machine is gone."""


def launched(function: Function) -> Function:
    """Let a training stage run on as many processes as its config's `parallel.processes` says.

    Stands between `@stage` and the function. In a process that is one of several already it changes nothing.
    """

    @functools.wraps(function)
    def run(ctx: Context, cfg: TrainConfig, **inputs: ArtifactBase | None) -> ArtifactBase:
        if is_worker() or cfg.parallel.processes < 2:
            return function(ctx, cfg, **inputs)
        return launch(ctx, cfg, function, inputs)

    return cast("Function", run)


def launch(
    ctx: Context, cfg: TrainConfig, function: Callable[..., ArtifactBase], inputs: Mapping[str, ArtifactBase | None]
) -> ArtifactBase:
    """Run a training stage in new processes and return what it makes.

    Raises what the first worker to fail raised, `ConfigError` where the processes cannot be shared as the config says.
    """
    processes = cfg.parallel.processes
    sizes_of(cfg.parallel, processes)
    folder = ctx.workdir / "launch"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_atomically(folder / "spec.json", json.dumps(_spec(ctx, cfg, function, inputs)).encode())
    team = RayTeam(folder, processes, cfg) if cfg.parallel.launcher == "ray" else LocalTeam(folder, processes)
    told = _Told(ctx, folder / "events.jsonl")
    try:
        codes = _watch(team, told)
    except BaseException:
        team.stop(signal.SIGTERM)
        _wait(team, GRACE_S)
        told.pass_on()
        raise
    finally:
        team.close()
    if any(codes):
        raise _first_problem(folder, codes)
    return ARTIFACT.validate_json((folder / "result.json").read_bytes())


def _spec(ctx: Context, cfg: TrainConfig, function: Any, inputs: Mapping[str, ArtifactBase | None]) -> dict[str, Any]:
    given = {name: artifact.model_dump(mode="json") for name, artifact in inputs.items() if artifact is not None}
    return {
        "workspace": str(ctx.store.root.resolve()),
        "stage": f"{function.__module__}:{function.__qualname__}",
        "config": cfg.model_dump(mode="json"),
        "inputs": given,
        "seed": ctx.seed,
        "workdir": str(ctx.workdir.resolve()),
        "name": ctx.name,
        "executor": ctx.executor,
        "workers": ctx.workers,
    }


class Process:
    """One worker, as a child of this process. On Ray it is an actor, and its child is on another machine."""

    def __init__(self, folder: str, rank: int) -> None:
        self.folder, self.rank = Path(folder), rank
        self._child: subprocess.Popen[bytes] | None = None
        self._listening: socket.socket | None = None

    def listen(self, anywhere: bool = True) -> tuple[str, int]:
        """Listen for the others in this worker's place until it starts; returns where: (host, port)."""
        self._listening = listen("" if anywhere else "127.0.0.1")
        name = "127.0.0.1"
        if anywhere:
            with suppress(OSError):
                name = socket.gethostbyname(socket.gethostname())
        return name, int(self._listening.getsockname()[1])

    def start(self, environment: Mapping[str, str]) -> None:
        """Start the worker; what it prints goes to a file."""
        command = [sys.executable, "-m", "catena.train.worker", str(self.folder / "spec.json")]
        paths = os.pathsep.join(filter(None, sys.path))
        given = {**os.environ, "PYTHONPATH": paths, **environment}
        handed = []
        if self._listening is not None:
            handed = [self._listening.fileno()]
            given[LISTENING] = str(handed[0])
        with (self.folder / f"worker-{self.rank}.log").open("wb") as log:
            # In a session of its own: Ctrl-C is for the process that watches, which tells its workers once.
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=given,
                start_new_session=True,
                pass_fds=handed,
            )
        if self._listening is not None:
            self._listening.close()

    def poll(self) -> int | None:
        """Return the exit status, once it has ended."""
        return None if self._child is None else self._child.poll()

    def signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)

    def close(self) -> None:
        """End it, if it still runs."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            assert self._child.stdin is not None
            self._child.stdin.close()


class LocalTeam:
    """Workers on this machine, which share its processors."""

    def __init__(self, folder: Path, processes: int) -> None:
        self._team = [Process(str(folder), rank) for rank in range(processes)]
        host, port = self._team[0].listen(anywhere=False)
        threads = max(1, (os.cpu_count() or 1) // processes)
        for process, contract in zip(self._team, contracts(processes, host, port), strict=True):
            process.start({"OMP_NUM_THREADS": str(threads), "LOCAL_RANK": contract["RANK"], **contract})

    def poll(self) -> list[int | None]:
        """Return every worker's exit status."""
        return [process.poll() for process in self._team]

    def stop(self, number: int) -> None:
        """Send a signal to all."""
        for process in self._team:
            process.signal(number)

    def close(self) -> None:
        """End whoever is left."""
        for process in self._team:
            process.close()


class RayTeam:
    """Workers on the Ray cluster of RAY_ADDRESS, or on one that is started here. Its nodes must see the workspace."""

    def __init__(self, folder: Path, processes: int, cfg: TrainConfig) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report home
        self._ray: Any = require("ray")
        self._begun = not self._ray.is_initialized()
        if self._begun:
            self._ray.init(log_to_driver=False, include_dashboard=False, logging_level="error")
        gpus = 1 if cfg.device == "cuda" or (cfg.device == "auto" and self._ray.cluster_resources().get("GPU")) else 0
        actor = self._ray.remote(num_cpus=1, num_gpus=gpus)(Process)
        path = str(folder.resolve())
        self._team = [actor.remote(path, rank) for rank in range(processes)]
        host, port = self._ray.get(self._team[0].listen.remote())
        # Ray gives each actor its own GPU as number 0.
        given = [{"LOCAL_RANK": "0", **contract} for contract in contracts(processes, host, port)]
        self._ray.get([process.start.remote(one) for process, one in zip(self._team, given, strict=True)])

    def poll(self) -> list[int | None]:
        """Return every worker's exit status."""
        return [self._asked(process.poll.remote(), LOST) for process in self._team]

    def stop(self, number: int) -> None:
        """Send a signal to all."""
        for asked in [process.signal.remote(int(number)) for process in self._team]:
            self._asked(asked, None)

    def close(self) -> None:
        """End whoever is left."""
        for asked in [process.close.remote() for process in self._team]:
            self._asked(asked, None)
        for process in self._team:
            self._ray.kill(process)
        if self._begun:
            self._ray.shutdown()

    def _asked(self, answer: Any, otherwise: int | None) -> int | None:
        """Return an actor's answer, or `otherwise` where its machine is gone."""
        try:
            found: int | None = self._ray.get(answer)
        except self._ray.exceptions.RayActorError:
            return otherwise
        return found


def contracts(processes: int, host: str, port: int) -> list[dict[str, str]]:
    """Return what each worker finds in its environment (catena.train.parallel.contract)."""
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": host, "MASTER_PORT": str(port)}
    common["CATENA_TRAINING"] = secrets.token_hex(16)
    return [{"RANK": str(rank), **common} for rank in range(processes)]


class _Told:
    """What the main worker tells, read as it is written."""

    def __init__(self, ctx: Context, path: Path) -> None:
        self._ctx, self._path, self._read = ctx, path, 0

    def pass_on(self) -> None:
        """Emit the events that have come since the last time; a line that is being written waits."""
        if not self._path.exists():
            return
        with self._path.open("rb") as stream:
            stream.seek(self._read)
            lines = stream.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            event = json.loads(line)
            self._ctx.events.emit(event.pop("event"), **{key: event[key] for key in event if key != "at"})


def _watch(team: LocalTeam | RayTeam, told: _Told) -> Sequence[int | None]:
    """Wait until all have ended, or one has failed; the others are then ended too."""
    while True:
        codes = team.poll()
        told.pass_on()
        if any(codes):
            # The others are often about to fail as well, in the middle of an exchange with the one that is gone.
            _wait(team, MOURNING_S)
            ended = team.poll()
            team.stop(signal.SIGUSR1)  # where the rest stands goes to its log
            _wait(team, MOURNING_S / 20)
            return [code if before is None else before for before, code in zip(codes, ended, strict=True)]
        if codes[0] == 0 and None in codes:
            _wait(team, MOURNING_S)  # what there is to make is made; who has not ended by then is ended
            return [code or 0 for code in team.poll()]
        if None not in codes:
            return codes
        time.sleep(LOOK_EVERY_S)


def _wait(team: LocalTeam | RayTeam, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while None in team.poll() and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S)


def _first_problem(folder: Path, codes: Sequence[int | None]) -> BaseException:
    """Return what to raise: the reason that was there first, and not what it did to the others."""
    told = []
    for rank, code in enumerate(codes):
        path = folder / f"error-{rank}.json"
        if path.exists():
            told.append((rank, json.loads(path.read_text())))
        elif code == LOST:
            return ProcessLost(
                f"the machine of process {rank} of the training is gone",
                hint="The same command goes on from the last checkpoint, on the machines that are left.",
            )
        elif code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = "Most often memory ran out." if code == -signal.SIGKILL else _last_words(folder, rank)
            return EnvironmentProblem(
                f"process {rank} of the training was ended by {name}",
                hint=f"{hint} The same command goes on from the last checkpoint.",
            )
    if any(code == 130 for code in codes) and all(reason["follows"] for _, reason in told):
        return KeyboardInterrupt("a process of the training was stopped")
    if not told:
        rank = next(rank for rank, code in enumerate(codes) if code)
        return EnvironmentProblem(
            f"processes of the training ended with the statuses {list(codes)}", hint=_last_words(folder, rank)
        )
    rank, first = min(told, key=lambda item: (item[1]["follows"], item[1]["class"] == "", item[1]["at"]))
    kind = ProcessLost if first["follows"] else getattr(errors, first["class"], CatenaError)
    raised: CatenaError = kind(first["message"], hint=first["hint"])
    if not first["class"]:
        raised = CatenaError(
            f"process {rank} of the training met something unexpected: {first['message']}",
            hint=f"The traceback is in {folder / f'worker-{rank}.log'}.",
        )
    return raised


def _last_words(folder: Path, rank: int) -> str:
    """Return the end of a worker's output, and where the rest is."""
    path = folder / f"worker-{rank}.log"
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    said = " | ".join(line.strip() for line in lines if line.strip())[-LAST_WORDS:] if lines else ""
    return f"{path} has what it said{f', at the end: {said}' if said else ''}."
