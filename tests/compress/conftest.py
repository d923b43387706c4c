"""A small model in a store: the 4M shape with a tiny vocabulary would hide what embeddings cost, so it has 2048."""

from __future__ import annotations

from pathlib import Path

import pytest

from catena.core.types import ModelVersion
from catena.hub.store import Store
from catena.models import checkpoint
from catena.models.presets import build
from catena.models.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(["one two three", "四 五 六"], 300)
    checkpoint.save(build("llama-1m", 2048, 3, end_id=tokenizer.eos_token_id), tokenizer, folder)
    return folder


@pytest.fixture
def model(store: Store, model_folder: Path) -> ModelVersion:
    """That model in the test's store."""
    return store.put_model(model_folder, license="CC0-1.0", **checkpoint.describe(model_folder))
