"""A real PostgreSQL on loopback that can be stopped and started again."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hub.conftest import find_postgres

PATIENCE_S = 300.0


class PostgresServer:
    """A server; what was committed survives a stop."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        # It refuses root.
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user:
            os.chown(folder, pwd.getpwnam(self._user).pw_uid, -1)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"postgresql+psycopg://catena@127.0.0.1:{self._port}/postgres"
        self._process: subprocess.Popen[bytes] | None = None
        initdb = [str(programs / "initdb"), "-D", str(folder / "data"), "-U", "catena", "-A", "trust", "--no-sync"]
        environment = {"LC_ALL": "C.UTF-8"}
        subprocess.run(
            [*initdb, "-E", "UTF8"], user=self._user, cwd=folder, env=environment, capture_output=True, check=True
        )

    def start(self) -> None:
        """Start it, and wait until it answers; nothing happens to one that runs."""
        if self._process is not None:
            return
        place = ["-h", "127.0.0.1", "-p", str(self._port)]
        server = [str(self._programs / "postgres"), "-D", str(self._folder / "data"), *place, "-k", str(self._folder)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(server, user=self._user, cwd=self._folder, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE_S
        while subprocess.run([str(self._programs / "pg_isready"), "-q", *place], check=False).returncode != 0:
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL did not start"
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it at once: connections break."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(PATIENCE_S)
            self._process = None


@contextmanager
def postgres_running() -> Iterator[PostgresServer]:
    """Run a server; skips where there is none, and fails where CI says that there must be."""
    programs = find_postgres()
    if programs is None:
        message = "PostgreSQL is not installed (apt-get install postgresql)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with tempfile.TemporaryDirectory(prefix="catena-pg-", dir="/tmp") as name:
        server = PostgresServer(programs, Path(name))
        server.start()
        try:
            yield server
        finally:
            server.stop()
