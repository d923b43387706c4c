"""Engines of others for tests: a scripted one, started as one of ours, and how it is asked."""

from __future__ import annotations

import json
import queue
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from catena.core.generate import GENERATORS, Delta, Request, SamplingParams
from catena.infer.backends.remote import RemoteGenerator
from catena.models import checkpoint

PROMPT = "the quick brown fox"
FAST = {"health_timeout_s": 20.0, "stop_timeout_s": 5.0, "start_timeout_s": 60.0, "drain_s": 0.2}
NATIVE = ("vllm", "sglang", "lmdeploy")
Open = Callable[..., RemoteGenerator]


@pytest.fixture(scope="module")
def folder(model_of: Callable[..., Any], tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: the engines are given its path, and its tokenizer is used here."""
    target = tmp_path_factory.mktemp("model") / "tiny"
    checkpoint.save(model_of(), tokenizer, target)
    return target


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripted engine as a program."""
    path = tmp_path_factory.mktemp("engine") / "vllm"
    source = Path(__file__).with_name("fake_engine.py")
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {source} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def well(folder: Path, program: Path) -> Iterator[Open]:
    """Return a function that gives the scripted engine as one of ours, without mischief; many tests share it."""
    opened: dict[str, RemoteGenerator] = {}

    def give(name: str = "vllm") -> RemoteGenerator:
        if name not in opened:
            environment = {"FAKE_PAUSE": "0.01"}
            opened[name] = GENERATORS.load(name)(folder, **FAST, program=str(program), environment=environment)
        return opened[name]

    yield give
    for generator in opened.values():
        generator.close()


@pytest.fixture
def start(folder: Path, program: Path) -> Iterator[Open]:
    """Return a function that starts the scripted engine as one of ours."""
    opened: list[RemoteGenerator] = []

    def make(name: str = "vllm", fake: str = "", pause: float = 0.0, **options: Any) -> RemoteGenerator:
        environment = {"FAKE": fake, "FAKE_PAUSE": str(pause), **options.pop("environment", {})}
        asked = {**FAST, "program": str(program), "environment": environment, **options}
        opened.append(GENERATORS.load(name)(folder, **asked))
        return opened[-1]

    yield make
    for generator in opened:
        generator.close()


def deltas_of(generator: RemoteGenerator, request: Request, *, until: int | None = None) -> list[Delta]:
    """Submit a request and wait for its deltas: all, or the first few."""
    told: queue.SimpleQueue[Delta] = queue.SimpleQueue()
    generator.submit(request, told.put)
    found: list[Delta] = []
    while (until is None or len(found) < until) and (not found or found[-1].completion is None):
        found.append(told.get(timeout=60))
    return found


def request(prompt: Any = PROMPT, id: str = "one", **params: Any) -> Request:
    """Return a request."""
    return Request(id, prompt, SamplingParams(**{"max_tokens": 6, "ignore_end": True, **params}))


def ids_of(generator: RemoteGenerator, text: str = PROMPT) -> list[int]:
    """Return what the engine is sent for a text."""
    return generator.codec.tokens(text)


def engine_pid(guard: int) -> int:
    """Return the process that a guard started."""
    [pid, *_] = Path(f"/proc/{guard}/task/{guard}/children").read_text().split()
    return int(pid)


def counts(generator: RemoteGenerator) -> dict[str, int]:
    """Ask the scripted engine what it counted."""
    assert generator.place.process is not None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(generator.place.process.url + "/counts", timeout=30) as response:
        found: dict[str, int] = json.loads(response.read())
    return found


def wait_for(holds: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait until something holds, or raises."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)
