"""A small model in a store: the 4M shape with a tiny vocabulary would hide what embeddings cost, so it has 2048."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from catena.core.sample import Sample, sample_id
from catena.core.types import DatasetVersion, ModelVersion
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


@pytest.fixture
def text(store: Store) -> DatasetVersion:
    """Documents to calibrate with."""
    random = Random(3)
    with store.new_dataset("document") as out:
        for number in range(40):
            words = " ".join(random.choices(["one", "two", "three", "四", "五", "六"], k=40))
            out.add(Sample(sample_id(number), {"text": words}, source="test:", split="train"))
        return out.commit()
