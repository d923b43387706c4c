"""The console behind a gateway's address: pages, the websocket, signing in, and what is not its business."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.console.conftest import START_S, Small, Visit

REPLICA = Path(__file__).parent.parent / "serve" / "gateway" / "replica.py"
pytestmark = pytest.mark.xdist_group("console")


@pytest.fixture(scope="module")
def gateway(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `catena up` with `console: true` and keys, before a small replica."""
    deploy = tmp_path_factory.mktemp("deploy") / "deploy.yaml"
    model = {"script": [str(REPLICA)], "replicas": {"prewarm": False}}
    values = {"port": 0, "console": True, "models": {"m": model}, "govern": {"auth": {"on": True}}}
    deploy.write_text(json.dumps(values | {"telemetry": {"gpus": False}}))
    words = [sys.executable, "-m", "catena", "up", str(deploy), "--json", "--workspace", str(small.root)]
    program = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy())
    late = threading.Timer(START_S, program.kill)
    late.start()
    assert program.stdout is not None
    try:
        body = ""
        while not body.rstrip().endswith("}"):
            line = program.stdout.readline()
            assert line, program.communicate()[1]
            body += line
        url = json.loads(body)["url"].removesuffix("/v1")
        end = time.monotonic() + START_S
        while httpx.get(f"{url}/console/health", trust_env=False).status_code != 200:
            assert time.monotonic() < end, "the console did not come up"
            time.sleep(0.2)
        yield url
    finally:
        late.cancel()
        program.terminate()
        program.communicate(timeout=60)


def test_the_console_is_below_the_gateways_address(visit: Visit, gateway: str, small: Small) -> None:
    visitor = visit("", at=gateway)
    page: Any = visitor.page
    page.goto(f"{gateway}/console/datasets")
    assert "/console/login" in page.url
    page.fill("#key", small.keys["developer"])
    page.click("button[type=submit]")
    page.wait_for_url("**/console/datasets")
    page.wait_for_function("window.socket && window.socket.connected")
    page.click("text=small/corpus")
    page.wait_for_selector(".c-tabs")
    assert "/console/datasets/small/corpus@1" in page.url
    page.fill(".c-search input", "hostile")  # over the websocket
    page.wait_for_function("document.querySelectorAll('.c-table tbody tr').length === 1")
    assert not visitor.errors


def test_the_gateway_is_as_it_was(gateway: str, small: Small) -> None:
    with httpx.Client(base_url=gateway, trust_env=False) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/v1/models").status_code == 401
        key = {"authorization": f"Bearer {small.keys['user']}"}
        assert [one["id"] for one in client.get("/v1/models", headers=key).json()["data"]] == ["m"]
        assert client.get("/console/datasets").status_code == 401  # the gateway's key is no session of the console
        assert client.get("/console/datasets", headers=key).status_code == 401
        refused = client.post("/console/login", headers={"origin": "http://evil.example"}, data={"key": "x"})
        assert refused.status_code == 403
