"""Facts about training with local_global attention: the stage sets it, and the folder that comes out keeps it."""

import json
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from catena.core.types import DatasetVersion
from catena.hub.store import Store
from catena.models import checkpoint
from catena.train.pretrain import PretrainConfig, pretrain
from catena.train.tokenizer import TokenizerConfig, tokenizer
from tests.train.conftest import Recorded


def test_pretraining_with_local_global_gives_a_folder_that_keeps_it(
    store: Store, recorded: Callable[[str], Recorded], documents: DatasetVersion
) -> None:
    words = tokenizer(recorded("tokenizer").context, TokenizerConfig(vocab_size=400), source=documents)
    config = PretrainConfig(
        preset="llama-nano", sequence_length=32, batch_size=4, steps=3, attention="local_global", window=8, memory=2
    )
    made = pretrain(recorded("sparse").context, config, tokenizer=words, data=documents)
    folder = store.checkout(made)
    assert json.loads((folder / "config.json").read_text())["local_global"] == {"window": 8, "memory": 2}
    assert checkpoint.load(folder)[0].config._attn_implementation == "local_global"


def test_local_global_is_for_decoders() -> None:
    with pytest.raises(ValidationError):
        PretrainConfig(preset="bert-nano", attention="local_global")
