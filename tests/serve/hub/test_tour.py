"""Unchanged transformers, datasets and huggingface_hub against a hub in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from catena.core.types import ModelVersion
from catena.hub.store import Store

from .conftest import put_dataset, put_model, running

ROOT = Path(__file__).parents[3]
SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HF_HUB_DISABLE_XET")


def test_clients_that_know_only_the_address_read_and_write(
    workspace: Path, tmp_path: Path, tokenizer: Any, opened: Callable[[Path], Store]
) -> None:
    store = opened(workspace)
    put_model(store, tokenizer)
    store.tag("team/tiny@1", "production")
    put_dataset(store)
    environment = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    with running(workspace, "--set", "hub.inline_bytes=2097152") as server:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("tour.py")), str(tmp_path)],
            env={
                **environment,
                "HF_ENDPOINT": server.url,
                "HF_HOME": str(tmp_path / "hf"),
                "PYTHONPATH": paths,
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.stdout.endswith("toured\n"), done.stdout + done.stderr
    pushed = store.resolve("team/pushed", ModelVersion)
    assert pushed.form == "full"
    assert pushed.architecture == "LlamaForCausalLM"
    [run] = store.index.find_runs(output=pushed.digest)
    assert run.stage == "hub.push"
