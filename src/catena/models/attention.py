"""`local_global` attention in any decoder of `transformers`, by name: a token sees a window and its document's start.

It stands in `AttentionInterface` and in `AttentionMaskInterface`: with only the first, `transformers` hands over no
mask at all and padding is attended silently. Once for a forward pass the mask function looks at lengths, padding and
packed documents and chooses how all layers compute:

    mask                                         layers
    None                                         up to a window: plain causal; past the crossover: blocks, one document
    segments, int64 [batch, tokens]              blocks, with packed documents or padding
    bool [batch or 1, 1, queries, keys]          one masked product: short rows, and queries beside a cache
    BlockMask                                    FlexAttention, on a GPU

The settings stand in config.json under the key `local_global`. `transformers` by itself keeps them and attends densely.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from catena.core.config import parse
from catena.core.errors import DataError, UsageError
from catena.models.attention_blocks import Documents, blocked_attention, dense_mask, documents_of
from catena.models.attention_settings import LOCAL_GLOBAL, LocalGlobal

UNKNOWN = ("softcap", "position_bias", "s_aux")
"""What some models add to attention scores and this does not."""
FLEX_HEAD = 16
"""Width of a head that FlexAttention's kernel takes at least."""


def use_local_global(model: Any, settings: LocalGlobal) -> Any:
    """Let a decoder attend by `settings` from now on, and write them into its config; returns the model.

    Raises `UsageError` for an encoder, an encoder-decoder, and a decoder that has a pattern of its own.
    """
    refuse = _why_not(model)
    if refuse:
        raise UsageError(
            f"{type(model).__name__} cannot attend by {LOCAL_GLOBAL}: {refuse}", hint="Use attention: dense."
        )
    setattr(model.config, LOCAL_GLOBAL, settings.model_dump())
    model.set_attn_implementation(LOCAL_GLOBAL)
    return model


def use_stored_attention(model: Any) -> Any:
    """Let a model that was loaded attend as its config.json says; one that says nothing stays as it is.

    Raises `DataError` where the settings are damaged.
    """
    stored = getattr(model.config, LOCAL_GLOBAL, None)
    if stored is None:
        return model
    if not isinstance(stored, dict):
        raise DataError(f"config.json says {LOCAL_GLOBAL}: {stored!r}, which is not a mapping")
    return use_local_global(model, parse(LocalGlobal, stored, where=f"{LOCAL_GLOBAL} in config.json"))


def settings_of(config: Any) -> LocalGlobal:
    """Return the settings in a model's config; raises `UsageError` where there are none."""
    stored = getattr(config, LOCAL_GLOBAL, None)
    if stored is None:
        raise UsageError(
            f"the model's config has no settings of {LOCAL_GLOBAL}",
            hint="Set it with catena.models.attention.use_local_global(model, LocalGlobal(window=..., memory=...)).",
        )
    return LocalGlobal.model_validate(stored)


def _why_not(model: Any) -> str:
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        return "its decoder also attends to an encoder, and its scores have a bias by distance"
    causal = [layer.is_causal for layer in model.modules() if hasattr(layer, "is_causal")]
    if not causal or not all(causal):
        return "it is not a decoder, and in an encoder tokens also see what comes after them"
    kinds = set(getattr(config, "layer_types", None) or ())
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if kinds - {"full_attention"} or (windowed and not kinds):
        return "some of its layers have a pattern of their own"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention does not go through the AttentionInterface of transformers"
    return ""


def local_global_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    *,
    mask_function: Callable[..., Tensor],
    attention_mask: Tensor | None = None,
    config: Any,
    device: torch.device | str = "cpu",
    **_: Any,
) -> Any:
    """Choose how all layers of a forward pass compute (see above); `transformers` calls it by keyword.

    `attention_mask` is the 2-D mask of padding, bool [batch, tokens]; packed documents are in `mask_function`.
    """
    settings = settings_of(config)
    if attention_mask is not None and bool(attention_mask.all()) and attention_mask.shape[1] >= kv_length:
        attention_mask = None
    segments = _segments(batch_size, q_length, kv_length, mask_function, attention_mask, torch.device(device))
    documents = None if segments is None else documents_of(segments)
    alone = q_length == kv_length  # no cache beside the queries
    if alone and documents is None and q_length <= settings.window:
        return None
    if alone and q_length > settings.crossover:
        if torch.device(device).type == "cuda" and _head_width(config) >= FLEX_HEAD:
            return _flex_mask(settings, batch_size, q_length, documents, device)
        return segments
    places = torch.arange(q_length, device=device) + q_offset - kv_offset
    return dense_mask(settings, places, kv_length, documents)


def _segments(
    batch: int,
    queries: int,
    keys: int,
    mask_function: Callable[..., Tensor],
    padding: Tensor | None,
    device: torch.device,
) -> Tensor | None:
    """Return the document of each key, int64 [batch, keys], or None where each row is one whole document.

    Where a packed document begins, the token before it is not seen: that is asked of `mask_function` for all tokens at
    once, whatever it was made from.
    """
    if padding is not None:
        # A static cache is longer than what was filled of it; places beyond are padding.
        return pad(padding[:, -keys:].long(), (0, max(0, keys - padding.shape[1])))
    if queries != keys or keys < 2:
        return None
    rows, later = torch.arange(batch, device=device)[:, None], torch.arange(1, keys, device=device)[None, :]
    joined = mask_function(rows, 0, later, later - 1)
    if not isinstance(joined, Tensor) or bool(joined.all()):
        return None
    return pad((~joined).expand(batch, -1).long().cumsum(dim=1), (1, 0)) + 1


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _flex_mask(
    settings: LocalGlobal, batch: int, length: int, documents: Documents | None, device: torch.device | str
) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    rows = None if documents is None else batch
    return create_block_mask(flex_rule(settings, documents), rows, None, length, length, device=device, _compile=True)


def flex_rule(settings: LocalGlobal, documents: Documents | None) -> Callable[..., Tensor]:
    """Return the pattern as FlexAttention's `mask_mod(batch, head, query, key)`."""
    window, memory = settings.window, settings.memory

    def alone(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & ((query - key < window) | (key < memory))

    if documents is None:
        return alone
    segments, starts = documents

    def among(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = (query - key < window) | (key - starts[batch, query] < memory)
        own = segments[batch, query]
        same = (own == segments[batch, key]) & (own > 0)
        return ((key <= query) & near & same) | (query == key)

    return among


def local_global_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    *,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as `local_global_mask` chose; query [batch, heads, queries, dim], returns [batch, queries, heads, dim].

    A 4-D mask that the caller made is taken as it is: the pattern is then the caller's. Raises `UsageError` where a
    model changes its scores in a way that is not known here.
    """
    unknown = [name for name in UNKNOWN if options.get(name) is not None]
    if unknown:
        raise UsageError(f"{type(module).__name__} uses {unknown[0]}, which {LOCAL_GLOBAL} does not do")
    if attention_mask is not None and not isinstance(attention_mask, Tensor):
        if dropout:
            raise UsageError(f"{LOCAL_GLOBAL} has no dropout on a GPU", hint="Set the model's attention_dropout to 0.")
        return _flex(module, query, key, value, attention_mask, scaling)
    settings = settings_of(module.config)
    if attention_mask is not None and attention_mask.dim() == 4:
        out = _dense(query, key, value, attention_mask, scaling, dropout)
    elif attention_mask is None and query.shape[2] <= settings.window:
        out = _dense(query, key, value, None, scaling, dropout)
    else:
        documents = None if attention_mask is None else documents_of(attention_mask)
        out = blocked_attention(query, key, value, settings, documents, scale=scaling, dropout=dropout)
    return out.transpose(1, 2).contiguous(), None


def _dense(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, dropout: float
) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, dropout_p=dropout, enable_gqa=grouped
    )


def _flex(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scale: float | None
) -> tuple[Tensor, None]:
    from transformers.integrations.flex_attention import flex_attention_forward

    out, _ = flex_attention_forward(module, query, key, value, mask, scaling=scale)
    return out, None


AttentionInterface.register(LOCAL_GLOBAL, local_global_attention)
AttentionMaskInterface.register(LOCAL_GLOBAL, local_global_mask)
