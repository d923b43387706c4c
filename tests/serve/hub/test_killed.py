"""A hub that is killed in the middle of uploads: what is seen afterwards is the commit before, or the commit after."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.hf_api import RepoFile

from catena.core.types import ModelVersion
from catena.hub.fsck import collect_garbage
from catena.hub.store import Store

from .conftest import Server, running


def safetensors(seed: int, rows: int = 4096) -> bytes:
    head = json.dumps({"w": {"dtype": "F32", "shape": [rows, 64], "data_offsets": [0, rows * 256]}}).encode()
    return len(head).to_bytes(8, "little") + head + np.random.default_rng(seed).bytes(rows * 256)


def checked(server: Server, store: Store) -> int:
    """Look at every commit of every branch: all its files are there, with the bytes that it names."""
    api = server.api()
    history = api.list_repo_commits("org/m")
    for commit in history:
        for file in api.list_repo_tree("org/m", recursive=True, revision=commit.commit_id):
            if not isinstance(file, RepoFile):
                continue
            connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
            connection.request("GET", f"/org/m/resolve/{commit.commit_id}/{file.path}")
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            assert answer.status == 200
            assert len(data) == file.size
            assert answer.headers["etag"].strip('"') in (
                hashlib.sha256(data).hexdigest(),
                hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
            )
    versions = store.index.versions(name="org/m")
    assert len(versions) == len(history) - 1
    for row in versions:
        assert store.checkout(store.resolve(row.digest, ModelVersion)).joinpath("model.safetensors").exists()
    return len(history)


def break_off(server: Server, workspace: Path) -> None:
    """Kill the hub when it has begun to write a file that a commit brings."""
    content = base64.b64encode(bytes(3 << 20))
    line = b'{"key":"header","value":{"summary":"s"}}\n{"key":"file","value":{"content":"' + content
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.putrequest("POST", "/api/models/org/m/commit/main")
    connection.putheader("Content-Length", str(len(line) * 2))
    connection.endheaders(line)
    deadline = time.monotonic() + 60
    while not list((workspace / "work").glob("tmp-upload-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list((workspace / "work").glob("tmp-upload-*"))
    server.kill()
    connection.close()


def test_kills_at_any_moment_leave_whole_commits(workspace: Path, opened: Callable[[Path], Store]) -> None:
    store = opened(workspace)
    started = 0

    def push(api: HfApi) -> None:
        nonlocal started
        while True:
            started += 1
            operations = [CommitOperationAdd("config.json", b'{"architectures": ["X"]}')]
            operations += [CommitOperationAdd("model.safetensors", safetensors(started))]
            operations += [CommitOperationAdd(f"notes/{started}.txt", b"note" * started)]
            try:
                api.create_commit("org/m", operations, commit_message=f"number {started}", num_threads=1)
            except Exception:
                return

    with running(workspace) as server:
        server.api().create_repo("org/m")
        break_off(server, workspace)
    collect_garbage(store)
    assert not list((workspace / "work").iterdir())
    with running(workspace) as server:
        assert server.api().list_repo_files("org/m") == [".gitattributes"]
        thread = threading.Thread(target=push, args=(server.api(),))
        thread.start()
        time.sleep(0.8)
        server.kill()
        thread.join(60)
        assert not thread.is_alive()
    with running(workspace) as server:
        assert checked(server, store) <= started + 1
