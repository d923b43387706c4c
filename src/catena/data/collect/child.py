"""Child processes that end with their parent, however it ends: their standard input is a pipe that only it holds."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

GRACE_S = 3.0


@contextmanager
def running(
    command: Sequence[str],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    talk: bool = False,
) -> Iterator[subprocess.Popen[str]]:
    """Run a child for the length of the block. What it says goes to `log`; with `talk`, its output goes to a pipe.

    The child has to end when its standard input ends. It has a session of its own, so that Ctrl-C reaches only us.
    """
    with log.open("ab") as stream:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if talk else stream,
            stderr=stream,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            text=True,
            start_new_session=True,
        )
    try:
        yield child
    finally:
        with contextlib.suppress(BrokenPipeError):
            if child.stdin is not None:
                child.stdin.close()
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if child.stdout is not None:
            child.stdout.close()


def end_with_parent() -> None:
    """Called in a child: leave at once when standard input ends, that is, when the parent is gone."""

    def watch() -> None:
        while os.read(0, 1):  # not through sys.stdin, whose lock would be held when the interpreter ends
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def last_lines(log: Path, count: int = 3) -> str:
    """Return the end of a child's log, on one line."""
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return " / ".join([line.strip() for line in lines if line.strip()][-count:])
