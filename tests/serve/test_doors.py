"""What comes in at the door: which Host, which content type, and how slowly."""

from __future__ import annotations

import json
import socket
import time
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest
from starlette.types import Message, Scope

from catena.infer.engine import Engine
from catena.serve.app import build_app
from catena.serve.config import ServeConfig
from catena.serve.hosts import BOUND, LoopbackHosts, host_name
from catena.serve.server import background

from .asking import ASK, eventually, head, post


def exchange(url: str, request: bytes) -> tuple[int, bytes]:
    """Send bytes as they are; return the status and everything that came."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall(request)
        received = b""
        while piece := connection.recv(1 << 16):
            received += piece
    return int(received.split()[1]), received


def get(host: str, path: str = "/v1/models") -> bytes:
    return f"GET {path} HTTP/1.1\r\n{host}connection: close\r\n\r\n".encode()


# -- the Host header -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:80"])
def test_this_machines_own_names_are_answered(url: str, host: str) -> None:
    assert exchange(url, get(f"host: {host}\r\n"))[0] == 200


BAD_HOSTS = ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evil@localhost"]


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/metrics", "/no/such/place"])
@pytest.mark.parametrize("headers", [*(f"host: {host}\r\n" for host in BAD_HOSTS), "", "host: \r\n"])
def test_another_host_is_refused_on_loopback_whatever_is_asked(url: str, headers: str, path: str) -> None:
    status, received = exchange(url, get(headers, path))
    assert status == 421
    error = json.loads(received.partition(b"\r\n\r\n")[2])["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "unknown_host")


def test_two_hosts_are_refused(url: str) -> None:
    assert exchange(url, get("host: localhost\r\nhost: evil.example\r\n"))[0] == 421


def test_hosts_of_the_config_are_answered_too(engine: Engine) -> None:
    app = build_app({"tiny": engine}, config=ServeConfig(hosts=("models.example",)))
    with background(app) as url:
        assert exchange(url, get("host: Models.Example:443\r\n"))[0] == 200
        assert exchange(url, get("host: other.example\r\n"))[0] == 421


def test_a_server_for_other_machines_answers_to_any_name(engine: Engine) -> None:
    with background(build_app({"tiny": engine}), host="0.0.0.0") as url:
        assert exchange(url, get("host: models.example\r\n"))[0] == 200


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        ({"server": ("127.0.0.1", 80)}, 421),
        ({"server": ("10.0.0.7", 80)}, 200),
        ({"server": ("/run/catena.sock", None)}, 200),
        ({"server": None}, 200),
        ({"server": ("127.0.0.1", 80), BOUND: "0.0.0.0"}, 200),
        ({"server": None, BOUND: "::1"}, 421),
    ],
)
def test_where_the_server_listens_decides(scope: Scope, status: int) -> None:
    sent: list[Message] = []

    async def app(*_: object) -> None:
        sent.append({"status": 200})

    async def send(message: Message) -> None:
        sent.append(message)

    whole = {"type": "http", "headers": [(b"host", b"evil.example")], **scope}
    with pytest.raises(StopIteration):
        LoopbackHosts(app)(whole, app, send).send(None)  # type: ignore[arg-type, attr-defined]
    assert sent[0]["status"] == status


def test_a_malformed_host_has_no_name() -> None:
    assert [host_name(text) for text in ("a:b", "[::1", "a b", "", "x:1:2", "[::1]x")] == [""] * 6


# -- the content type ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_that_is_not_declared_as_json_is_415(url: str, type: str) -> None:
    response = post(url, ASK, headers={"content-type": type} if type else {})
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_media_type"


def test_json_with_a_charset_is_taken(url: str) -> None:
    answered = post(url, {**ASK, "max_tokens": 2}, headers={"content-type": "Application/JSON; charset=utf-8"})
    assert answered.status_code == 200


# -- slow bodies ---------------------------------------------------------------------------------------------------


def test_a_body_that_does_not_arrive_is_408_and_frees_its_place(engine: Engine) -> None:
    app = build_app({"tiny": engine}, config=ServeConfig(body_timeout_s=0.3))
    with background(app) as url:
        began = time.monotonic()
        status, received = exchange(url, head(urlsplit(url).netloc, 1000) + b'{"model": ')
        assert time.monotonic() - began < 10
        assert status == 408  # and the connection is closed: everything has been read
        assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
        eventually(lambda: 'catena_requests_in_flight{route="chat"} 0' in httpx.get(f"{url}/metrics").text)


def test_dripping_does_not_make_the_time_longer(engine: Engine) -> None:
    app = build_app({"tiny": engine}, config=ServeConfig(body_timeout_s=0.5))
    with background(app) as url:
        parts = urlsplit(url)
        with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
            connection.sendall(head(parts.netloc, 1000))
            connection.settimeout(0.1)
            received, began = b"", time.monotonic()
            while not received:
                assert time.monotonic() - began < 10
                connection.sendall(b" ")
                try:
                    received = connection.recv(1 << 16)
                except TimeoutError:
                    continue
    assert received.startswith(b"HTTP/1.1 408")
