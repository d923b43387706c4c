"""Keys, tokens, passwords and headers that carry them appear nowhere: not in logs, metrics, traces, error bodies, the
audit, pages, processes, or any file that a gateway writes. All of it is driven with planted ones, and then searched.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import jwt
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from catena.core.config import parse
from catena.core.errors import EnvironmentProblem
from catena.govern.audit.reading import Query, entries
from catena.govern.config import AuditConfig, AuthConfig, GovernConfig, JwtConfig, ModerationConfig
from catena.govern.keys import Keys
from catena.hub.store import Store, init_store
from catena.serve.gateway.app import Gateway
from catena.serve.gateway.config import DeployConfig, TelemetryConfig
from catena.serve.gateway.traces import Traces
from catena.serve.governed import governed, sealer_of
from catena.serve.rules import RULES
from catena.serve.server import background

from .conftest import commands, eventually, mock

REDIS, UPSTREAM = "redis-hunter2-password", "upstream-hunter2-key"
BASIC, COOKIE = "basic-hunter2-word", "cookie-hunter2"
SIGNER = ed25519.Ed25519PrivateKey.generate()


@dataclass
class Driven:
    """A gateway, what is planted in it, and all that came out of it."""

    url: str
    store: Store
    state: Path
    spans: InMemorySpanExporter
    secrets: dict[str, str] = field(default_factory=dict)
    bodies: list[str] = field(default_factory=list)

    def ask(self, method: str, path: str, *heads: tuple[str, str], shown: str = "", **more: Any) -> httpx.Response:
        """Ask, and keep all that is answered; but for a key that is `shown` on purpose."""
        with httpx.Client(timeout=60, trust_env=False) as client:
            answer = client.request(method, self.url + path, headers=list(heads), **more)
        told = json.dumps([answer.status_code, dict(answer.headers), answer.text], ensure_ascii=False)
        if shown:
            self.secrets[shown] = answer.json()["key"]
        else:
            self.bodies.append(told)
        return answer

    def found_in(self, text: str | bytes) -> list[str]:
        """Name the planted secrets that stand in something; of keys and tokens also their secret parts alone."""
        data = text if isinstance(text, bytes) else text.encode()
        parts = {(name, part) for name, one in self.secrets.items() for part in (one, _secret_part(one))}
        return sorted({name for name, part in parts if part.encode() in data})


def _secret_part(one: str) -> str:
    """Return what is secret of a key (its number is not) or of a token, which both may have any letters in it."""
    return one.split("_", 2)[-1] if one.startswith("ctn_") else one.rpartition(".")[2]


def token(**changed: Any) -> str:
    claims = {"iss": "https://id.example", "aud": "catena", "sub": "eve", "roles": "user", "exp": time.time() + 600}
    return jwt.encode({**claims, **changed}, SIGNER, algorithm="EdDSA", headers={"kid": "1"})


@pytest.fixture
def driven(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driven]:
    """A gateway with everything on, whose Redis is away and whose second model wants a key of its own."""
    public = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(SIGNER.public_key()))
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [{**public, "kid": "1"}]}))
    monkeypatch.setenv("UPSTREAM_KEY", UPSTREAM)
    provider = JwtConfig(issuer="https://id.example", audience="catena", jwks=str(tmp_path / "keys.json"))
    govern = GovernConfig(
        auth=AuthConfig(on=True, refresh_s=0.2, jwt=provider),
        audit=AuditConfig(on=True),
        moderation=ModerationConfig(on=True),
    )
    redis = f"redis://:{REDIS}@127.0.0.1:1/0"
    values = {
        "port": 0,
        "models": {
            "m": mock("--digest", "d"),
            "away": {"urls": ["http://127.0.0.1:1"], "key_variable": "UPSTREAM_KEY", "replicas": {"min": 0}},
        },
        "limits": {"store": redis, "rules": [{"per": "key", "requests": "10000/minute"}]},
        "cache": {"store": redis},
        "routing": {"queue_s": 0.5, "connect_s": 0.5},
        "telemetry": {"gpus": False},
        "jobs": {"poll_s": 0.2},
    }
    deploy, spans, state = parse(DeployConfig, values), InMemorySpanExporter(), tmp_path / "state"
    with ExitStack() as stack:
        middleware = stack.enter_context(governed(store, govern, deploy.http))
        gateway = Gateway(
            deploy,
            state=state,
            commands=commands,
            middleware=middleware,
            traces=Traces(TelemetryConfig(), spans),
            sealer=sealer_of(store, govern),
        )
        keys = Keys(store.index)
        planted = {
            "redis": REDIS,
            "upstream": UPSTREAM,
            "basic": BASIC,
            "cookie": COOKIE,
            "admin": keys.create("root", "admin")[0],
            "user": keys.create("ada", "user")[0],
            "revoked": keys.create("old", "user")[0],
            "unknown": "ctn_000000000000_" + "k" * 43,
            "malformed": "ctn_not-a-key-but-still-a-secret",
            "token": token(),
            "old token": token(exp=time.time() - 600),
            "token of another": jwt.encode({"sub": "eve"}, "x" * 40, algorithm="HS256"),
        }
        keys.revoke("old")
        url = stack.enter_context(background(gateway, beside=gateway.running(), config=deploy.http))
        eventually(lambda: gateway.pools["m"].ready())
        yield Driven(url, store, state, spans, planted)


def drive(driven: Driven) -> None:
    """Show every secret in every place to every route, and use what can be used."""
    ask, chat = driven.ask, {"model": "m", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
    admin = ("authorization", f"Bearer {driven.secrets['admin']}")
    eventually(lambda: ask("GET", "/v1/models", admin).status_code == 200)
    for name, secret in list(driven.secrets.items()):
        for heads in (
            [("authorization", f"Bearer {secret}")],
            [("x-api-key", secret)],
            [("authorization", f"Basic {secret}"), ("cookie", f"session={secret}")],
            [("authorization", f"Bearer {secret}"), ("api-key", secret)],
        ):
            ask("POST", "/v1/chat/completions", *heads, json=chat)
        ask("GET", f"/v1/models?api_key={secret}&key={secret}")
        ask("POST", "/v1/chat/completions", ("authorization", f"Bearer {secret}"), content=b"{not json")
        assert name
    for path in RULES:
        filled = path.replace("{", "").replace("}", "").replace(":path", "")
        for method in ("GET", "POST", "DELETE"):
            ask(method, filled, admin, ("cookie", COOKIE), json={"model": "m"} if method == "POST" else None)
    user = ("authorization", f"Bearer {driven.secrets['user']}")
    for model in ("away", "no-such"):
        ask("POST", "/v1/chat/completions", user, json={**chat, "model": model})
    ask("POST", "/v1/chat/completions", user, json={**chat, "stream": True})
    ask("POST", "/v1/responses", user, json={"model": "m", "input": "hello", "background": True})
    made = ask("POST", "/admin/keys", admin, json={"name": "shop"}, shown="made over HTTP").json()
    ask("POST", f"/admin/keys/{made['id']}", admin, json={"act": "rotate"}, shown="rotated over HTTP")
    ask("GET", "/admin/keys", admin)
    ask("GET", "/admin/audit?limit=1000", admin)
    for page in ("/metrics", "/ready", "/health", "/docs", "/openapi.json"):
        assert ask("GET", page, admin).status_code == 200


def test_what_is_planted_is_found_nowhere(driven: Driven, caplog: pytest.LogCaptureFixture) -> None:
    for own in ("httpcore2", "httpx2"):  # the client that this test asks with
        caplog.set_level(logging.CRITICAL, own)
    caplog.set_level(logging.DEBUG)
    drive(driven)
    eventually(lambda: driven.ask("GET", "/ready").status_code == 200)
    # In what was answered.
    assert len(driven.bodies) > 150
    assert {name for told in driven.bodies for name in driven.found_in(told)} == set()
    # In what was logged. (The log of accesses, which has queries, goes nowhere: only pytest hears it.)
    assert not logging.getLogger("uvicorn.access").propagate
    logged = [record for record in caplog.records if record.name != "uvicorn.access"]
    assert any("Redis is away" in record.getMessage() for record in logged)
    for record in logged:
        told = " ".join([record.getMessage(), record.exc_text or "", str(record.args), str(record.exc_info or "")])
        assert driven.found_in(told) == [], told
    # In the audit, opened.
    told = [json.dumps(one, ensure_ascii=False) for one in entries(driven.store.root, AuditConfig(), Query())]
    assert len(told) > 150
    assert {name for one in told for name in driven.found_in(one)} == set()
    # In traces.
    spans = driven.spans.get_finished_spans() or eventually(driven.spans.get_finished_spans)
    assert {name for span in spans for name in driven.found_in(span.to_json())} == set()
    # In files: databases, segments, snapshots, change logs.
    files = [path for folder in (driven.store.root, driven.state) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert {(path.name, name) for path in files for name in driven.found_in(path.read_bytes())} == set()
    # In the command lines of replicas, which every user of the machine sees.
    lines = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert any("replica.py" in line for line in lines)
    assert {name for line in lines for name in driven.found_in(line)} == set()


def test_a_database_that_is_away_is_told_without_its_password(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from catena.hub.store import open_store
    from catena.serve.gateway.standing import Standing

    secret = "postgres-hunter2-password"
    with pytest.raises(EnvironmentProblem) as refused:
        init_store(tmp_path / "one", index_url=f"postgresql+psycopg://catena:{secret}@127.0.0.1:1/postgres")
    assert secret not in f"{refused.value} {refused.value.hint}"
    init_store(tmp_path / "two").close()
    described = tmp_path / "two" / "workspace.json"
    settings = json.loads(described.read_text())
    described.write_text(
        json.dumps({**settings, "index": f"postgresql+psycopg://catena:{secret}@127.0.0.1:1/postgres"})
    )
    store = open_store(tmp_path / "two", without_index=True)
    standing = Standing(store, tmp_path / "state")
    standing.look()
    store.close()
    assert standing.problem
    assert secret not in standing.problem + caplog.text
