"""Fixtures of the model tests: a small tokenizer that knows English, Chinese and code, and a tiny model of it."""

from pathlib import Path
from typing import Any

import pytest

from catena.models import checkpoint
from catena.models.presets import build
from catena.models.tokenizer import train_tokenizer

TEXTS = [
    "What does os.path.join do? Join one or more path components.",
    "def join(a, *p):\n    return a + '/'.join(p)\n",
    "请解释 os.path.join 的作用。它连接路径。",
    "The year 2024 has 366 days; pi is 3.14159.",
]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS * 4, 400)


@pytest.fixture(scope="session")
def folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dense model folder."""
    target = tmp_path_factory.mktemp("model")
    checkpoint.save(build("llama-nano", len(tokenizer), 1), tokenizer, target)
    return target
