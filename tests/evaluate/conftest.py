"""A tiny untrained model in a store, and datasets to measure it on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from catena.core.sample import Sample, sample_id
from catena.core.types import DatasetVersion, ModelVersion
from catena.hub.store import Store
from catena.models import checkpoint
from catena.models.presets import build
from catena.models.tokenizer import train_tokenizer

TEXTS = [
    "json.loads reads a document.",
    "Return a string, or raise an error.",
    "读取一个文件，返回字符串。",
    "a b c d e",
]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights with a tokenizer of 300 tokens."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(TEXTS * 3, 300)
    model = build("llama-nano", len(tokenizer), 3, context=64, end_id=tokenizer.eos_token_id)
    checkpoint.save(model, tokenizer, folder)
    return folder


@pytest.fixture
def model(store: Store, model_folder: Path) -> ModelVersion:
    """That model in the test's store."""
    return store.put_model(model_folder, **checkpoint.describe(model_folder))


def documents(store: Store, texts: Iterable[str], split: str = "test") -> DatasetVersion:
    """Store documents in one split."""
    with store.new_dataset("document") as out:
        for text in texts:
            out.add(Sample(sample_id(text), {"text": text}, source="test:", split=split))
        return out.commit()


def conversations(store: Store, turns: Iterable[tuple[str, str, str]]) -> DatasetVersion:
    """Store conversations of one question and answer, given as (split, question, answer)."""
    with store.new_dataset("conversation") as out:
        for split, question, answer in turns:
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            metadata = {"page": f"page:{question[-1]}"}
            out.add(Sample(sample_id(question), {"messages": messages}, metadata, split=split))
        return out.commit()
