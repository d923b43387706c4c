"""Presets: named model shapes (`presets.yaml`), and an untrained model built from one. Pretraining begins here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import Field

from catena.core.config import Config, parse
from catena.core.errors import ConfigError, did_you_mean

Family = Literal["llama", "qwen3", "gpt2", "bert", "modernbert", "t5"]
Kind = Literal["decoder", "encoder", "encoder-decoder"]

KIND_OF: dict[Family, Kind] = {
    "llama": "decoder",
    "qwen3": "decoder",
    "gpt2": "decoder",
    "bert": "encoder",
    "modernbert": "encoder",
    "t5": "encoder-decoder",
}


class Preset(Config):
    """The shape of a model."""

    family: Family = "llama"
    """Whose architecture it is."""
    hidden: int = Field(ge=8)
    """Width of the residual stream."""
    layers: int = Field(ge=1)
    """Number of layers (of the encoder, and of the decoder too, where there are both)."""
    feed_forward: int = Field(ge=8)
    """Inner width of the feed-forward."""
    heads: int = Field(ge=1)
    """Query heads."""
    key_value_heads: int | None = Field(default=None, ge=1)
    """Key and value heads; fewer than `heads` is grouped-query attention. Default: as many."""
    head_dim: int | None = Field(default=None, ge=2)
    """Width of a head; default: hidden / heads."""
    context: int = Field(ge=8)
    """Longest sequence, in tokens."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    """Base of the rotary position embedding, where there is one."""
    tied: bool = True
    """Input and output embedding share their weights."""
    vocabulary: int = Field(default=0, ge=0)
    """Tokens with which it has so many parameters; a model is built with its tokenizer's."""
    parameters: str = ""
    """About how many parameters that makes; for people."""

    @property
    def kind(self) -> Kind:
        """What it can be pretrained as."""
        return KIND_OF[self.family]

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


def preset(name: str, kind: Kind | None = None) -> Preset:
    """Return a preset; raises `ConfigError` with the closest names for an unknown one, or for one of another kind."""
    known = {key: shape for key, shape in presets().items() if kind in (None, shape.kind)}
    if name in known:
        return known[name]
    if name in presets():
        kinds = f"{name!r} is the preset of a model that is {_a(presets()[name].kind)}"
        raise ConfigError(f"{kinds}; this needs {_a(str(kind))}", hint=did_you_mean("", known))
    raise ConfigError(f"there is no model preset {name!r}", hint=did_you_mean(name, known))


def _a(kind: str) -> str:
    return f"an {kind}" if kind.startswith("e") else f"a {kind}"


def build(
    shape: str | Preset, vocab_size: int, seed: int, *, context: int | None = None, pad_id: int = 0, end_id: int = 1
) -> Any:
    """Build an untrained model in float32 whose weights depend on `seed` alone; `context` replaces the preset's.

    It has the head that its kind is pretrained with: next token, masked token, or (encoder-decoders) target text.
    """
    import torch

    from catena.models.families import FAMILIES, Words

    numbers = preset(shape) if isinstance(shape, str) else shape
    family = FAMILIES[numbers.family]
    config = family.config(numbers, Words(vocab_size, pad_id, end_id, context or numbers.context))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return family.model(config)
