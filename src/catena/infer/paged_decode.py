"""Attention of one new token of each sequence over its blocks, on a GPU: two Triton kernels, no copy of keys or values.

The keys of a sequence are cut into `SPLITS` parts, each read by a program of its own; the second kernel joins them
(FlashDecoding, https://crfm.stanford.edu/2023/10/12/flashdecoding.html). The query heads that share a key head are the
rows of one product:

    program (sequence, key head, part)     q [group, dim]  x  k [tokens, dim]  ->  sum, maximum, weighted values
    program (sequence, query head)         parts           ->  out [dim]

How a sequence is cut depends on its own length only, so that its sums do not depend on who is beside it, and nothing of
a launch depends on lengths, so that it can be recorded as a graph. With TRITON_INTERPRET=1 it runs without a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

SPLITS = 8
"""Parts of a sequence: with 8 key heads and one sequence they make 64 programs."""
TILE = 64
"""Keys that are read at once."""
LEAST_ROWS = 16
"""Rows of a product on tensor cores."""


@triton.jit
def _part(
    query, keys, values, tables, lengths, sums, peaks, parts,
    width, apart, scaling, softcap, window,
    GROUP: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PAGE: tl.constexpr,
    KV_HEADS: tl.constexpr, CUT: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    WIDE: tl.constexpr, VALUE_WIDE: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    sequence, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + sequence * apart)
    begin = tl.maximum(length - window, 0)
    share = tl.cdiv(tl.cdiv(length - begin, BLOCK), CUT) * BLOCK
    first = begin + part * share
    last = tl.minimum(first + share, length)
    rows, dims, value_dims = tl.arange(0, ROWS), tl.arange(0, WIDE), tl.arange(0, VALUE_WIDE)
    places = ((sequence * KV_HEADS + head) * GROUP + rows)[:, None] * DIM + dims[None, :]
    q = tl.load(query + places, mask=(rows < GROUP)[:, None] & (dims < DIM)[None, :], other=0.0)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, VALUE_WIDE], tl.float32)
    for start in range(first, last, BLOCK):
        at = start + tl.arange(0, BLOCK)
        seen = at < last
        page = tl.load(tables + sequence * width + at // PAGE, mask=seen, other=0).to(tl.int64)
        slot = (page * PAGE + at % PAGE) * KV_HEADS + head
        k = tl.load(keys + slot[:, None] * DIM + dims[None, :], mask=seen[:, None] & (dims < DIM)[None, :], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scaling
        if CAPPED:
            bent = 2 * tl.sigmoid(2 * scores / softcap) - 1  # tanh
            scores = bent * softcap
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        before = tl.exp(peak - higher)
        valid = seen[:, None] & (value_dims < VALUE_DIM)[None, :]
        v = tl.load(values + slot[:, None] * VALUE_DIM + value_dims[None, :], mask=valid, other=0.0)
        out = out * before[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        total = total * before + tl.sum(weights, 1)
        peak = higher
    row = ((sequence * KV_HEADS + head) * CUT + part) * ROWS + rows
    tl.store(peaks + row, peak)
    tl.store(sums + row, total)
    tl.store(parts + row[:, None] * VALUE_WIDE + value_dims[None, :], out)


@triton.jit
def _join(
    sums, peaks, parts, out,
    GROUP: tl.constexpr, VALUE_DIM: tl.constexpr, KV_HEADS: tl.constexpr, CUT: tl.constexpr, ROWS: tl.constexpr,
    VALUE_WIDE: tl.constexpr,
):  # fmt: skip
    sequence, head = tl.program_id(0), tl.program_id(1)
    cuts, dims = tl.arange(0, CUT), tl.arange(0, VALUE_WIDE)
    row = ((sequence * KV_HEADS + head // GROUP) * CUT + cuts) * ROWS + head % GROUP
    peak = tl.load(peaks + row)
    share = tl.exp(peak - tl.max(peak, 0))
    total = tl.sum(tl.load(sums + row) * share, 0)
    found = tl.load(parts + row[:, None] * VALUE_WIDE + dims[None, :])
    result = tl.sum(found * share[:, None], 0) / total
    place = (sequence * KV_HEADS * GROUP + head) * VALUE_DIM + dims
    tl.store(out + place, result.to(out.dtype.element_ty), mask=dims < VALUE_DIM)


def paged_decode(
    query: Tensor,
    pools: tuple[Tensor, Tensor],
    tables: Tensor,
    lengths: Tensor,
    page: int,
    *,
    scaling: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attend from the newest token of each sequence to all of it, or to its last `window` tokens.

    `query [sequences, heads, dim]`; the pools of keys and values `[slots, kv_heads, dim]`, values with their own dim;
    `tables [sequences, width]` int, the numbers of each sequence's blocks of `page` slots; `lengths [sequences]`
    int, the new token included and at least 1. Returns `[sequences, heads, value_dim]`.
    """
    keys, values = pools
    count, heads, dim = query.shape
    kv_heads, value_dim = keys.shape[1], values.shape[2]
    group = heads // kv_heads
    rows = max(LEAST_ROWS, triton.next_power_of_2(group))
    wide, value_wide = (max(LEAST_ROWS, triton.next_power_of_2(one)) for one in (dim, value_dim))
    numbers: dict[str, Any] = {"device": query.device, "dtype": torch.float32}
    sums, peaks = (torch.empty(count, kv_heads, SPLITS, rows, **numbers) for _ in range(2))
    parts = torch.empty(count, kv_heads, SPLITS, rows, value_wide, **numbers)
    out = torch.empty(count, heads, value_dim, device=query.device, dtype=query.dtype)
    sizes: dict[str, Any] = {"GROUP": group, "VALUE_DIM": value_dim, "KV_HEADS": kv_heads, "CUT": SPLITS, "ROWS": rows}
    scale = dim**-0.5 if scaling is None else scaling
    _part[(count, kv_heads, SPLITS)](
        query.contiguous(), keys, values, tables, lengths, sums, peaks, parts,
        tables.stride(0), lengths.stride(0), scale, softcap or 1.0, window or 1 << 30,
        DIM=dim, PAGE=page, BLOCK=TILE, WIDE=wide, VALUE_WIDE=value_wide, CAPPED=softcap is not None, **sizes,
    )  # fmt: skip
    _join[(count, heads)](sums, peaks, parts, out, VALUE_WIDE=value_wide, **sizes)
    return out
