"""Conversations, drawn from pools in turn: each once in an epoch, and as often in every batch as its pool's share says.

pools -> draws (which row comes when) -> grouped by length here, or packed (packing.py) -> Batch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from catena.train.batches import Batch, Indices, Seed, pad_rows, permutation
from catena.train.tokens import Tokens

SORTED_BATCHES = 8
"""Batches whose rows are sorted by length together: about 3 % of padding is left for questions and answers."""


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


class Draws:
    """Rows of several pools in the order in which they are learnt, in groups of one size."""

    def __init__(self, pools: Sequence[Pool], size: int, seed: Seed) -> None:
        self.pools, self.seed = pools, seed
        self.quotas = _quotas([pool.share for pool in pools], size)
        self._order = lru_cache(maxsize=2 * len(pools))(lambda pool, epoch: pools[pool].order(*seed, pool, epoch))

    def group(self, number: int) -> list[int]:
        """Return the rows of a group, pool by pool."""
        chosen: list[int] = []
        for at, (pool, quota) in enumerate(zip(self.pools, self.quotas, strict=True)):
            size = len(pool.rows)
            cursors = range(number * quota, (number + 1) * quota)
            chosen += [int(self._order(at, cursor // size)[cursor % size]) for cursor in cursors]
        return chosen


class BucketedConversations:
    """Batches of equally many conversations, grouped by length."""

    def __init__(self, rows: Tokens, pools: Sequence[Pool], batch_size: int, seed: Seed, pad: int) -> None:
        self.rows, self.batch_size, self.seed, self.pad = rows, batch_size, seed, pad
        self._draws = Draws(pools, SORTED_BATCHES * batch_size, seed)
        self._drawn = sum(len(pool.rows) for pool in pools)
        self._group = lru_cache(maxsize=1)(self._make_group)

    def steps(self, epochs: float) -> int:
        """Return the steps that so many times through the conversations take."""
        return max(1, round(epochs * self._drawn / self.batch_size))

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, [batch_size, longest row]."""
        group, place = divmod(step, SORTED_BATCHES)
        return pad_rows([self.rows[index] for index in self._group(group)[place]], self.pad)

    def _make_group(self, group: int) -> list[list[int]]:
        chosen = self._draws.group(group)
        chosen.sort(key=lambda index: (int(self.rows.lengths[index]), index))
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
