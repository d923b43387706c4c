"""up and serve --replicas over a real tiny model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from catena.hub.store import Store
from tests.cli.conftest import Catena
from tests.cli.test_model import QUESTION, folder as folder, workspace as workspace

DOCS = Path(__file__).resolve().parents[2] / "docs"


def worked_example(page: str) -> str:
    """The deploy file in a page of the documentation."""
    return re.findall(r"```yaml\n(# deploy.yaml\n.*?)```", (DOCS / page).read_text(), re.DOTALL)[0]


def test_the_pages_show_one_deploy_file() -> None:
    assert worked_example("gateway.md") == worked_example("gateway.zh.md")


def test_the_deploy_file_of_the_documentation_runs(workspace: Store, catena: Catena, tmp_path: Path) -> None:
    workspace.index.add_name("python-helper", workspace.resolve("tiny").digest)
    workspace.tag("python-helper", "production")
    file = tmp_path / "deploy.yaml"
    file.write_text(worked_example("gateway.md"))
    command = [sys.executable, "-m", "catena", "up", str(file), "--set", "port=0", "--json"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as child:
        try:
            assert child.stdout is not None
            told = json.loads("".join(iter(child.stdout.readline, "}\n")) + "}")
            url = told["url"]
            assert told["models"] == ["helper"]
            body = {"model": "helper", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 4, "seed": 1}
            answers = [httpx.post(f"{url}/chat/completions", json=body, timeout=60, trust_env=False) for _ in range(3)]
            assert {answer.json()["model"] for answer in answers} == {"helper"}
            assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers}) == 1
            asked = catena("chat", "tiny", QUESTION, "--url", url, "--max-tokens", "4", "--json")
            assert asked.code == 2, "it is called helper here"
        finally:
            child.terminate()
            child.communicate(timeout=60)
    assert child.returncode == 0
    assert (workspace.root / "gateway" / "answers.sqlite").exists()


def test_serve_takes_a_number_of_replicas(workspace: Store) -> None:
    command = [sys.executable, "-m", "catena", "serve", "tiny@production", "--replicas", "1", "--port", "0", "--json"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as child:
        try:
            assert child.stdout is not None
            told = json.loads("".join(iter(child.stdout.readline, "}\n")) + "}")
            assert told["models"] == ["tiny"]
        finally:
            child.terminate()
            child.communicate(timeout=60)
    assert child.returncode == 0


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("models: {}", 2, "models"),
        ("models: {m: {model: tiny, urls: ['http://x']}}", 2, "exactly one of model, script, urls and dns"),
        ("models: {m: {model: tiny, replica: {}}}", 2, "Did you mean 'replicas'"),
        ("models: {m: {model: tiny, replicas: {min: 3}}}", 2, "min (3) is more than max (1)"),
        ("models: {m: {model: tiny}}\nlimits: {rules: [{requests: often}]}", 2, "is no rate"),
        ("models: {m: {model: tiny}}\nlimits: {rules: [{requests: 1/second, models: [x]}]}", 2, "no model 'x'"),
        ("models: {m: {urls: ['ftp://x']}}", 2, "urls needs http:// or https:// and a host"),
        ("models: {m: {urls: ['http://x:port']}}", 2, "urls needs http:// or https:// and a host"),
        ("models: {m: {dns: 'service:8000'}}", 2, "dns needs http:// or https:// and a host"),
        ("models: {m: {model: tiny}}\ncache: {store: redis}", 2, "store is memory, sqlite or the URL of a Redis"),
        ("models: {m: {model: tiny}}\nlimits: {store: 'ftp://x'}", 2, "store is memory or the URL of a Redis"),
        ("models: {m: {model: tiny}}\ntelemetry: {otlp: 'collector:4318'}", 2, "otlp needs http://"),
        ("models: {m: {model: nothing}}", 3, "nothing"),
        ("models: [", 2, "not valid YAML"),
        ("no", 2, "a deployment is a mapping"),
    ],
)
def test_a_wrong_deploy_file_starts_nothing(
    workspace: Store, catena: Catena, tmp_path: Path, text: str, code: int, says: str
) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text(text)
    result = catena("up", str(file))
    assert (result.code, says in result.err) == (code, True), result.err


def test_a_state_folder_that_cannot_be_is_said(catena: Catena, workspace: Store, tmp_path: Path) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text("models: {m: {urls: ['http://127.0.0.1:9'], replicas: {min: 0}}}\nport: 0")
    for state in (file / "state", Path("/proc/nothing/state")):
        result = catena("up", str(file), "--set", f"state={state}")
        assert (result.code, "cannot be made" in result.err) == (5, True), result.err
    assert catena("up", str(tmp_path)).code == 3
    wrong = catena("up", str(file), "--set", "port=high")
    assert "docs/gateway.md" in wrong.err


@pytest.mark.parametrize("text", ["limits: {store: '%s'}", "cache: {store: '%s'}", "telemetry: {otlp: '%s'}"])
def test_a_password_in_a_wrong_url_is_not_repeated(catena: Catena, tmp_path: Path, text: str) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text("models: {m: {model: tiny}}\n" + text % "redsi://user:hunter2@host:6379/0")
    result = catena("up", str(file), "--check")
    assert result.code == 2
    assert "hunter2" not in result.err + result.out


def test_a_file_can_be_checked_without_starting_anything(catena: Catena, tmp_path: Path) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text("models: {m: {model: tiny, replicas: {max: 3}}}\ngovern: {auth: {on: true}}")
    told = catena("up", str(file), "--check", "--json", "--set", "models.m.replicas.min=2").json
    assert told["models"]["m"]["replicas"]["min"] == 2
    assert told["govern"]["auth"]["on"] is True
    assert catena("up", str(tmp_path / "none.yaml")).code == 3


def test_keys_stand_before_the_gateway(workspace: Store, catena: Catena, tmp_path: Path) -> None:
    key = catena("keys", "create", "ada", "--role", "developer", "--json").json["key"]
    narrow = catena("keys", "create", "bob", "--model", "other*", "--json").json["key"]
    script = str(Path(__file__).parent.parent / "serve" / "gateway" / "replica.py")
    deploy = {
        "port": 0,
        "models": {"m": {"script": [script]}},
        "govern": {"auth": {"on": True}},
        "limits": {"rules": [{"per": "key", "requests": "1000/hour", "roles": ["developer"]}]},
    }
    file = tmp_path / "deploy.yaml"
    file.write_text(json.dumps(deploy))
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-m", "catena", "up", str(file), "--json"], **pipes) as child:
        try:
            assert child.stdout is not None
            url = json.loads("".join(iter(child.stdout.readline, "}\n")) + "}")["url"]

            def ask(secret: str, path: str = "/chat/completions") -> int:
                body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
                headers = {"authorization": f"Bearer {secret}"} if secret else {}
                return httpx.post(url + path, json=body, headers=headers, timeout=60, trust_env=False).status_code

            assert (ask(""), ask("wrong"), ask(narrow), ask(key)) == (401, 401, 403, 200)
            root = url.removesuffix("/v1")
            assert httpx.get(f"{root}/ready", trust_env=False).status_code == 200
            assert httpx.get(f"{root}/metrics", trust_env=False).status_code == 401
        finally:
            child.terminate()
            child.communicate(timeout=60)
