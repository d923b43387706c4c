"""The gateway as a program of its own: no orphan when it is killed, drained when it is asked to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import yaml

from .conftest import eventually, mock


@contextmanager
def up(folder: Path, models: dict[str, Any], **config: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`catena up` with a deploy file; gives the process and its URL."""
    file = folder / "deploy.yaml"
    file.write_text(yaml.safe_dump({"port": 0, "models": models, **config}))
    command = [sys.executable, "-m", "catena", "up", str(file), "--json"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, **pipes) as process:
        try:
            assert process.stdout is not None
            told = "".join(iter(process.stdout.readline, "}\n")) + "}"
            yield process, json.loads(told)["url"].removesuffix("/v1")
        finally:
            process.terminate()
            process.communicate(timeout=60)


def replicas_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def ask(url: str, prompt: str) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False)


def test_no_replica_outlives_a_gateway_that_is_killed(tmp_path: Path) -> None:
    with up(tmp_path, {"m": mock(min=2)}) as (process, url):
        assert ask(url, "hi").status_code == 200
        children = replicas_of(process)
        assert len(children) == 2
        os.kill(process.pid, signal.SIGKILL)
        eventually(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))


def test_asked_to_end_it_finishes_what_runs_and_leaves_nobody(tmp_path: Path) -> None:
    with up(tmp_path, {"m": mock("--delay", "1", min=1)}) as (process, url):
        children = replicas_of(process)
        answers: list[int] = []
        thread = threading.Thread(target=lambda: answers.append(ask(url, "hi").status_code))
        thread.start()
        waiting = f"{url}/metrics"
        eventually(lambda: 'catena_gateway_running{model="m"} 1' in httpx.get(waiting, trust_env=False).text)
        process.send_signal(signal.SIGTERM)
        thread.join()
        assert answers == [200]
        assert process.wait(60) == 0
        assert not any(child.is_running() for child in children)


def test_replicas_that_do_not_start_end_it_with_their_words(tmp_path: Path) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text(yaml.safe_dump({"port": 0, "models": {"m": mock("--dead-on-start")}}))
    command = [sys.executable, "-m", "catena", "up", str(file)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 5, done.stderr
    assert "m does not start" in done.stderr
    assert "this one does not start" in done.stderr
