"""Caches of `transformers`, each of one sequence, joined into one of a batch, and taken apart again.

Keys and values `[1, heads, tokens, dim]` are moved to the right, behind padding that the attention mask hides; states
of convolutions and of recurrent layers have one size whatever the length, and are stacked.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence as Many
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from catena.core.errors import DataError

ATTENTION = (DynamicLayer, LinearAttentionAndFullAttentionLayer)
RECURRENT = (LinearAttentionLayer, LinearAttentionAndFullAttentionLayer)


def join(caches: Many[Any]) -> Any:
    """Return one cache of a batch, a row for each; raises `DataError` for a kind that cannot be joined."""
    if not all(type(cache) is DynamicCache for cache in caches):
        raise DataError(f"its cache is a {type(caches[0]).__name__}")
    made = copy.copy(caches[0])
    made.layers = [_join(layers) for layers in zip(*(cache.layers for cache in caches), strict=True)]
    return made


def row_of(cache: Any, row: int, tokens: int) -> Any:
    """Return the cache of one row of a batch, whose last `tokens` are its own."""
    made = copy.copy(cache)
    made.layers = [_row(layer, row, tokens) for layer in cache.layers]
    return made


def _join(layers: Many[Any]) -> Any:
    made = copy.copy(layers[0])
    if type(made) not in {*ATTENTION, *RECURRENT}:
        raise DataError(f"its cache has layers of the kind {type(made).__name__}")
    if type(made) in ATTENTION:
        made.keys, made.values = _aligned([one.keys for one in layers]), _aligned([one.values for one in layers])
    if type(made) in RECURRENT:
        for name in ("conv_states", "recurrent_states"):
            states = [getattr(one, name) for one in layers]
            stacked = {at: _stacked([one[at] for one in states]) for at in states[0]}
            setattr(made, name, stacked)
    return made


def _aligned(parts: Many[Tensor]) -> Tensor:
    longest = max(part.shape[-2] for part in parts)
    return torch.cat([pad(part, (0, 0, longest - part.shape[-2], 0)) for part in parts])


def _stacked(parts: Many[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def _row(layer: Any, row: int, tokens: int) -> Any:
    made = copy.copy(layer)
    if type(made) in ATTENTION:  # clones: a view would keep the whole batch in memory
        made.keys = layer.keys[row : row + 1, :, -tokens:].clone()
        made.values = layer.values[row : row + 1, :, -tokens:].clone()
    if type(made) in RECURRENT:
        for name in ("conv_states", "recurrent_states"):
            states = getattr(layer, name)
            alone = {at: None if one is None else one[row : row + 1].clone() for at, one in states.items()}
            setattr(made, name, alone)
    return made
