"""A real Redis on a unix socket."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class RedisServer:
    """A server that can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "r.sock"
        self.url = f"unix://{self._socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = ["--port", "0", "--unixsocket", str(self._socket), "--save", "", "--dir", str(self._socket.parent)]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(["redis-server", *options], stdout=quiet, stderr=quiet)
        ping = ["redis-cli", "-s", str(self._socket), "ping"]
        deadline = time.monotonic() + 30
        while subprocess.run(ping, capture_output=True, text=True, check=False).stdout.strip() != "PONG":
            assert time.monotonic() < deadline, "Redis did not start"
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it; what it held is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None


@contextmanager
def redis_running() -> Iterator[RedisServer]:
    """Run a server; skips where there is none, and fails where CI says that there must be."""
    if shutil.which("redis-server") is None:
        message = "Redis is not installed (apt-get install redis-server)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with tempfile.TemporaryDirectory(prefix="catena-redis-", dir="/tmp") as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()
