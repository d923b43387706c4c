"""gRPC before a gateway with real replicas: calls, streams, deadlines, codes, health, reflection, and governance."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx2 as httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from starlette.middleware import Middleware

from catena.core.config import parse
from catena.govern.audit.reading import Query, entries
from catena.govern.config import AuditConfig, AuthConfig, GovernConfig, ModerationConfig
from catena.govern.keys import Keys
from catena.hub.store import Store
from catena.serve.gateway.app import Gateway
from catena.serve.gateway.config import DeployConfig
from catena.serve.governed import governed
from catena.serve.grpc import catena_pb2 as pb, catena_pb2_grpc, server, service
from catena.serve.grpc.server import both, running as grpc_running
from catena.serve.server import background

from .conftest import Running, commands, eventually, mock

ROOT = Path(__file__).parents[3]
GOVERN = GovernConfig(auth=AuthConfig(on=True), audit=AuditConfig(on=True), moderation=ModerationConfig(on=True))


@dataclass
class Ready:
    """A gateway that answers over both protocols."""

    gateway: Running
    channel: Any
    stub: Any
    address: str


class Starter:
    """Starts gateways with a gRPC side."""

    def __init__(self, stack: ExitStack, state: Path) -> None:
        self._stack, self._state = stack, state

    def __call__(self, models: Any = None, middleware: Sequence[Middleware] = (), **config: Any) -> Ready:
        deploy = parse(DeployConfig, {"port": 0, "models": models or {"m": mock()}, **config})
        gateway = Gateway(deploy, state=self._state, commands=commands, middleware=middleware)
        ports: list[int] = []
        beside = both(gateway.running(), grpc_running(gateway, "127.0.0.1", 0, deploy.http, ports.append))
        url = self._stack.enter_context(background(gateway, beside=beside, config=deploy.http))
        made = Running(url, gateway, httpx.Client(timeout=60, trust_env=False))
        self._stack.callback(made.client.close)
        for name in deploy.models:
            made.ready(1, name)
        address = f"127.0.0.1:{ports[0]}"
        channel = self._stack.enter_context(grpc.insecure_channel(address))
        return Ready(made, channel, catena_pb2_grpc.CatenaStub(channel), address)


@pytest.fixture
def start_both(tmp_path: Path) -> Iterator[Starter]:
    """Return what starts a gateway with a gRPC side."""
    with ExitStack() as stack:
        yield Starter(stack, tmp_path / "state")


def chat(prompt: str, model: str = "m", **more: Any) -> pb.ChatRequest:
    return pb.ChatRequest(model=model, messages=[pb.Message(role="user", content=prompt)], **more)


def refused(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    with pytest.raises(grpc.RpcError) as error:
        call()
    found = error.value
    return found.code(), found.details(), dict(found.trailing_metadata())


def test_calls_answer_as_rest_does(start_both: Starter) -> None:
    ready = start_both()
    stub = ready.stub
    answer = stub.Chat(
        chat("hello there", sampling=pb.Sampling(max_tokens=9, seed=3, stop=["x"]), more_json='{"logit_bias": {}}')
    )
    assert answer.choices[0].message.content == "you said hello there to mock"
    assert (answer.choices[0].finish_reason, answer.usage.prompt_tokens, answer.model) == ("stop", 2, "mock")
    asked = ready.gateway.seen()[-1]["body"]
    assert (asked["max_tokens"], asked["seed"], asked["stop"], asked["logit_bias"]) == (9, 3, ["x"], {})
    assert "temperature" not in asked
    assert stub.Generate(pb.GenerateRequest(model="m", prompt="once")).choices[0].text == "you said once to mock"
    vectors = stub.Embed(pb.EmbedRequest(model="m", input=["ab", "b"])).vectors
    assert [list(one.values[:2]) for one in vectors] == [[1.0, 1.0], [0.0, 1.0]]
    assert [one.id for one in stub.ListModels(pb.ListModelsRequest()).models] == ["m"]


def test_streams_come_piece_by_piece(start_both: Starter) -> None:
    stub = start_both().stub
    pieces = list(stub.ChatStream(chat("a b c")))
    assert "".join(one.text for one in pieces) == "you said a b c to mock"
    assert [one.finish_reason for one in pieces if one.finish_reason] == ["stop"]
    assert len(pieces) > 5
    code, _, _ = refused(lambda: list(stub.ChatStream(chat("cut it"))))
    assert code == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_every_event_of_a_stream_is_a_piece_however_it_is_framed(end: bytes) -> None:
    stream = b": ping" + end * 2 + b'data: {"a": 1}' + end * 2 + b'data:{"b": 2}' + end * 2 + b"data: [DONE]"
    stream += end * 2 + b'data: {"c": 3}'

    async def check(size: int) -> list[Any]:
        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(stream), size):
                yield stream[at : at + size]

        return [event async for event in service._events(pieces())]

    for size in (1, 7, 1000):
        assert asyncio.run(check(size)) == [{"a": 1}, {"b": 2}, {"c": 3}]


def test_refusals_are_codes(start_both: Starter) -> None:
    stub = start_both(limits={"rules": [{"per": "all", "requests": "4/minute"}]}).stub
    code, message, more = refused(lambda: stub.Chat(chat("hi", model="nobody")))
    assert (code, more["catena-error-code"]) == (grpc.StatusCode.NOT_FOUND, "model_not_found")
    assert "nobody" in message
    assert refused(lambda: stub.Chat(chat("hi", model="")))[0] == grpc.StatusCode.INVALID_ARGUMENT
    for text in ("{", "[]", '{"model": "other"}', '{"stream": true}'):
        assert refused(lambda text=text: stub.Chat(chat("hi", more_json=text)))[0] == grpc.StatusCode.INVALID_ARGUMENT
    assert refused(lambda: list(stub.ChatStream(chat("status 422"))))[0] == grpc.StatusCode.FAILED_PRECONDITION
    assert refused(lambda: stub.Chat(chat("status 500")))[0] == grpc.StatusCode.UNAVAILABLE
    for _ in range(4):
        try:
            stub.Chat(chat("hi"))
        except grpc.RpcError as error:
            found: Any = error
            assert found.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert int(dict(found.trailing_metadata())["retry-after"]) > 0
            return
    raise AssertionError("the limit never held")


def test_what_nobody_thought_of_is_told_without_its_details(
    start_both: Starter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ready = start_both({"m": mock("--vectors", '{"data": "a secret"}', prewarm=False)})
    code, message, _ = refused(lambda: ready.stub.Embed(pb.EmbedRequest(model="m", input=["a"])))
    assert (code, "secret" in message, "Unexpected" in message) == (grpc.StatusCode.INTERNAL, False, False)

    def pieces(event: Any) -> Any:
        raise KeyError("a secret")

    monkeypatch.setattr(service.forms, "pieces", pieces)
    code, message, _ = refused(lambda: list(ready.stub.ChatStream(chat("hi"))))
    assert (code, "secret" in message, "Unexpected" in message) == (grpc.StatusCode.INTERNAL, False, False)
    assert caplog.text.count("a call of /v1/") == 2
    eventually(lambda: ready.gateway.gateway.pools["m"].running == 0)


def test_health_follows_the_gateway_also_where_it_fails(
    start_both: Starter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "LOOK_S", 0.05)
    ready = start_both()
    health = health_pb2_grpc.HealthStub(ready.channel)

    def state() -> Any:
        return health.Check(health_pb2.HealthCheckRequest()).status

    eventually(lambda: state() == health_pb2.HealthCheckResponse.SERVING)
    with monkeypatch.context() as patch:
        patch.setattr(server, "ask", broken)
        eventually(lambda: state() == health_pb2.HealthCheckResponse.NOT_SERVING)
    eventually(lambda: state() == health_pb2.HealthCheckResponse.SERVING)
    assert "cannot be asked for" in caplog.text


async def broken(*_: Any) -> Any:
    raise RuntimeError("broken")


def test_a_deadline_that_passes_stops_the_request(start_both: Starter) -> None:
    ready = start_both({"m": mock("--token-s", "0.5")})
    code, _, _ = refused(lambda: ready.stub.Chat(chat("sleep 4"), timeout=0.3))
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: ready.gateway.gateway.pools["m"].running == 0, 3)
    stream = ready.stub.ChatStream(chat("one two three four"))
    assert next(stream).text
    stream.cancel()
    eventually(lambda: ready.gateway.gateway.pools["m"].running == 0, 3)


def test_the_example_of_the_guide_runs(start_both: Starter, capsys: pytest.CaptureFixture[str]) -> None:
    ready = start_both({"helper": mock()})
    example = (ROOT / "docs" / "grpc.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    exec(example.replace("127.0.0.1:50051", ready.address), {})
    said = "you said What does os.walk do? to mock"
    assert capsys.readouterr().out == f"{said}\n{said}"


def test_health_and_reflection(start_both: Starter) -> None:
    ready = start_both()
    health = health_pb2_grpc.HealthStub(ready.channel)
    for name in ("", "catena.v1.Catena"):
        eventually(
            lambda name=name: (
                health.Check(health_pb2.HealthCheckRequest(service=name)).status
                == health_pb2.HealthCheckResponse.SERVING
            )
        )
    database = ProtoReflectionDescriptorDatabase(ready.channel)
    assert set(database.get_services()) >= {"catena.v1.Catena", "grpc.health.v1.Health"}
    found = database.FindFileContainingSymbol("catena.v1.Catena")
    assert [method.name for method in found.service[0].method][:2] == ["Chat", "ChatStream"]


def test_calls_are_governed(store: Store, start_both: Starter) -> None:
    keys = Keys(store.index)
    key, narrow = keys.create("ada", "user", models=("m",))[0], keys.create("bob", "user", actions=("models",))[0]
    config = parse(DeployConfig, {"models": {"m": mock()}, "govern": GOVERN})
    with governed(store, GOVERN, config.http) as middleware:
        ready = start_both({"m": mock(), "other": mock()}, middleware)
        stub, ada, bob = ready.stub, [("authorization", f"Bearer {key}")], [("authorization", f"Bearer {narrow}")]
        assert refused(lambda: stub.Chat(chat("hi")))[0] == grpc.StatusCode.UNAUTHENTICATED
        assert refused(lambda: stub.Chat(chat("hi"), metadata=bob))[0] == grpc.StatusCode.PERMISSION_DENIED
        assert refused(lambda: stub.Chat(chat("hi", "other"), metadata=ada))[0] == grpc.StatusCode.PERMISSION_DENIED
        code, _, more = refused(lambda: stub.Chat(chat("you sh1t"), metadata=ada))
        assert (code, more["catena-error-code"]) == (grpc.StatusCode.INVALID_ARGUMENT, "content_filter")
        answer = stub.Chat(chat("I am ada@corp.net"), metadata=ada)
        assert answer.choices[0].message.content == "you said I am [EMAIL] to mock"
        assert "[EMAIL]" in "".join(one.text for one in stub.ChatStream(chat("I am ada@corp.net"), metadata=ada))
        assert [one.id for one in stub.ListModels(pb.ListModelsRequest(), metadata=ada).models] == ["m"]
        told = list(entries(store.root, GOVERN.audit, Query(kind="answer")))
    assert [one["status"] for one in told][:6] == [401, 403, 403, 400, 200, 200]
    assert {one["client"] for one in told} == {"127.0.0.1"}
    assert {one["subject"] for one in told if one["status"] == 200} == {"ada"}


def test_the_code_is_what_the_protocol_says(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "grpc_code.py", tmp_path], check=True)
    made = sorted((tmp_path / "catena" / "serve" / "grpc").iterdir())
    assert [path.name for path in made] == ["catena_pb2.py", "catena_pb2.pyi", "catena_pb2_grpc.py"]
    for path in made:
        assert path.read_text() == (ROOT / "src/catena/serve/grpc" / path.name).read_text(), "scripts/grpc_code.py"
