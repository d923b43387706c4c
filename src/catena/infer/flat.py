"""Attention of a step's row on a GPU: all prefills are one call, all single tokens another, whatever their lengths.

    token row   [ prefill A ... | prefill B ... | C D E F ]
                  one varlen call of torch        `paged_decode`: blocks are read where they lie

The prefills' past is gathered behind each other, as FlashAttention's varlen interface wants it (arXiv 2205.14135); what
torch's kernel does not have (scores bent by a softcap, float32) goes the way of `catena.infer.kv`, one by one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence as Many
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from catena.infer.kv import Form, Layout
    from catena.infer.scheduler import Chunk

LARGEST_DIM = 256
"""Numbers of a head that torch's varlen kernel takes at most."""
Decoder = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Kinds:
    """Which parts of a row go the flat way."""

    prefills: bool = False
    decodes: bool = False


def kinds_of(layout: Layout, *, local: bool) -> Kinds:
    """Return what a model's layers allow on their device; nothing on a processor."""
    if layout.device.type != "cuda" or local or layout.rounded or layout.sinks:
        return Kinds()
    dims = {dim for _, dim in (*layout.keys.values(), *layout.values.values())}
    even = all(layout.keys[layer][1] == layout.values[layer][1] for layer in layout.keys)
    short = layout.dtype in (torch.bfloat16, torch.float16) and max(dims) <= LARGEST_DIM
    fits = short and even and not layout.capped and not any(dim % 8 for dim in dims)
    return Kinds(fits, max(dims) <= LARGEST_DIM and importlib.util.find_spec("triton") is not None)


@dataclass(frozen=True, slots=True)
class Singles:
    """Tokens `start..` of the row are the newest of as many sequences."""

    start: int
    tables: Tensor
    """int `[sequences, width]`: each sequence's blocks, filled up with any."""
    lengths: Tensor
    """int `[sequences]`, the new token included."""
    page: int

    def attend(self, query: Tensor, pools: tuple[Tensor, Tensor], form: Form) -> Tensor:
        """Return `[sequences, heads, dim]` of the row's `query [1, heads, tokens, dim]`."""
        from catena.infer.paged_decode import paged_decode

        rows = query[0, :, self.start : self.start + len(self.lengths)].transpose(0, 1)
        form_of: dict[str, Any] = {"scaling": form.scaling, "window": form.window, "softcap": form.softcap}
        return paged_decode(rows, pools, self.tables, self.lengths, self.page, **form_of)


@dataclass(frozen=True, slots=True)
class Prefills:
    """The row's tokens `0..count` are chunks of sequences, one behind the other."""

    count: int
    bounds: tuple[Tensor, Tensor]
    """int32 `[sequences + 1]`: where each one's queries begin, and where its keys do."""
    longest: tuple[int, int]
    """Most queries, and most keys, of one."""
    slots: Tensor | None
    """`[keys]`: where all their keys lie in the pool; None where no one has a past."""

    def attend(self, row: tuple[Tensor, Tensor, Tensor], pools: tuple[Tensor, Tensor], form: Form) -> Tensor:
        """Return `[count, heads, dim]` of the row's query, key and value `[1, heads, tokens, dim]`."""
        from torch.nn.attention.varlen import varlen_attn

        query, key, value = (one[0, :, : self.count].transpose(0, 1) for one in row)
        if self.slots is not None:
            key, value = (pool.index_select(0, self.slots) for pool in pools)
        left = -1 if form.window is None else form.window - 1
        options: dict[str, Any] = {"scale": form.scaling, "window_size": (left, 0)}
        options["enable_gqa"] = query.shape[1] != key.shape[1]
        out: Tensor = varlen_attn(query, key, value, *self.bounds, *self.longest, **options)  # type: ignore[assignment]
        return out


@dataclass(frozen=True, slots=True)
class Flat:
    """What of a row goes the flat way."""

    prefills: Prefills | None = None
    singles: Singles | None = None


NOTHING = Flat()


def flatten(row: Many[Chunk], singles: int, page: int, kinds: Kinds, device: torch.device) -> Flat:
    """Describe a row whose last `singles` chunks are single tokens."""
    long, short = row[: len(row) - singles], row[len(row) - singles :]
    start = sum(chunk.stop - chunk.start for chunk in long)
    return Flat(
        _prefills(long, page, device) if kinds.prefills and long else None,
        _singles(short, start, page, device) if kinds.decodes and short else None,
    )


def _singles(row: Many[Chunk], start: int, page: int, device: torch.device) -> Singles:
    width = max(-(-chunk.stop // page) for chunk in row)
    tables = [(chunk.sequence.blocks + [0] * width)[:width] for chunk in row]
    numbers: dict[str, Any] = {"device": device, "dtype": torch.int32}
    return Singles(start, torch.tensor(tables, **numbers), torch.tensor([chunk.stop for chunk in row], **numbers), page)


def _prefills(row: Many[Chunk], page: int, device: torch.device) -> Prefills:
    queries = [chunk.stop - chunk.start for chunk in row]
    keys = [chunk.stop for chunk in row]
    slots = None
    if any(chunk.start for chunk in row):
        places = [chunk.sequence.blocks[at // page] * page + at % page for chunk in row for at in range(chunk.stop)]
        slots = torch.tensor(places, device=device)
    bounds = [torch.tensor([0, *counts]).cumsum(0).to(device, torch.int32) for counts in (queries, keys)]
    return Prefills(sum(queries), (bounds[0], bounds[1]), (max(queries), max(keys)), slots)
