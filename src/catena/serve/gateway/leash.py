"""What a replica's process begins with: it lives only as long as the gateway that started it.

    python -m catena.serve.gateway.leash FD catena serve MODEL ...
    python -m catena.serve.gateway.leash FD script.py ...

FD is the reading end of a pipe whose writing end only the gateway holds. However the gateway ends, also by `kill -9`,
the system closes that end; the replica then stops as at SIGTERM, and at once after a few seconds.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

from catena.serve.running import REPLICA

LAST_SECONDS = 5.0


def watch(descriptor: int) -> None:
    """End this process when the other end of the pipe is closed."""
    while os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LAST_SECONDS)
    os._exit(1)


def main() -> None:
    """Watch the pipe, and become the program."""
    descriptor, program, *arguments = sys.argv[1:]
    threading.Thread(target=watch, args=(int(descriptor),), name="catena-leash", daemon=True).start()
    sys.argv, os.environ[REPLICA] = [program, *arguments], "1"
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
