"""An engine as a child process: started on a free port, waited for, watched, ended. Knows nothing of what it serves.

    start -> probe until it answers -> (crash, or silence, at any time: an error with the last lines of its log) -> stop

Between us and the engine stands `guard.py`, which ends with us and takes the engine along.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from catena.core.errors import EnvironmentProblem, PortInUse
from catena.infer.backends import guard

HOST = "127.0.0.1"
PROBE_S = 0.2
PROBE_TIMEOUT_S = 5.0
LAST_LINES = 12
AGAIN = 3
"""Times that another port is tried: someone may take a free one before the engine does."""
FOREIGN = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
"""Variables that speak of our Python and would mislead that of another environment."""
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True)
class Command:
    """How an engine is started, and how it is asked whether it is ready."""

    argv: Sequence[str]
    ready: str
    """Path that answers 200 as soon as requests are taken."""
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what, in seconds."""

    start: float = 600.0
    stop: float = 15.0


def free_port(wanted: int = 0) -> int:
    """Return a port on loopback that nobody listens on; raises `PortInUse` where `wanted` is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except OSError as error:
            raise PortInUse(
                f"port {wanted} on {HOST} is in use by another process", hint="Port 0 takes any free one."
            ) from error
        return int(probe.getsockname()[1])


class EngineProcess:
    """A running engine. `start` makes one."""

    def __init__(self, name: str, command: Command, port: int, patience: Patience) -> None:
        self.name, self.port, self.url = name, port, f"http://{HOST}:{port}"
        self._command, self._patience = command, patience
        self._folder = tempfile.TemporaryDirectory(prefix="catena-engine-")
        self.log = Path(self._folder.name) / "engine.log"
        kept = {key: value for key, value in os.environ.items() if key not in FOREIGN}
        with self.log.open("wb") as stream:
            try:
                self._child = subprocess.Popen(
                    [sys.executable, "-I", str(Path(guard.__file__)), str(patience.stop), *command.argv],
                    stdin=subprocess.PIPE,
                    stdout=stream,
                    stderr=stream,
                    env={**kept, **command.env},
                    start_new_session=True,
                )
            except OSError:
                self._folder.cleanup()
                raise

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._child.poll() is None

    def told(self) -> str:
        """Return the last lines of its log."""
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return ""
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        return "\n".join(lines[-LAST_LINES:])

    def ended(self, when: str) -> EnvironmentProblem:
        """Return the error for an engine that is gone: how it ended, and what it said last."""
        code = self._child.poll()
        if code is None:
            how = "does not answer any more"
        elif code > 128 and code - 128 in set(signal.Signals):
            how = f"was ended by {signal.Signals(code - 128).name}"
        else:
            how = f"ended with exit code {code}"
        said = self.told()
        tail = f" Its last lines:\n{said}" if said else " It said nothing."
        return EnvironmentProblem(f"{self.name} {how} {when}.{tail}".replace(" .", "."), hint="Start it again.")

    def answers(self, seconds: float = PROBE_TIMEOUT_S) -> bool:
        """Ask once whether it is ready."""
        try:
            with _LOCAL.open(self.url + self._command.ready, timeout=seconds) as response:
                return bool(response.status == 200)
        except (OSError, urllib.error.URLError, ValueError):
            return False

    def wait_ready(self) -> None:
        """Wait until it answers; raises `EnvironmentProblem` where it ends before, or takes too long."""
        deadline = time.monotonic() + self._patience.start
        while not self.answers():
            if not self.alive:
                raise self.ended("before it was ready")
            if time.monotonic() > deadline:
                said = self.told()
                raise EnvironmentProblem(
                    f"{self.name} was not ready after {self._patience.start:g} s. Its last lines:\n{said}",
                    hint="Give it longer: start_timeout_s.",
                )
            time.sleep(PROBE_S)

    def stop(self) -> None:
        """End it: at first politely, then for good. May be called twice."""
        if self._child.stdin is not None and not self._child.stdin.closed:
            self._child.stdin.close()
        try:
            self._child.wait(self._patience.stop + 5)
        except subprocess.TimeoutExpired:
            self._child.kill()  # the kernel takes the engine along
            self._child.wait()
        self._folder.cleanup()


def start(name: str, command_for: Callable[[int], Command], port: int, patience: Patience) -> EngineProcess:
    """Start an engine and wait until it is ready; `command_for` gives the command for a port (0: any free one).

    Raises `PortInUse` for a wanted port that is taken, `EnvironmentProblem` where the engine cannot be started.
    """
    for attempt in range(AGAIN):
        chosen = free_port(port)
        process = EngineProcess(name, command_for(chosen), chosen, patience)
        try:
            process.wait_ready()
        except BaseException as error:
            taken = not process.alive and not port and _says_taken(process.told())
            process.stop()
            if not (taken and isinstance(error, EnvironmentProblem)) or attempt == AGAIN - 1:
                raise
        else:
            return process
    raise AssertionError


def _says_taken(text: str) -> bool:
    lowered = text.lower()
    return any(words in lowered for words in ("address already in use", "couldn't bind", "failed to bind", "errno 98"))
