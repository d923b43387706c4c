"""A hub in a process of its own, as `catena hub serve` starts it, over a workspace with a small model and a dataset."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from catena.core.sample import Sample
from catena.core.types import DatasetVersion, ModelVersion
from catena.hub.store import Store, init_store, open_store
from catena.models import checkpoint
from tests.serve.conftest import tiny_model


class Server:
    """A running hub."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url

    def api(self, token: str | bool = False) -> HfApi:
        """The official client, talking to it."""
        return HfApi(endpoint=self.url, token=token)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()


@contextmanager
def running(workspace: Path, *options: str) -> Iterator[Server]:
    """Start `catena hub serve` over a workspace; it is gone with the block."""
    words = ["-m", "catena", "hub", "serve", "--port", "0", "--json", "-w", str(workspace), *options]
    command = [sys.executable, "-c", "from catena.cli.main import main; main()", *words[2:]]
    with (workspace.parent / "hub.log").open("a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=dict(os.environ))
    try:
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            line = process.stdout.readline()
            assert line, (workspace.parent / "hub.log").read_text()
            text += line
        assert '"error"' not in text, text
        yield Server(process, json.loads(text)["url"])
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def put_model(store: Store, tokenizer: object, name: str = "team/tiny") -> ModelVersion:
    """Put a small model under a name, as a run would."""
    with store.temporary_folder() as folder:
        checkpoint.save(tiny_model(tokenizer), tokenizer, folder)
        model = store.put_model(folder, "full", license="Apache-2.0", **checkpoint.describe(folder))
    store.index.add_artifact(model)
    store.index.add_name(name, model.digest)
    return model


def put_dataset(store: Store, name: str = "team/pages", count: int = 6) -> DatasetVersion:
    """Put documents in two splits under a name."""
    with store.new_dataset("document", "CC0-1.0") as writer:
        for number in range(count):
            split = "validation" if number == 5 else "train"
            writer.add(Sample(f"page-{number}", {"text": f"page {number} 你好"}, {"number": number}, "s", split=split))
        dataset = writer.commit()
    store.index.add_artifact(dataset)
    store.index.add_name(name, dataset.digest)
    return dataset


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """An empty workspace's folder."""
    folder = tmp_path / ".catena"
    init_store(folder).close()
    return folder


@pytest.fixture
def server(workspace: Path) -> Iterator[Server]:
    """A hub over `workspace`, without keys."""
    with running(workspace) as started:
        yield started


@pytest.fixture
def opened() -> Iterator[Callable[[Path], Store]]:
    """Return a function that opens a workspace for the test."""
    stores: list[Store] = []

    def open_(folder: Path) -> Store:
        stores.append(open_store(folder))
        return stores[-1]

    yield open_
    for store in stores:
        store.close()
