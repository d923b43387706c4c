"""Small real things: a store, a dataset, a model folder, and a PostgreSQL server on loopback."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from catena.core.sample import Sample, sample_id
from catena.core.types import Artifact, DatasetVersion, ModelVersion
from catena.hub.store import Store, init_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = init_store(tmp_path / ".catena")
    yield opened
    opened.close()


def document(text: str, source: str = "page") -> Sample:
    return Sample(id=sample_id(source, text), data={"text": text}, source=source)


def put_documents(store: Store, *texts: str, name: str = "pages") -> DatasetVersion:
    """Store documents under a name, as a run would."""
    with store.new_dataset("document") as writer:
        for text in texts:
            writer.add(document(text))
        return keep(store, writer.commit(), name)


def put_model(store: Store, folder: Path, weights: bytes = b"weights", name: str = "model") -> ModelVersion:
    """Store a folder that looks like a model, under a name."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return keep(store, store.put_model(folder), name)


def keep[Kind: Artifact](store: Store, artifact: Kind, name: str) -> Kind:
    store.index.add_artifact(artifact)
    store.index.add_name(name, artifact.digest)
    return artifact
