"""A byte-level tokenizer and tiny random models, spread enough that no two tokens are nearly equally likely."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from catena.infer.capacity import EngineConfig
from catena.infer.engine import Engine
from catena.models.tokenizer import train_tokenizer

CONTEXT = 256


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A tokenizer with Catena's chat template; all bytes, few merges."""
    return train_tokenizer(["the quick brown fox 你好世界 " * 20], 320)


@pytest.fixture(scope="session")
def model_of(tokenizer: Any) -> Callable[..., Any]:
    """Return a function that gives a fresh copy of a tiny random model by family."""
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    families: dict[str, Callable[[], Any]] = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**shape)),
        "llama-mha": lambda: LlamaForCausalLM(LlamaConfig(**{**shape, "num_key_value_heads": 4})),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**shape)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=16)),
        "mistral-window": lambda: MistralForCausalLM(MistralConfig(**shape, sliding_window=24)),
    }
    made: dict[str, Any] = {}

    def make(family: str = "llama") -> Any:
        if family not in made:
            torch.manual_seed(1)
            made[family] = families[family]().eval()
        return copy.deepcopy(made[family])

    return make


@pytest.fixture
def engine_of(model_of: Callable[..., Any], tokenizer: Any) -> Any:
    """Return a function that opens an engine over a tiny model; all are closed after the test."""
    opened: list[Engine] = []

    def make(family: str = "llama", **options: Any) -> Engine:
        opened.append(Engine(model_of(family), tokenizer, EngineConfig(**options)))
        return opened[-1]

    yield make
    for engine in opened:
        engine.close()
