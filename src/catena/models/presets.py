"""Presets: named model shapes (`presets.yaml`), and an untrained model built from one. Pretraining begins here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field

from catena.core.config import Config, parse
from catena.core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


class Preset(Config):
    """The shape of a Llama-class decoder."""

    hidden: int = Field(ge=8)
    """Width of the residual stream."""
    layers: int = Field(ge=1)
    """Number of decoder layers."""
    feed_forward: int = Field(ge=8)
    """Inner width of the gated feed-forward."""
    heads: int = Field(ge=1)
    """Query heads."""
    key_value_heads: int = Field(ge=1)
    """Key and value heads; fewer than `heads` is grouped-query attention."""
    context: int = Field(ge=8)
    """Longest sequence, in tokens."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    """Base of the rotary position embedding."""
    tied: bool = True
    """Input and output embedding share their weights."""
    parameters: str = ""
    """About how many parameters that makes; for people."""

    @property
    def initial_scale(self) -> float:
        """Standard deviation of the initial weights: 0.02 at the width of GPT-2 XL, where it was used first, and with
        one over the root of the width elsewhere. With 0.02 a model of width 256 learns next to nothing in the time of
        the demo (docs/log.md)."""
        return 0.02 * math.sqrt(1600 / self.hidden)


@cache
def presets() -> Mapping[str, Preset]:
    """Return every preset by name."""
    text = resources.files("catena.models").joinpath("presets.yaml").read_text(encoding="utf-8")
    return {name: parse(Preset, values, where=f"preset {name}") for name, values in yaml.safe_load(text).items()}


def preset(name: str) -> Preset:
    """Return a preset; raises `ConfigError` with the closest names for an unknown one."""
    known = presets()
    if name not in known:
        raise ConfigError(f"there is no model preset {name!r}", hint=did_you_mean(name, known))
    return known[name]


def build(
    shape: str | Preset, vocab_size: int, seed: int, *, context: int | None = None, pad_id: int = 0, end_id: int = 1
) -> LlamaForCausalLM:
    """Build an untrained model in float32 whose weights depend on `seed` alone; `context` replaces the preset's."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    numbers = preset(shape) if isinstance(shape, str) else shape
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=numbers.hidden,
        intermediate_size=numbers.feed_forward,
        num_hidden_layers=numbers.layers,
        num_attention_heads=numbers.heads,
        num_key_value_heads=numbers.key_value_heads,
        max_position_embeddings=context or numbers.context,
        rope_parameters={"rope_type": "default", "rope_theta": numbers.rope_theta},
        tie_word_embeddings=numbers.tied,
        initializer_range=numbers.initial_scale,
        pad_token_id=pad_id,
        bos_token_id=None,
        eos_token_id=end_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
    return model
