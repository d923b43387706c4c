"""`catena up` while the workspace's PostgreSQL is away: it starts with what was known, says so, and mends by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import yaml

from catena.core.errors import EnvironmentProblem
from catena.govern.keys import Keys
from catena.hub.store import Store, open_store
from catena.serve.gateway.standing import Standing

from .conftest import REPLICA, eventually
from .postgres import PostgresServer, postgres_running


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_running() as server:
        yield server


@contextmanager
def up(folder: Path) -> Iterator[tuple[str, Path]]:
    """`catena up` of a deploy file that needs no stored model; gives its URL, and what it wrote for people."""
    deploy = {
        "port": 0,
        "models": {"m": {"script": [REPLICA, "--obey"]}},
        "govern": {"auth": {"on": True, "refresh_s": 0.2}, "audit": {"on": True}},
        "jobs": {"poll_s": 0.2},
    }
    (folder / "deploy.yaml").write_text(yaml.safe_dump(deploy))
    command = [sys.executable, "-m", "catena", "up", "deploy.yaml", "--json"]
    with (
        (folder / "err").open("w") as errors,
        subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ}
        ) as process,
    ):
        try:
            assert process.stdout is not None
            told = "".join(iter(process.stdout.readline, "}\n")) + "}"
            assert process.poll() is None, (folder / "err").read_text()
            yield json.loads(told)["url"].removesuffix("/v1"), folder / "err"
        finally:
            process.terminate()
            assert process.wait(60) == 0


def ask(url: str, key: str, path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
    head = {"authorization": f"Bearer {key}"} if key else {}
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    if more:
        return httpx.request(url=url + path, headers=head, timeout=60, trust_env=False, **more)
    return httpx.post(url + path, headers=head, json=body, timeout=60, trust_env=False)


def test_a_gateway_starts_while_the_database_is_away_and_mends_by_itself(
    tmp_path: Path, shared: Store, postgres: PostgresServer
) -> None:
    key, wide = (Keys(shared.index).create(name, name)[0] for name in ("user", "developer"))
    with up(tmp_path) as (url, errors):  # what is known is written down
        assert ask(url, key).status_code == 200
        ready = ask(url, "", "/ready", method="GET").json()
        assert ready["ready"] is True
        assert "away" not in ready
    postgres.stop()
    try:
        with up(tmp_path) as (url, errors):
            ready = ask(url, "", "/ready", method="GET")
            assert ready.status_code == 200, "its models answer"
            assert ready.json()["away"] == {"index": "it does not answer"}
            told = ask(url, wide, "/ready", method="GET").json()["away"]["index"]
            assert "cannot be used" in told, "who may see metrics learns why"
            assert "starting without the index" in errors.read_text()
            assert ask(url, key).status_code == 200
            assert ask(url, "ctn_x").status_code == 401
            assert ask(url, key, "/v1/batches", method="GET").status_code == 503
            postgres.start()
            eventually(lambda: "away" not in ask(url, "", "/ready", method="GET").json())
            eventually(lambda: ask(url, key, "/v1/batches", method="GET").status_code == 200)
            assert "the index answers again" in errors.read_text()
            shared.index.engine.dispose()  # its connections are those to the server that ended
            late = Keys(shared.index).create("late", "user")[0]
            eventually(lambda: ask(url, late).status_code == 200)
            Keys(shared.index).revoke("user")
            eventually(lambda: ask(url, key).status_code == 401)
    finally:
        postgres.start()


def test_a_store_without_its_index_is_opened_only_by_who_says_so(shared: Store, postgres: PostgresServer) -> None:
    postgres.stop()
    try:
        with pytest.raises(EnvironmentProblem):
            open_store(shared.root)
        opened = open_store(shared.root, without_index=True)
        assert opened.away is not None
        with pytest.raises(EnvironmentProblem):
            opened.check()
    finally:
        postgres.start()
    opened.check()
    assert opened.away is None
    opened.close()


def test_which_weights_a_name_stands_for_is_remembered_while_the_index_is_away(
    shared: Store, postgres: PostgresServer, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    model = shared.index.add_artifact(shared.put_model(tmp_path / "model", "full"))
    shared.index.add_name("helper", model.digest)
    standing = Standing(shared, tmp_path / "state")
    assert standing.digest_of("helper") == model.digest
    postgres.stop()
    try:
        later = Standing(shared, tmp_path / "state")
        assert later.digest_of("helper") == model.digest
        with pytest.raises(EnvironmentProblem):
            later.digest_of("helper@7")
        later.look()
        assert "cannot be used" in later.problem
    finally:
        postgres.start()
    later.look()
    assert later.problem == ""
