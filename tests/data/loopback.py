"""A real HTTP server on loopback whose answers are a function of the test, with a log of what was asked."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from catena.core.stage import Context
from catena.core.types import DatasetVersion

from .conftest import QuietServer
from .stores import run


@dataclass
class Asked:
    """One request."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]


@dataclass
class Reply:
    """What the server sends. `cut` bytes of a body that was announced whole, and then the connection ends."""

    body: bytes | str | dict[str, Any] | list[Any] = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None


@dataclass
class Loopback:
    """`answer` makes replies; `asked` is filled by the server."""

    answer: Callable[[Asked], Reply]
    url: str = ""
    asked: list[Asked] = field(default_factory=list)

    def paths(self) -> list[str]:
        return [entry.path for entry in self.asked]


@contextmanager
def loopback(answer: Callable[[Asked], Reply]) -> Iterator[Loopback]:
    """Run a server for the length of the block."""
    server = Loopback(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            headers = {key.lower(): value for key, value in self.headers.items()}
            asked = Asked(parts.path, dict(parse_qsl(parts.query, keep_blank_values=True)), headers)
            server.asked.append(asked)
            reply = server.answer(asked)
            body = reply.body
            if isinstance(body, dict | list):
                body = json.dumps(body)
            body = body.encode() if isinstance(body, str) else body
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if reply.status != 304:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            try:
                self.wfile.write(body if reply.cut is None else body[: reply.cut])
            except OSError:
                return
            self.close_connection = self.close_connection or reply.cut is not None

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    http = QuietServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


FAST = {"retries": 1, "backoff_s": 0, "requests_per_s": 10_000, "timeout_s": 5}


def collect(ctx: Context, stage: str, **values: Any) -> DatasetVersion:
    """Run a stage, and name its output as the runner would."""
    version = run(ctx, stage, values)
    ctx.store.index.add_artifact(version)
    ctx.store.index.add_name(ctx.name, version.digest)
    return version


def texts(ctx: Context, version: DatasetVersion) -> list[str]:
    return [sample.text for sample in ctx.store.open_dataset(version).samples()]


def reasons(ctx: Context, version: DatasetVersion) -> dict[str, str]:
    return {sample.metadata["key"]: why for sample, why, _ in ctx.store.open_dataset(version).rejects()}


def counts(version: DatasetVersion) -> dict[str, int]:
    return {name: count for name, count in version.profile["collect"].items() if count}


PARENT = """
import json, sys
from pathlib import Path
from catena.core.config import parse
from catena.core.events import Events
from catena.core.stage import Context, stage_of
from catena.flow.table import STAGES
from catena.hub.store import open_store
root, name, config = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
stage = stage_of(STAGES.load(name))
context = Context(open_store(root / ".catena"), root / "workdir", 7, Events(), "test")
stage.function(context, parse(stage.config, config))
"""


def start(root: Path, stage: str, values: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Run a stage in a process of its own, in the workspace and workdir of the fixtures."""
    command = [sys.executable, "-c", PARENT, str(root), stage, json.dumps(values)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)
