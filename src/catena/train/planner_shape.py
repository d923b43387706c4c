"""The sizes of a model that decide what training it costs, counted from its config alone. Free of torch.

Parameter counts are exact (a test builds the models). What a layer keeps for the backward pass was counted tensor by
tensor on models of several widths: bytes for each token are a sum over the widths below, without scores of attention,
which no attention here keeps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from catena.core.errors import DataError, NotFound, UsageError, did_you_mean
from catena.models.presets import Preset, preset, presets


class Kept(NamedTuple):
    """Bytes that a layer keeps for each token: so many for each unit of a width."""

    hidden: float
    query: float
    key_value: float
    feed_forward: float


class Family(NamedTuple):
    """What differs between architectures."""

    gated: bool
    """The feed-forward has three matrices, not two."""
    full: Kept
    """In float32."""
    half: Kept
    """Under autocast to bfloat16; the residual stream stays float32."""


# float32: the norms keep 6 vectors of the hidden width, attention q, k, v and its output, the feed-forward the rest.
# Under autocast what enters a matrix product has 2 bytes and what a norm keeps has 4.
FAMILIES: Mapping[str, Family] = {
    "llama": Family(True, Kept(24, 8, 8, 16), Kept(24, 6, 4, 8)),
    "qwen2": Family(True, Kept(24, 8, 8, 16), Kept(24, 6, 4, 8)),
    "qwen3": Family(True, Kept(24, 16, 16, 16), Kept(24, 12, 10, 8)),
    "gpt2": Family(False, Kept(16, 8, 8, 20), Kept(12, 4, 4, 10)),
    "bert": Family(False, Kept(16, 8, 8, 8), Kept(16, 4, 4, 4)),
}
SAME_AS = {"mistral": "llama"}


class Shape(NamedTuple):
    """A model's widths and counts."""

    family: str
    hidden: int
    layers: int
    feed_forward: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    positions: int
    """Learnt positions, where there are any; the context."""
    tied: bool

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        """Width of all key heads together; the values have as many."""
        return self.key_value_heads * self.head_dim

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        matrices = 2 * self.hidden * (self.query_width + self.key_value_width)
        matrices += (3 if FAMILIES[self.family].gated else 2) * self.hidden * self.feed_forward
        small = {
            "llama": 2 * self.hidden,
            "qwen2": 2 * self.hidden + self.query_width + 2 * self.key_value_width,
            "qwen3": 2 * self.hidden + 2 * self.head_dim,
        }
        return matrices + small.get(self.family, 9 * self.hidden + self.feed_forward)

    @property
    def embedding(self) -> int:
        """Parameters of the input embedding, learnt positions included."""
        learnt = {"gpt2": self.positions * self.hidden, "bert": (self.positions + 4) * self.hidden}
        return self.vocabulary * self.hidden + learnt.get(self.family, 0)

    @property
    def head(self) -> int:
        """Parameters after the layers that the input embedding does not share."""
        own = 0 if self.tied else self.vocabulary * self.hidden
        if self.family == "bert":  # the transform before the output, its norm, and a bias for each word
            return own + self.hidden * (self.hidden + 3) + self.vocabulary
        return own + (2 if self.family == "gpt2" else 1) * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters, tied ones once."""
        return self.layers * self.layer_parameters + self.embedding + self.head

    def kept(self, *, half: bool, shares: int = 1) -> float:
        """Return the bytes that a layer keeps for each token where `shares` processes share its matrices."""
        bytes_of = FAMILIES[self.family].half if half else FAMILIES[self.family].full
        split = bytes_of.query * self.query_width + bytes_of.key_value * self.key_value_width
        split += bytes_of.feed_forward * self.feed_forward
        return bytes_of.hidden * self.hidden + split / shares

    def flops(self, sequence: int) -> float:
        """Return the floating-point operations of a forward and backward pass for each token of a causal sequence."""
        products = self.layers * self.layer_parameters + self.vocabulary * self.hidden
        return 6.0 * products + 6.0 * self.layers * sequence * self.query_width


def shape_of(model: str, vocabulary: int | None = None) -> Shape:
    """Return the shape of a preset, or of the model folder at a path; `vocabulary` replaces what it says.

    Raises `NotFound` where there is neither, and what `shape_of_settings` raises.
    """
    if model in presets():
        found = shape_of_preset(preset(model))
    elif Path(model).is_dir():
        found = shape_of_settings(_config_of(Path(model)))
    else:
        raise NotFound(f"there is no preset and no folder {model!r}", hint=did_you_mean(model, presets()))
    return found._replace(vocabulary=vocabulary) if vocabulary else found


def shape_of_preset(numbers: Preset) -> Shape:
    """Return the shape of a preset; raises `UsageError` for a family whose costs are not known."""
    return Shape(
        family=_family(numbers.family),
        hidden=numbers.hidden,
        layers=numbers.layers,
        feed_forward=numbers.feed_forward,
        heads=numbers.heads,
        key_value_heads=numbers.key_value_heads or numbers.heads,
        head_dim=numbers.head_dim or numbers.hidden // numbers.heads,
        vocabulary=numbers.vocabulary,
        positions=numbers.context,
        tied=numbers.tied,
    )


def shape_of_settings(settings: Mapping[str, Any]) -> Shape:
    """Return the shape that a config.json describes.

    Raises `UsageError` for an architecture whose costs are not known and `DataError` where a size is missing.
    """
    family = _family(str(settings.get("model_type", "unknown")))
    if family == "gpt2":
        names = {"hidden": "n_embd", "layers": "n_layer", "heads": "n_head", "positions": "n_positions"}
    else:
        names = {
            "hidden": "hidden_size",
            "layers": "num_hidden_layers",
            "heads": "num_attention_heads",
            "positions": "max_position_embeddings",
        }
    try:
        sizes = {ours: int(settings[theirs]) for ours, theirs in names.items()}
        inner = settings.get("n_inner") or 4 * sizes["hidden"] if family == "gpt2" else settings["intermediate_size"]
        return Shape(
            family=family,
            **sizes,
            feed_forward=int(inner),
            key_value_heads=int(settings.get("num_key_value_heads") or sizes["heads"]),
            head_dim=int(settings.get("head_dim") or sizes["hidden"] // sizes["heads"]),
            vocabulary=int(settings["vocab_size"]),
            tied=bool(settings.get("tie_word_embeddings", family in ("gpt2", "bert"))),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"config.json does not say the model's sizes: {error}") from error


def _family(name: str) -> str:
    family = SAME_AS.get(name, name)
    if family not in FAMILIES:
        known = ", ".join([*FAMILIES, *SAME_AS])
        raise UsageError(f"what training a {name} model costs is not known", hint=f"Known architectures: {known}.")
    return family


def _config_of(folder: Path) -> Mapping[str, Any]:
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} has no config.json that can be read", hint="A model is such a folder.") from error
    if not isinstance(settings, dict):
        raise DataError(f"config.json in {folder} is not a mapping")
    return settings
