"""The arithmetic of `local_global`: who sees whom, as one dense product and in blocks whose cost grows with the length.

    sequence   0 1 2 3 4 5 6 7 8 9 ...        window 3, memory 2, blocks of 3
    token 7    m m . . . x x x . .            m: the document's first tokens, x: the window, itself included
    block 2    m m | 3 4 5 | 6 7 8            keys of the queries 6 7 8: memory, the window before, the block's own

Tokens of different documents of a packed row never see each other, and padding is seen by nobody. `segments` says
which is which: int64 [batch, tokens], 0 for padding, else the number of the document, which rises along the row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from catena.models.attention_settings import SMALLEST_BLOCK, LocalGlobal


class Documents(NamedTuple):
    """Where the documents of packed or padded rows lie."""

    segments: Tensor
    """int64 [batch, tokens]: 0 for padding, else the document's number."""
    starts: Tensor
    """int64 [batch, tokens]: the place of the first token of the document that each token belongs to."""


def documents_of(segments: Tensor) -> Documents:
    """Find where each token's document begins; holes of padding in a document do not end it."""
    number = segments.cummax(dim=1).values
    begins = number > pad(number[:, :-1], (1, 0))
    places = torch.arange(segments.shape[1], device=segments.device)
    return Documents(segments, torch.where(begins, places, 0).cummax(dim=1).values)


def sees(settings: LocalGlobal, query: Tensor, key: Tensor, start: Tensor | int) -> Tensor:
    """Tell, for places of tokens in a row that broadcast, whether the query sees the key; `start` is the query's
    document's. Whether both are of one document is not asked here."""
    near = (query - key < settings.window) | (key - start < settings.memory)
    return (key <= query) & near


def dense_mask(settings: LocalGlobal, queries: Tensor, keys: int, documents: Documents | None) -> Tensor:
    """Return the whole pattern, bool [batch or 1, 1, queries, keys]; `queries` holds the places of the queries.

    A token always sees itself, padding too: a row of a softmax over nothing would not be a number.
    """
    places = torch.arange(keys, device=queries.device)
    query, key = queries[:, None], places[None, :]
    if documents is None:
        return sees(settings, query, key, 0)[None, None]
    segments, starts = documents
    own, start = segments[:, queries, None], starts[:, queries, None]
    same = (own == segments[:, None, :]) & (own > 0)
    return ((sees(settings, query, key, start) & same) | (query == key))[:, None]


def blocked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    settings: LocalGlobal,
    documents: Documents | None = None,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attend in blocks; time and memory grow with the number of tokens, not with its square.

    query [batch, heads, tokens, dim], key and value [batch, key_value_heads, tokens, dim]; returns the shape of query.
    """
    length = query.shape[2]
    size = max(settings.window, SMALLEST_BLOCK)
    tail = -length % size
    query, key, value = (pad(tensor, (0, 0, 0, tail)) for tensor in (query, key, value))
    if documents is not None:
        documents = Documents(pad(documents.segments, (0, tail)), pad(documents.starts, (0, tail)))
    attend = _BlockedCall(settings, size, scale, dropout)
    whole = attend(query, key, value, documents)
    return whole[:, :, :length]


class _BlockedCall(NamedTuple):
    """One attention over rows of whole blocks."""

    settings: LocalGlobal
    size: int
    scale: float | None
    dropout: float

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, documents: Documents | None) -> Tensor:
        """Attend; see `blocked_attention`."""
        batch, heads, tokens, dim = query.shape
        blocks = tokens // self.size
        if documents is None:
            # All blocks past the first few have one mask: it is made once, and nothing is gathered.
            first = min(blocks, 1 + -(-(self.settings.window + self.settings.memory) // self.size))
            head = self._head(query, key, value, first * self.size)
            if first == blocks:
                return head
            memory = torch.zeros(batch, blocks - first, dtype=torch.int64, device=query.device)
            mask = self._shared_mask(query.device)
        else:
            first, head = 0, None
            memory = documents.starts[:, :: self.size]
            mask = self._own_masks(documents, memory)
        rest = self._fold(query, first)
        keys, values = (self._with_past(tensor, first, memory) for tensor in (key, value))
        out = self._product(rest, keys, values, mask)
        out = out.view(batch, blocks - first, heads, self.size, dim).transpose(1, 2).reshape(batch, heads, -1, dim)
        return out if head is None else torch.cat([head, out], dim=2)

    def _product(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale, dropout_p=self.dropout)

    def _head(self, query: Tensor, key: Tensor, value: Tensor, length: int) -> Tensor:
        """Attend in the first few blocks, where windows reach into the memory, as one dense product."""
        mask = dense_mask(self.settings, torch.arange(length, device=query.device), length, None)
        return self._product(query[:, :, :length], key[:, :, :length], value[:, :, :length], mask)

    def _fold(self, tensor: Tensor, first: int) -> Tensor:
        """Lay blocks beside the rows: [batch, heads, tokens, dim] to [batch x blocks, heads, size, dim]."""
        batch, heads, _, dim = tensor.shape
        cut = tensor[:, :, first * self.size :].view(batch, heads, -1, self.size, dim)
        return cut.transpose(1, 2).reshape(-1, heads, self.size, dim)

    def _with_past(self, tensor: Tensor, first: int, memory: Tensor) -> Tensor:
        """Return what each block sees: [batch x blocks, heads, memory + window + size, dim].

        `memory` [batch, blocks] holds the place where each block's document begins. The window before a block is the
        end of the block before it; before the first there is none, and its mask says so.
        """
        batch, heads, tokens, dim = tensor.shape
        cut = tensor.view(batch, heads, -1, self.size, dim)
        before = pad(cut[:, :, :, -self.settings.window :], (0, 0, 0, 0, 1, 0))[:, :, first:-1]
        pieces = [before, cut[:, :, first:]]
        if self.settings.memory:
            places = self._memory_places(memory, tokens)
            if first:  # one document: all blocks have the same memory
                held = tensor[:, :, None, : self.settings.memory].expand(-1, -1, memory.shape[1], -1, -1)
            else:
                index = places.flatten(1)[:, None, :, None].expand(-1, heads, -1, dim)
                held = tensor.gather(2, index).view(batch, heads, *places.shape[1:], dim)
            pieces.insert(0, held)
        joined = torch.cat(pieces, dim=3)
        return joined.transpose(1, 2).reshape(-1, heads, joined.shape[3], dim)

    def _memory_places(self, memory: Tensor, tokens: int) -> Tensor:
        """Return the places of each block's memory tokens, [batch, blocks, memory]."""
        step = torch.arange(self.settings.memory, device=memory.device)
        return (memory[:, :, None] + step).clamp(max=tokens - 1)

    def _shared_mask(self, device: torch.device) -> Tensor:
        """Return the mask [1, 1, size, memory + window + size] of every block that lies beyond the memory."""
        window, memory = self.settings.window, self.settings.memory
        query = torch.arange(self.size, device=device)[:, None]
        key = torch.arange(-window, self.size, device=device)[None, :]
        local = (key <= query) & (query - key < window)
        return torch.cat([local.new_ones(self.size, memory), local], dim=1)[None, None]

    def _own_masks(self, documents: Documents, memory: Tensor) -> Tensor:
        """Return each block's mask, [batch x blocks, 1, size, memory + window + size]."""
        segments, starts = documents
        batch, tokens = segments.shape
        places = torch.arange(tokens, device=segments.device).view(1, -1, self.size)
        query = places[:, :, :, None]
        begin = places[:, :, :1] - self.settings.window
        step = torch.arange(self.settings.window + self.size, device=segments.device)
        local = (begin + step).expand(batch, -1, -1)
        held = self._memory_places(memory, tokens)
        # A memory token inside the window is seen there; twice would count double in the softmax.
        held = torch.where(held < begin, held, -1)
        keys = torch.cat([held, local], dim=2)
        of = segments.gather(1, keys.clamp(min=0).flatten(1)).view(keys.shape)
        own = segments.view(batch, -1, self.size)[:, :, :, None]
        start = starts.view(batch, -1, self.size)[:, :, :, None]
        key = keys[:, :, None, :]
        same = (own == of[:, :, None, :]) & (own > 0) & (key >= 0)
        mask = (sees(self.settings, query, key, start) & same) | (query == key)
        return mask.flatten(0, 1)[:, None]
