"""Packing: several short rows in one, and batches by tokens instead of rows. What a token sees does not change.

    one round of draws (an epoch)  ->  rows packed into sequences  ->  sequences into batches  ->  the batches' order
            conversations.py           best_fit_decreasing             by_rows, by_tokens          shuffled

A round's batches are found once, by the lengths alone, and are the same whenever it is asked for: batch `step` is a
pure function of (lengths, seed, step).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from catena.core.errors import DataError
from catena.train.batches import Batch, Seed, pack_rows, pad_rows, permutation
from catena.train.conversations import SORTED_BATCHES, Draws, Pool
from catena.train.tokens import Tokens

Together = list[int]
"""Rows that stand in one sequence."""


def best_fit_decreasing(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Put items into bins of `capacity`: the largest first, each where it leaves least room; returns places by bin.

    At most 11/9 of the fewest possible bins, and one more (Johnson 1974); near 100 % full for short items.
    Raises `ValueError` where an item is larger than a bin.
    """
    bins: list[list[int]] = []
    with_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys of `with_room`, sorted
    for place in sorted(range(len(sizes)), key=lambda at: (-sizes[at], at)):
        size = sizes[place]
        if size > capacity:
            raise ValueError(f"an item of {size} does not fit into {capacity}")
        found = bisect_left(rooms, size)
        if found == len(rooms):
            room, number = capacity, len(bins)
            bins.append([])
        else:
            room = rooms[found]
            number = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[found]
        bins[number].append(place)
        if left := room - size:
            if left not in with_room:
                with_room[left] = []
                insort(rooms, left)
            with_room[left].append(number)
    return bins


def by_tokens(widths: Sequence[int], budget: int) -> list[range]:
    """Cut sequences, sorted by width, into batches whose rows times widest row are within `budget` (at least a row)."""
    batches, start, widest = [], 0, 0
    for at, width in enumerate(widths):
        widest = max(widest, width)
        if at > start and widest * (at + 1 - start) > budget:
            batches.append(range(start, at))
            start, widest = at, width
    return [*batches, range(start, len(widths))]


@dataclass(frozen=True)
class Filling:
    """How rows become batches."""

    batch_size: int
    """Sequences in a batch, where no budget is given."""
    tokens: int = 0
    """Most tokens of a batch, padding too; 0: by `batch_size`."""
    capacity: int = 0
    """Tokens of a packed sequence; 0: each row is a sequence."""


class PackedRows:
    """Batches of rows by the tokens they hold; each round goes through the rows in another order."""

    def __init__(self, tokens: Tokens, pools: Sequence[Pool], filling: Filling, seed: Seed, pad: int) -> None:
        self.tokens, self.filling, self.seed, self.pad = tokens, filling, seed, pad
        self._inputs: NDArray[np.int64] = np.maximum(tokens.lengths.astype(np.int64) - 1, 0)
        longest = int(self._inputs.max(initial=0))
        if filling.capacity and longest > filling.capacity:
            raise DataError(
                f"a row of {longest + 1} tokens does not fit into a sequence of {filling.capacity}",
                hint="Give a longer sequence_length, or set overlong to cut or split.",
            )
        self._draws = Draws(pools, sum(len(pool.rows) for pool in pools), seed)
        self._round = lru_cache(maxsize=2)(self._make_round)
        self._ends: list[int] = []  # batches of all rounds up to each, as far as they have been counted

    def steps(self, epochs: float) -> int:
        """Return the steps that so many times through the rows take."""
        whole = int(epochs)
        done = self._end(whole - 1) if whole else 0
        part = round((epochs - whole) * (self._end(whole) - done)) if epochs > whole else 0
        return max(1, done + part)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        while not self._ends or self._ends[-1] <= step:
            self._end(len(self._ends))
        number = bisect_right(self._ends, step)
        return self._lay(self._round(number)[step - (self._ends[number - 1] if number else 0)])

    def in_order(self, limit: int) -> list[Batch]:
        """Return at most `limit` batches of rows in an order of their own, for measuring."""
        return [self._lay(batch) for batch in self._batches(list(range(len(self.tokens))), 0)[:limit]]

    def _end(self, number: int) -> int:
        """Return how many batches there are up to the end of a round."""
        while len(self._ends) <= number:
            self._ends.append((self._ends[-1] if self._ends else 0) + len(self._round(len(self._ends))))
        return self._ends[number]

    def _make_round(self, number: int) -> list[list[Together]]:
        return self._batches(self._draws.group(number), number)

    def _batches(self, drawn: list[int], number: int) -> list[list[Together]]:
        filling = self.filling
        if filling.capacity:
            packed = best_fit_decreasing(self._inputs[drawn].tolist(), filling.capacity)
            # The first bins hold the longest rows: shuffled, so that no batch is all of one length.
            lines = [[drawn[at] for at in packed[bin]] for bin in permutation(len(packed), *self.seed, number, 1)]
            groups = [lines]
        else:
            groups = self._sorted_groups(drawn)
        batches = [batch for lines in groups for batch in self._cut(lines)]
        return [batches[place] for place in permutation(len(batches), *self.seed, number)]

    def _sorted_groups(self, drawn: list[int]) -> list[list[Together]]:
        """Sort by length within about `SORTED_BATCHES` batches, as `BucketedConversations` does."""
        mean = max(1.0, float(self._inputs[drawn].mean()))
        size = max(1, int(SORTED_BATCHES * (self.filling.tokens / mean or self.filling.batch_size)))
        groups = [drawn[at : at + size] for at in range(0, len(drawn), size)]
        return [[[row] for row in sorted(group, key=lambda row: (int(self._inputs[row]), row))] for group in groups]

    def _cut(self, lines: list[Together]) -> list[list[Together]]:
        size = self.filling.batch_size
        spans = [range(at, min(at + size, len(lines))) for at in range(0, len(lines), size)]
        if self.filling.tokens:
            spans = by_tokens([int(self._inputs[line].sum()) for line in lines], self.filling.tokens)
        return [[lines[at] for at in span] for span in spans]

    def _lay(self, batch: list[Together]) -> Batch:
        if not self.filling.capacity:
            return pad_rows([self.tokens[row] for [row] in batch], self.pad)
        return pack_rows([[self.tokens[row] for row in line] for line in batch], self.pad)
