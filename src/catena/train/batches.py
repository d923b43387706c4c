"""Batches: which tokens a step sees. The order is a pure function of (seed, cursor): to resume is to ask for a step.

Documents are laid end to end and cut into windows of equal length: no padding at all. Conversations are sorted by
length within a few batches' worth of them, so that a batch holds rows of about one length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catena.core.errors import DataError
from catena.models.chat import Encoded

IGNORED = -100
"""Label of a position that is not learnt."""
SORTED_BATCHES = 8
"""Batches whose rows are sorted by length together: about 3 % of padding is left for questions and answers."""

Indices = NDArray[np.int64]
Seed = tuple[int, ...]
"""Whole numbers, none negative."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids and what is to be learnt at each position, both int64 [rows, tokens], `IGNORED` where nothing."""

    inputs: Tensor
    labels: Tensor
    learnt: int
    """Number of labels that are not `IGNORED`."""
    real: int
    """Number of inputs that are not padding (of a whole batch; a piece does not say)."""
    curve: str = "loss"
    """Name of the curve that the loss of the batch belongs to."""

    def pieces(self, rows: int) -> list[Batch]:
        """Cut into micro-batches of `rows` (0: one piece)."""
        if not rows or rows >= len(self.inputs):
            return [self]
        pairs = zip(torch.split(self.inputs, rows), torch.split(self.labels, rows), strict=True)
        return [Batch(inputs, labels, int(labels.ne(IGNORED).sum()), 0) for inputs, labels in pairs]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return replace(self, inputs=self.inputs.to(device), labels=self.labels.to(device))


def permutation(size: int, *seed: int) -> Indices:
    """Return the numbers below `size` in an order that `seed` decides."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed))).permutation(size)


class PackedDocuments:
    """Documents joined by an end token and cut into windows; each epoch goes through them in another order."""

    def __init__(self, documents: Sequence[Sequence[int]], end: int, length: int, batch_size: int, seed: Seed) -> None:
        joined = [np.asarray([*ids, end], dtype=np.int32) for ids in documents if ids]
        self.tokens = np.concatenate(joined) if joined else np.zeros(0, np.int32)
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.windows = (len(self.tokens) - 1) // length
        if self.windows < 1:
            raise DataError(
                f"the documents have {len(self.tokens)} tokens, fewer than one sequence of {length}",
                hint="Give more documents, or a smaller sequence_length.",
            )
        self._order = lru_cache(maxsize=2)(lambda epoch: permutation(self.windows, *seed, epoch))

    def batch(self, step: int) -> Batch:
        """Return the batch of a step: `batch_size` windows, the label of each token being the next one."""
        cursors = range(step * self.batch_size, (step + 1) * self.batch_size)
        chosen = [int(self._order(cursor // self.windows)[cursor % self.windows]) for cursor in cursors]
        return self._cut(chosen)

    def in_order(self, limit: int) -> list[Batch]:
        """Return at most `limit` batches in the documents' own order, for measuring."""
        starts = range(0, min(self.windows, limit * self.batch_size), self.batch_size)
        return [self._cut(range(start, min(start + self.batch_size, self.windows))) for start in starts]

    def _cut(self, windows: Sequence[int]) -> Batch:
        rows = np.stack([self.tokens[at * self.length : (at + 1) * self.length + 1] for at in windows]).astype(np.int64)
        both = torch.from_numpy(rows)
        size = len(windows) * self.length
        return Batch(both[:, :-1].contiguous(), both[:, 1:].contiguous(), size, size)


@dataclass(frozen=True)
class Pool:
    """Rows that are drawn from in turn, each once in an epoch, and their share of every batch."""

    rows: Indices
    share: float = 1.0
    turns: Indices | None = None
    """A number for each row: rows with one number (phrasings of one fact) are spread evenly over an epoch."""

    def order(self, *seed: int) -> Indices:
        """Return the rows in the order of one epoch."""
        shuffled = permutation(len(self.rows), *seed)
        if self.turns is None:
            return self.rows[shuffled]
        seen: dict[int, int] = {}
        rounds = np.empty(len(shuffled), np.int64)
        for place, turn in enumerate(self.turns[shuffled].tolist()):
            rounds[place] = seen[turn] = seen.get(turn, -1) + 1
        return self.rows[shuffled[np.argsort(rounds, kind="stable")]]


class BucketedConversations:
    """Conversations drawn from pools and grouped by length."""

    def __init__(self, rows: Sequence[Encoded], pools: Sequence[Pool], batch_size: int, seed: Seed, pad: int) -> None:
        self.rows, self.pools, self.batch_size, self.seed, self.pad = rows, pools, batch_size, seed, pad
        self.quotas = _quotas([pool.share for pool in pools], SORTED_BATCHES * batch_size)
        self._order = lru_cache(maxsize=2 * len(pools))(lambda pool, epoch: pools[pool].order(*seed, pool, epoch))
        self._group = lru_cache(maxsize=1)(self._make_group)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, [batch_size, longest row]."""
        group, place = divmod(step, SORTED_BATCHES)
        return pad_rows([self.rows[index] for index in self._group(group)[place]], self.pad)

    def _make_group(self, group: int) -> list[list[int]]:
        chosen: list[int] = []
        for number, (pool, quota) in enumerate(zip(self.pools, self.quotas, strict=True)):
            size = len(pool.rows)
            cursors = range(group * quota, (group + 1) * quota)
            chosen += [int(self._order(number, cursor // size)[cursor % size]) for cursor in cursors]
        chosen.sort(key=lambda index: (len(self.rows[index].ids), index))
        batches = [chosen[at : at + self.batch_size] for at in range(0, len(chosen), self.batch_size)]
        return [batches[place] for place in permutation(SORTED_BATCHES, *self.seed, group)]


def _quotas(shares: Sequence[float], total: int) -> list[int]:
    """Split `total` by shares into whole numbers that sum to it (largest remainders first)."""
    exact = [share / sum(shares) * total for share in shares]
    whole = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda at: (whole[at] - exact[at], at))
    for at in by_remainder[: total - sum(whole)]:
        whole[at] += 1
    return whole


def pad_rows(rows: Sequence[Encoded], pad: int) -> Batch:
    """Lay conversations into one batch, padded on the right; a label stands where the next token is to be learnt."""
    longest = max(len(row.ids) for row in rows) - 1
    inputs = np.full((len(rows), longest), pad, np.int64)
    labels = np.full((len(rows), longest), IGNORED, np.int64)
    for at, row in enumerate(rows):
        ids = np.asarray(row.ids, np.int64)
        inputs[at, : len(ids) - 1] = ids[:-1]
        labels[at, : len(ids) - 1] = np.where(row.mask[1:], ids[1:], IGNORED)
    real = sum(len(row.ids) - 1 for row in rows)
    return Batch(torch.from_numpy(inputs), torch.from_numpy(labels), int((labels != IGNORED).sum()), real)


def fixed_batches(rows: Sequence[Encoded], batch_size: int, pad: int, limit: int) -> list[Batch]:
    """Return at most `limit` batches of conversations, sorted by length, for measuring."""
    chosen = sorted(rows[: limit * batch_size], key=lambda row: len(row.ids))
    return [pad_rows(chosen[at : at + batch_size], pad) for at in range(0, len(chosen), batch_size)]


Overlong = Literal["refuse", "cut", "drop"]


def fit(rows: Sequence[Encoded], context: int, policy: Overlong) -> tuple[list[int], list[Encoded], dict[str, int]]:
    """Make conversations fit into `context` tokens; returns (indices kept, those rows, counts of what was done).

    Counts: `cut`, `too_long` (dropped), `nothing_to_learn` (no assistant token, or none left after the cut).
    Raises `DataError` under the policy `refuse`.
    """
    kept: list[int] = []
    fitted: list[Encoded] = []
    counts = {"cut": 0, "too_long": 0, "nothing_to_learn": 0}
    for index, row in enumerate(rows):
        if len(row.ids) > context:
            if policy == "refuse":
                raise DataError(
                    f"conversation {index} has {len(row.ids)} tokens, the model takes {context}",
                    hint="Set overlong to cut or drop, or train a model with a longer context.",
                )
            counts["cut" if policy == "cut" else "too_long"] += 1
            if policy == "drop":
                continue
            row = Encoded(row.ids[:context], row.mask[:context])
        if not any(row.mask[1:]):
            counts["nothing_to_learn"] += 1
            continue
        kept.append(index)
        fitted.append(row)
    return kept, fitted, counts
