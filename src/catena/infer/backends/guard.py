"""Stands between Catena and an engine: the engine and all that it started end when Catena does, however it ends.

    python -I guard.py SECONDS PROGRAM ARGUMENTS...

Standard input is a pipe that only the parent holds. When it ends, or at SIGTERM, the engine gets SIGTERM, and after so
many seconds SIGKILL, with every process of its session. The exit code is the engine's own. No imports of Catena: this
file is run by itself.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def end_with_guard() -> None:
    """Called in the engine before it runs: the kernel kills it where even this guard was killed (Linux)."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        pass


def signal_group(child: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to the engine and to all processes of its session's group."""
    try:
        os.killpg(child.pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def main(arguments: Sequence[str]) -> int:
    """Run the engine until it ends or is to end; return its exit code, 128 and more for a signal."""
    seconds, command = float(arguments[0]), list(arguments[1:])
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=end_with_guard if os.name == "posix" else None,
    )

    def stop(*_: object) -> None:
        def kill() -> None:
            signal_group(child, signal.SIGKILL)

        signal_group(child, signal.SIGTERM)
        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()

    def watch() -> None:
        while os.read(0, 4096):
            pass
        stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    signal_group(child, signal.SIGKILL)  # workers that outlived it
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
