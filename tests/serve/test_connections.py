"""The guard at the socket: slow heads, long heads, sleeping readers, too many connections."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx2 as httpx

from catena.infer.engine import Engine
from catena.serve.app import build_app
from catena.serve.config import ServeConfig
from catena.serve.server import background

from .asking import ASK, before_each_step, eventually, head


@contextmanager
def served(engine: Engine, **bounds: float) -> Iterator[str]:
    config = ServeConfig.model_validate(bounds)
    with background(build_app({"tiny": engine}, config=config), config=config) as url:
        yield url


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def rest(connection: socket.socket) -> bytes:
    received = b""
    while piece := connection.recv(1 << 16):
        received += piece
    return received


def error_of(received: bytes) -> tuple[int, str]:
    return int(received.split()[1]), json.loads(received.partition(b"\r\n\r\n")[2])["error"]["code"]


def test_a_head_that_drips_is_408(engine: Engine) -> None:
    with served(engine, header_timeout_s=0.4) as url, connect(url) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n")
        connection.settimeout(0.05)
        received, began = b"", time.monotonic()
        while not received:
            assert time.monotonic() - began < 10
            connection.sendall(b"x: y\r\n")
            try:
                received = connection.recv(1 << 16)
            except TimeoutError:
                continue
        assert error_of(received) == (408, "request_timeout")


def test_who_says_nothing_is_let_go(engine: Engine) -> None:
    with served(engine, header_timeout_s=0.3) as url, connect(url) as connection:
        try:
            assert connection.recv(1) == b""
        except ConnectionResetError:
            pass


def test_the_second_request_of_a_connection_has_a_clock_too(engine: Engine) -> None:
    with served(engine, header_timeout_s=0.4) as url, connect(url) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /hea")
        assert error_of(rest(connection))[0] == 408


def test_a_head_that_is_too_long_is_431(engine: Engine) -> None:
    with served(engine, max_header_bytes=4096) as url, connect(url) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"x: " + b"y" * 8000)
        assert error_of(rest(connection)) == (431, "headers_too_large")


def test_connections_over_the_bound_are_503_and_make_room_when_others_end(engine: Engine) -> None:
    with served(engine, max_connections=3) as url:
        held = [connect(url) for _ in range(3)]
        for connection in held:  # so that they are certainly taken
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        refused = httpx.get(f"{url}/health", timeout=20)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "too_many_connections"
        for connection in held:
            connection.close()
        eventually(lambda: httpx.get(f"{url}/health", timeout=20).status_code == 200)


def test_a_crowd_is_answered_or_refused_and_the_server_lives(engine: Engine) -> None:
    with served(engine, max_connections=50, header_timeout_s=1.0) as url:
        crowd = [connect(url) for _ in range(400)]
        statuses = set()
        for connection in crowd:
            try:
                connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                statuses.add(int(rest(connection).split()[1]))
            except (ConnectionError, IndexError):
                statuses.add(503)  # cut after its refusal was not read for a second
            connection.close()
        assert statuses <= {200, 503}
        eventually(lambda: httpx.get(f"{url}/health", timeout=20).status_code == 200)


def test_a_reader_that_sleeps_is_cut_and_its_answers_are_stopped(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(context=8192)
    before_each_step(engine, lambda: None)
    body = json.dumps({**ASK, "max_tokens": 8000, "n": 8, "stream": True, "logprobs": True, "top_logprobs": 20})
    with served(engine, send_timeout_s=0.3) as url, socket.socket() as connection:
        parts = urlsplit(url)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((parts.hostname, parts.port))
        connection.sendall(head(parts.netloc, len(body.encode())) + body.encode())
        eventually(lambda: engine.stats()["running"] > 0)
        eventually(lambda: engine.stats()["running"] + engine.stats()["waiting"] == 0)
    assert engine.stats()["cancelled_total"] == 8
    assert engine.stats()["cache_blocks_used"] == 0
