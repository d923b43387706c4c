"""The paged key-value cache and the attention that reads it, plugged into any decoder of `transformers`.

A step runs the chunks of many sequences as one row of tokens, `[1, tokens]`. The model knows nothing of that; its
attention calls `attend`, which writes the new keys and values into the pool and lets each sequence see its own only:

    token row   [ prefill A ............ | prefill B ..... | decode C D E | decode F ]
                  one call each, causal                      one call for each group of like lengths

A prefill from position 0 needs nothing from the pool. The others gather their blocks; a group's lengths differ by less
than a factor of two, so that padding costs little. Never is there a mask across sequences.

Pool of one layer: keys `[blocks * block_size, kv_heads, dim]`, values alike with their own dim; in the model's number
format, or int8.
"""

from __future__ import annotations

import math
import mmap
import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from catena.core.errors import DataError
from catena.infer.flat import NOTHING, Flat
from catena.models.attention_settings import LocalGlobal

ATTENTION = "catena_paged"


@dataclass(slots=True)
class Layout:
    """What one pass through the model told about its layers: shapes of keys and values, number format, device."""

    keys: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Layer to (heads, dim)."""
    values: dict[int, tuple[int, int]] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rounded: bool = False
    """Kept as int8, with a float32 scale for each token and head."""
    capped: bool = False
    """Whether scores are bent in some layer."""
    sinks: bool = False
    """Whether attention may go to nothing in some layer."""

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        shapes = [*self.keys.values(), *self.values.values()]
        if self.rounded:
            return sum(heads * (dim + 4) for heads, dim in shapes)
        return sum(heads * dim for heads, dim in shapes) * self.dtype.itemsize


class Pool:
    """Keys, or values, of one layer: as they are, or rounded to int8 with a scale for each token and head."""

    def __init__(self, slots: int, shape: tuple[int, int], layout: Layout) -> None:
        self.kind, rounded = layout.dtype, layout.rounded
        self.data = _zeros((slots, *shape), torch.int8 if rounded else layout.dtype, layout.device)
        self.scales = _zeros((slots, shape[0]), torch.float32, layout.device) if rounded else None

    def write(self, slots: Tensor, row: Tensor) -> None:
        """Put a row `[1, heads, tokens, dim]` into its slots."""
        # A masked position still counts as 0 * value: one NaN in the pool would spoil whoever gets the block next.
        found = row[0].transpose(0, 1).nan_to_num()
        if self.scales is not None:
            scales = found.abs().amax(dim=-1).float().clamp(min=1e-12) / 127
            self.scales.index_copy_(0, slots, scales)
            found = (found / scales[:, :, None]).round().to(torch.int8)
        self.data.index_copy_(0, slots, found)

    def read(self, blocks: Tensor, size: int) -> Tensor:
        """Return `[batch, heads, blocks * size, dim]` of the blocks `[batch, blocks]`."""
        found = _pages(self.data, blocks, size)
        if self.scales is not None:
            found = (found * _pages(self.scales, blocks, size)[..., None]).to(self.kind)
        return found.transpose(1, 2)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros; those of a processor are pages that the machine gives when they are first written."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def _pages(pool: Tensor, blocks: Tensor, size: int) -> Tensor:
    """Return `[batch, blocks * size, ...]` of a pool `[slots, ...]`."""
    pages = pool.view(-1, size * pool[0].numel())
    return pages.index_select(0, blocks.flatten()).view(blocks.shape[0], -1, *pool.shape[1:])


class PagedCache:
    """The pools of all layers. On CPU, memory that no block ever touched is not taken from the machine."""

    def __init__(self, layout: Layout, blocks: int, block_size: int) -> None:
        self.block_size, slots = block_size, blocks * block_size
        self.keys = {layer: Pool(slots, shape, layout) for layer, shape in layout.keys.items()}
        self.values = {layer: Pool(slots, shape, layout) for layer, shape in layout.values.items()}

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Put a row's keys and values `[1, heads, tokens, dim]` into their slots."""
        self.keys[layer].write(slots, key)
        self.values[layer].write(slots, value)


@dataclass(frozen=True, slots=True)
class Prefill:
    """Tokens `start..end` of the row belong to one sequence, after `past` tokens that the pool holds already."""

    start: int
    end: int
    past: int
    blocks: Tensor
    """`[1, blocks]`; read only where there is a past."""


@dataclass(frozen=True, slots=True)
class Decode:
    """Tokens `start..end` of the row are the newest of as many sequences, one each."""

    start: int
    end: int
    blocks: Tensor
    """`[sequences, blocks]`; short tables are filled up with block 0, which is masked."""
    lengths: Tensor
    """`[sequences, 1]`, the new token included."""
    longest: int
    equal: bool
    """All have the same length, so there is nothing to mask."""
    positions: Tensor | None = None
    """`[sequences, blocks * block_size]`: where in its sequence each slot of the table is; None: in order from 0."""
    shared: int = 0
    """Blocks at the beginning that all have in common and that are read once, where that is worth it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Where every token of a step's row belongs; made once, read by every layer."""

    cache: PagedCache
    slots: Tensor
    """`[tokens]`: where in the pool the row's keys and values go."""
    prefills: tuple[Prefill, ...]
    decodes: tuple[Decode, ...]
    local: LocalGlobal | None = None
    """Window and memory of a model that attends by `local_global`, in all layers."""
    flat: Flat = NOTHING
    """What of it needs no call of its own (on a GPU); the rest is in `prefills` and `decodes`."""


class Step:
    """Stands for the batch in a compiled forward pass: attention finds the batch of its thread (`step_of`)."""


STEP = Step()
_threads = threading.local()


def step_of(batch: Batch) -> None:
    """Let the compiled pass that this thread runs next be that of a batch."""
    _threads.batch = batch


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    paged: Batch | Layout | Step | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """The attention function that the model calls in each layer, with `paged` handed through by its forward.

    Query `[1, heads, tokens, dim]`, key and value `[1, kv_heads, tokens, dim]`; returns `[1, tokens, heads, dim]`.
    """
    if others.get("position_bias") is not None:
        raise DataError("its attention has a bias of its own")
    if paged is None:
        raise DataError("it does not pass its arguments on to its attention")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if isinstance(paged, Step):
        out = torch.ops.catena.paged_attention(query, key, value, layer, scaling, sliding_window, softcap, s_aux)
        return out, None
    if isinstance(paged, Layout):
        if getattr(module, "is_causal", True) is False or layer in paged.keys:
            raise DataError("its layers have more than causal attention to themselves")
        paged.keys[layer], paged.values[layer] = (key.shape[1], key.shape[3]), (value.shape[1], value.shape[3])
        paged.dtype, paged.device = key.dtype, key.device
        paged.capped |= softcap is not None
        paged.sinks |= s_aux is not None
        return _sdpa(query, key, value, scaling, causal=True).transpose(1, 2), None

    return _attention(paged, layer, (query, key, value), Form.of(paged, scaling, sliding_window, softcap, s_aux)), None


def _attention(batch: Batch, layer: int, row: tuple[Tensor, Tensor, Tensor], form: Form) -> Tensor:
    query, key, value = row
    batch.cache.write(layer, batch.slots, key, value)
    call = _Call(batch.cache, layer, form)
    pools = batch.cache.keys[layer].data, batch.cache.values[layer].data
    pieces = [_prefill(call, part, query, key, value) for part in batch.prefills]
    if batch.flat.prefills is not None:
        pieces.append(batch.flat.prefills.attend(row, pools, form))
    pieces += [_decode(call, part, query) for part in batch.decodes]
    if batch.flat.singles is not None:
        pieces.append(batch.flat.singles.attend(query, pools, form))
    return (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).unsqueeze(0)


@dataclass(frozen=True, slots=True)
class Form:
    """How one layer's attention is computed."""

    scaling: float | None
    window: int | None
    """Each token sees so many, itself included; None: all before it."""
    softcap: float | None
    """Scores are bent to stay below it (Gemma 2, arXiv 2408.00118)."""
    sinks: Tensor | None
    """`[heads]`: the score of a place where attention may go to nothing (gpt-oss)."""
    memory: int = 0
    """Tokens at the start that every token sees, besides its window."""

    @staticmethod
    def of(
        batch: Batch, scaling: float | None, window: int | None, softcap: float | None, sinks: Tensor | None
    ) -> Form:
        """Return the form of a layer, by what the model hands over and by its settings."""
        if batch.local is not None:
            return Form(scaling, batch.local.window, softcap, sinks, batch.local.memory)
        return Form(scaling, window, softcap, sinks)

    @property
    def plain(self) -> bool:
        """Whether torch's own kernel computes it."""
        return self.softcap is None and self.sinks is None

    def visible(self, at: Tensor, seen: Tensor) -> Tensor:
        """Return where a token at position `at` sees one at `seen`."""
        if self.window is None:
            return seen <= at
        near = seen > at - self.window
        return (seen <= at) & ((near | (seen < self.memory)) if self.memory else near)


@dataclass(frozen=True, slots=True)
class _Call:
    """What one layer's call has in common for all parts of the row."""

    cache: PagedCache
    layer: int
    form: Form

    def past(self, blocks: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Return this layer's keys and values `[batch, heads, length, dim]` of the blocks."""
        keys = self.cache.keys[self.layer].read(blocks, self.cache.block_size)
        values = self.cache.values[self.layer].read(blocks, self.cache.block_size)
        return keys[:, :, :length], values[:, :, :length]


def _prefill(call: _Call, part: Prefill, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of one sequence's chunk; returns `[tokens, heads, dim]`."""
    query, key, value = (row[:, :, part.start : part.end] for row in (query, key, value))
    form = call.form
    length = part.past + part.end - part.start
    if part.past:
        key, value = call.past(part.blocks, length)
    elif form.plain and (form.window is None or length <= form.window):
        return _sdpa(query, key, value, form.scaling, causal=True)[0].transpose(0, 1)
    at = torch.arange(part.past, length, device=query.device)[:, None]
    mask = form.visible(at, torch.arange(length, device=query.device)[None, :])
    if form.plain:
        return _sdpa(query, key, value, form.scaling, mask=mask)[0].transpose(0, 1)
    heads, tokens, dim = query.shape[1:]
    grouped = query.reshape(1, key.shape[1], -1, dim)
    out = _written_out(grouped, key, value, form, mask.repeat(heads // key.shape[1], 1), tokens)
    return out.reshape(heads, tokens, -1).transpose(0, 1)


def _decode(call: _Call, part: Decode, query: Tensor) -> Tensor:
    """Attention of one new token of each sequence of a group; returns `[sequences, heads, dim]`."""
    form = call.form
    rows = query[0, :, part.start : part.end].transpose(0, 1)
    if part.shared and form.plain and form.window is None:
        return _decode_shared(call, part, rows)
    length = part.longest if part.positions is None else part.positions.shape[1]
    key, value = call.past(part.blocks, length)
    heads = rows.shape[1]
    # The query heads that share a key head become its query "tokens": no copy of keys and values for grouped queries.
    grouped = rows.reshape(rows.shape[0], key.shape[1], heads // key.shape[1], rows.shape[2])
    mask = None
    if part.positions is not None or not part.equal or (form.window is not None and part.longest > form.window):
        every = torch.arange(length, device=query.device)[None, :]
        seen = every if part.positions is None else part.positions
        mask = form.visible(part.lengths - 1, seen)[:, None, None, :]
    if form.plain:
        out = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=form.scaling)
    else:
        out = _written_out(grouped, key, value, form, mask, 1)
    return out.reshape(rows.shape[0], heads, -1)


def _decode_shared(call: _Call, part: Decode, rows: Tensor) -> Tensor:
    """The same where all sequences begin alike: that beginning is one matrix for all of them, and not copied for each.

    One softmax runs over both parts, so that it is the same attention but for the order of sums.
    """
    count, heads, dim = rows.shape
    begin = part.shared * call.cache.block_size
    key, value = (one[0] for one in call.past(part.blocks[:1, : part.shared], begin))  # [kv_heads, begin, dim]
    own_key, own_value = call.past(part.blocks[:, part.shared :], part.longest - begin)
    scaling = dim**-0.5 if call.form.scaling is None else call.form.scaling
    grouped = rows.reshape(count, key.shape[0], -1, dim) * scaling  # [sequences, kv_heads, groups, dim]
    together = grouped.transpose(0, 1).reshape(key.shape[0], -1, dim)  # [kv_heads, sequences * groups, dim]
    first = (together @ key.transpose(1, 2)).reshape(key.shape[0], count, -1, begin).transpose(0, 1)
    own = grouped @ own_key.transpose(2, 3)
    if not part.equal:
        seen = begin + torch.arange(own.shape[-1], device=rows.device)[None, :]
        own = own.masked_fill((seen >= part.lengths)[:, None, None, :], torch.finfo(own.dtype).min)
    weights = torch.cat([first, own], dim=-1).softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    seen_first = weights[..., :begin].transpose(0, 1).reshape(key.shape[0], -1, begin)
    out = (seen_first @ value).reshape(key.shape[0], count, -1, value.shape[-1]).transpose(0, 1)
    return (out + weights[..., begin:] @ own_value).reshape(count, heads, -1)


def _written_out(query: Tensor, key: Tensor, value: Tensor, form: Form, mask: Tensor | None, tokens: int) -> Tensor:
    """Attention step by step, for forms that torch's kernel does not have; in float32 between, as `transformers` does.

    Query `[batch, kv_heads, groups * tokens, dim]`, with `tokens` running fastest; mask broadcastable to the scores.
    """
    scaling = query.shape[-1] ** -0.5 if form.scaling is None else form.scaling
    scores = query @ key.transpose(2, 3) * scaling
    if form.softcap is not None:
        scores = torch.tanh(scores / form.softcap) * form.softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if form.sinks is None:
        return scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value
    sinks = form.sinks.view(key.shape[1], -1).repeat_interleave(tokens, dim=1)[None, :, :, None]
    both = torch.cat([scores, sinks.to(scores.dtype).expand(len(scores), -1, -1, 1)], dim=-1)
    return both.softmax(dim=-1, dtype=torch.float32)[..., :-1].to(value.dtype) @ value


def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=grouped
    )


def _by_step(query: Tensor, key: Tensor, value: Tensor, layer: int, *form: Any) -> Tensor:
    batch: Batch = _threads.batch
    return _attention(batch, layer, (query, key, value), Form.of(batch, *form)).contiguous()


LIBRARY: Any = torch.library.Library("catena", "FRAGMENT")  # type: ignore[no-untyped-call]
LIBRARY.define(
    "paged_attention(Tensor query, Tensor key, Tensor value, int layer, float? scaling, int? window, float? softcap, "
    "Tensor? sinks) -> Tensor"
)
LIBRARY.impl("paged_attention", _by_step, "CPU")
LIBRARY.impl("paged_attention", _by_step, "CUDA")


def _shape(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


torch.library.register_fake("catena::paged_attention", _shape, lib=LIBRARY)


AttentionInterface.register(ATTENTION, attend)
# Without a mask function of the same name, transformers would build a dense mask over the whole row, or none where it
# is needed; sequences are told apart by `Batch` alone.
AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)
