"""A real governed gateway over the small workspace, with scripted replicas: `catena up` as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

REPLICA = str(Path(__file__).parent.parent / "serve" / "gateway" / "replica.py")
START_S = 180


def scripted(*arguments: str, count: int = 1) -> dict[str, Any]:
    """A model whose replicas do what prompts say."""
    replicas = {"min": count, "max": count, "backoff_s": 0.05, "health_s": 0.3, "drain_s": 3}
    return {"script": [REPLICA, "--obey", *arguments], "replicas": replicas}


MODELS = {
    "echo": scripted("--token-s", "0.02", count=2),
    "other": scripted("--say", "a quite other answer"),
    "slow": scripted("--say", "one two three four five six seven eight " * 20, "--token-s", "0.2"),
    "rare": scripted(),
}


@contextmanager
def gateway_over(root: Path, folder: Path, **config: Any) -> Iterator[str]:
    """Run `catena up` with the models above over a workspace; gives its address."""
    file = folder / "deploy.yaml"
    settings = {
        "port": 0,
        "models": MODELS,
        "candidates": {"echo-next": scripted("--model", "next")},
        "limits": {"rules": [{"per": "key", "models": ["rare"], "requests": "1/hour"}]},
        "govern": {name: {"on": True} for name in ("auth", "audit", "moderation")},
        **config,
    }
    file.write_text(yaml.safe_dump(settings))
    words = [sys.executable, "-m", "catena", "-w", str(root), "up", str(file), "--json"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(words, **pipes) as program:
        late = threading.Timer(START_S, program.kill)
        late.start()
        assert program.stdout is not None
        try:
            body, url = "", ""
            for line in program.stdout:
                body += line
                with suppress(ValueError):
                    url = json.loads(body)["url"].removesuffix("/v1")
                    break
            late.cancel()  # it has started: from here on it may run as long as the tests need
            assert url, "the gateway did not start"
            yield url
        finally:
            late.cancel()
            program.terminate()
            program.wait(60)
