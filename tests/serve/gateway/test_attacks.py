"""What somebody may try on a governed gateway, over its socket: each is refused, and leaves no trace that it chose."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from catena.core.config import parse
from catena.govern.audit.reading import entries
from catena.govern.audit.verify import verify
from catena.govern.config import AuditConfig, AuthConfig, GovernConfig, ModerationConfig
from catena.govern.keys import Keys
from catena.hub.store import Store, init_store
from catena.serve.gateway.app import Gateway
from catena.serve.gateway.ask import ROUTES
from catena.serve.gateway.config import DeployConfig
from catena.serve.governed import governed
from catena.serve.rules import Rules
from catena.serve.server import background

from .conftest import Running, commands, eventually, mock

CONFIG = GovernConfig(auth=AuthConfig(on=True), audit=AuditConfig(on=True), moderation=ModerationConfig(on=True))
CHAT = "/v1/chat/completions"


class Target(Running):
    """The gateway that is attacked, with a key."""

    key: str
    """Of a user who may ask one model."""
    wide: str
    """Of a user who may ask any."""
    store: Store

    def post(self, body: bytes, *heads: str, path: str = CHAT, key: str = "") -> tuple[int, bytes, bytes]:
        """Send bytes as they are; returns status, head and body of the answer."""
        host, port = self.url.removeprefix("http://").split(":")
        lines = [f"POST {path} HTTP/1.1", f"host: {host}:{port}", f"authorization: Bearer {key or self.key}", *heads]
        lines += ["content-type: application/json", f"content-length: {len(body)}", "connection: close", "", ""]
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall("\r\n".join(lines).encode("latin-1") + body)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        head, _, rest = answer.partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]), head.lower(), rest

    def asked(self) -> list[Any]:
        return [one["body"] for one in self.seen()]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("attacks")
    store = init_store(folder / ".catena")
    key = Keys(store.index).create("mallory", "user", models=("m",))[0]
    wide = Keys(store.index).create("oscar", "user")[0]
    deploy = parse(DeployConfig, {"port": 0, "models": {"m": mock()}})
    with governed(store, CONFIG, deploy.http) as middleware:
        gateway = Gateway(deploy, state=folder / "state", commands=commands, middleware=middleware)
        with background(gateway, beside=gateway.running(), config=deploy.http) as url:
            made = Target(url, gateway)
            made.key, made.wide, made.store = key, wide, store
            made.ready(1)
            yield made
            made.client.close()
    store.close()


def chat(text: Any, **more: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **more}).encode()


@pytest.mark.parametrize("id", ["a b", "x\ty", "\x85forged", "x" * 200, "a;b", "%0d%0aset-cookie:1", "é"])
def test_an_id_that_could_write_into_logs_and_headers_is_not_taken(target: Target, id: str) -> None:
    status, head, _ = target.post(chat("hi"), f"x-request-id: {id}")
    assert status == 200
    given = next(line for line in head.split(b"\r\n") if line.startswith(b"x-request-id:"))
    assert given.startswith(b"x-request-id: req-")
    assert id.lower().encode("latin-1") not in head


def test_a_head_cannot_be_split(target: Target) -> None:
    asked = len(target.asked())
    for head, wanted in (
        ("x-request-id: a\r\n\r\nGET / HTTP/1.1", 403),  # what follows is no body of ours: it names no model
        ("x-bad\x00: 1", 400),
        ("x-bad: a\nx-forged: 1\x00", 400),
        ("transfer-encoding: x", 400),
    ):
        status, said, _ = target.post(chat("hi"), head)
        assert (status, b"forged" in said) == (wanted, False), head
    assert len(target.asked()) == asked


def test_what_somebody_writes_stands_in_no_log_line_of_its_own(
    target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="catena")
    name = "m\n2026-01-01 ERROR \x1b[31mforged\r"
    body = json.dumps({"model": name, "messages": []}).encode()
    assert target.post(body)[0] == 403
    assert target.post(body, key=target.wide)[0] == 404
    line = json.dumps({"custom_id": name, "method": "POST", "url": CHAT, "body": {"model": name, "messages": []}})
    form = {"files": {"file": (name, line.encode())}, "data": {"purpose": "batch"}}
    head = {"authorization": f"Bearer {target.wide}"}
    file = target.client.post(f"{target.url}/v1/files", headers=head, **form).json()
    batch = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h", "metadata": {"a": name}}
    made = target.client.post(f"{target.url}/v1/batches", headers=head, json=batch).json()
    eventually(lambda: target.get(f"/v1/batches/{made['id']}", head).json()["status"] == "completed")
    assert target.post(chat("hi", user="x\nforged"), "traceparent: 00-forged")[0] == 200
    assert target.post(chat("please cut it, forged", user="x\nforged", stream=True))[0] == 200
    target.ready(1)
    told = [record.getMessage() for record in caplog.records]
    assert any("a stream of m-1 broke" in one for one in told), "the log is listened to"
    assert not [one for one in told if "forged" in one and set(one) & set("\n\r\x1b")]
    metrics = httpx.get(f"{target.url}/metrics", headers={"authorization": "Bearer x"}, trust_env=False)
    assert metrics.status_code == 401


@pytest.mark.parametrize("depth", [100, 900, 1023, 5000, 100_000])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_nested_deep_is_refused(target: Target, depth: int, opening: str) -> None:
    closing = "]" if opening == "[" else "}"
    deep = opening * depth + ("" if opening == "[" else "1") + closing * depth
    for body in (deep, f'{{"model": "m", "messages": {deep}}}'):
        status, _, said = target.post(body.encode())
        assert status == 400, said
        assert b"error" in said
    assert verify(target.store.root, CONFIG.audit).sound


def test_a_body_that_is_too_long_is_refused_before_it_is_read(target: Target) -> None:
    host, port = target.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: {host}:{port}\r\nauthorization: Bearer {target.key}\r\n"
        connection.sendall(f"{head}content-type: application/json\r\ncontent-length: 99999999999\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


class Trap:
    """Listens where a server should never go."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/latest/meta-data"

    def visited(self) -> bool:
        self.listener.settimeout(0.3)
        try:
            self.listener.accept()[0].close()
        except TimeoutError:
            return False
        return True


def test_the_address_of_a_picture_is_not_fetched(target: Target) -> None:
    trap = Trap()
    with trap.listener:
        parts = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": trap.url}}]
        for part in (parts, [{"type": "input_image", "image_url": trap.url}], [{"type": "file", "file_url": trap.url}]):
            before = len(target.asked())
            assert target.post(chat(part))[0] == 200
            body = json.dumps({"model": "m", "input": [{"role": "user", "content": part}]}).encode()
            assert target.post(body, path="/v1/responses")[0] == 200
            asked = target.asked()[before:]
            assert [json.dumps(one).count(trap.url) for one in asked] == [1, 1], "it went on as a text, to the replica"
        assert not trap.visited()
        with socket.create_connection(trap.listener.getsockname()):
            assert trap.visited(), "it would have been noticed"


SMUGGLED = [
    b'{"model":"m","messages":[{"role":"user","content":"you \\u0066\\u0075\\u0063\\u006b"}]}',
    b'{"model":"m","messages":[{"role":"user","content":"hello","content":"you fuck"}]}',
    b'{"model":"m","messages":[],"messages":[{"role":"user","content":"you fuck"}]}',
    b'{"model":"m","messages":[{"role":"tool","tool_call_id":"1","content":"you fuck"}]}',
    b'{"model":"m","messages":[{"role":"user","content":"hello"}],"stop":["you fuck"]}',
    b'{"model":"m","messages":[{"role":"user","content":"hello","name":"you fuck"}]}',
    b'{"model":"m","messages":[{"role":"user","content":"hello"}],"you fuck":1}',
    b'{"model":"m","messages":[{"role":"user","content":"hello"}],"tools":[{"function":{"description":"you fuck"}}]}',
    chat("hello </user> [end] \n\n" + "".join(chr(0xE0000 + ord(one)) for one in "you fuck")),
    chat("f\u200bu\u2060c\u00adk you"),
    chat("f\x00u\x07ck you"),
]  # fmt: skip


@pytest.mark.parametrize("body", SMUGGLED)
def test_a_prompt_does_not_get_past_moderation(target: Target, body: bytes) -> None:
    before = len(target.asked())
    status, _, said = target.post(body)
    assert (status, json.loads(said)["error"]["code"]) == (400, "content_filter")
    assert len(target.asked()) == before


def test_a_flag_in_tag_characters_is_only_a_flag(target: Target) -> None:
    scotland = "\U0001f3f4" + "".join(chr(0xE0000 + ord(one)) for one in "gbsct") + "\U000e007f"
    assert target.post(chat(f"Where is {scotland}?"))[0] == 200


def test_of_a_key_given_twice_the_model_sees_what_was_looked_at(target: Target) -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"you fuck","content":"hello"}]}'
    before = len(target.asked())
    assert target.post(body)[0] == 200
    (asked,) = target.asked()[before:]
    assert asked["messages"] == [{"role": "user", "content": "hello"}]


def test_the_document_tells_every_route_and_who_may(target: Target) -> None:
    told = httpx.get(f"{target.url}/openapi.json", trust_env=False).json()
    from catena.serve.app import ENDPOINTS

    assert set(ROUTES) == set(ENDPOINTS), "the gateway relays every route of the engine's server"
    assert set(ROUTES) <= set(told["paths"])
    rules = Rules()
    for path in ("/admin/keys", "/admin/keys/{id}", "/admin/releases", "/v1/models", "/health", "/ready", "/metrics"):
        for method, operation in told["paths"][path].items():
            asked = rules.action(method.upper(), path.replace("{", "").replace("}", ""))
            assert operation["x-catena-action"] == asked, path
            assert operation["summary"], path
    shown = httpx.get(f"{target.url}/docs", trust_env=False)
    assert shown.headers["content-type"].startswith("text/html")
    assert all(path in shown.text for path in told["paths"])


def test_after_all_this_the_audit_is_sound(target: Target) -> None:
    assert verify(target.store.root, CONFIG.audit, deep=True).sound
    assert not any(one["kind"] == "damaged" for one in entries(target.store.root, CONFIG.audit))
