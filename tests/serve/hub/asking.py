"""A hub in this process and the official client (`hub` and `api` are fixtures to import); asking without a client."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError

import pytest
from huggingface_hub import HfApi

from catena.hub.store import Store
from catena.serve.hub.app import build_hub
from catena.serve.hub.config import HubConfig
from catena.serve.server import background


@pytest.fixture
def hub(store: Store) -> Iterator[str]:
    """The address of a hub over an empty workspace, in this process."""
    with background(build_hub(store, HubConfig(inline_bytes=1 << 20))) as url:
        yield url


@pytest.fixture
def api(hub: str) -> HfApi:
    """The official client."""
    return HfApi(endpoint=hub, token=False)


def ask(method: str, url: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, data=body, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, {key.lower(): value for key, value in answer.headers.items()}, answer.read()
    except HTTPError as error:
        with error:
            return error.code, {key.lower(): value for key, value in error.headers.items()}, error.read()


def commit(url: str, *lines: dict[str, Any], repo: str = "org/m", branch: str = "main") -> tuple[int, str]:
    header = {"key": "header", "value": {"summary": "by hand"}}
    body = b"".join(json.dumps(line).encode() + b"\n" for line in (header, *lines))
    status, _, answer = ask("POST", f"{url}/api/models/{repo}/commit/{branch}", body, **{"Content-Type": "x-ndjson"})
    return status, answer.decode()


def a_file(path: str, data: bytes = b"x") -> dict[str, Any]:
    content = base64.b64encode(data).decode()
    return {"key": "file", "value": {"content": content, "path": path, "encoding": "base64"}}
