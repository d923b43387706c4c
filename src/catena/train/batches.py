"""Batches: which tokens a step sees. The order is a pure function of (seed, cursor): to resume is to ask for a step.

    tokens on disk (tokens.py) -> an order (here, conversations.py, packing.py) -> Batch -> objective

Documents are laid end to end and cut into windows of equal length: no padding at all. Conversations, and documents that
must not see each other, are drawn as rows (conversations.py) or packed into rows (packing.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catena.core.errors import DataError
from catena.models.chat import Encoded
from catena.train.tokens import Row, Tokens

IGNORED = -100
"""Label of a position that is not learnt."""

Indices = NDArray[np.int64]
Seed = tuple[int, ...]
"""Whole numbers, none negative."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids and what is to be learnt at each position, both int64 [rows, tokens], `IGNORED` where nothing.

    Every field that is a tensor has the rows first, so that pieces and shares of a batch are chosen rows of it.
    """

    inputs: Tensor
    labels: Tensor
    learnt: int
    """Number of labels that are not `IGNORED`."""
    real: int
    """Number of inputs that are not padding."""
    curve: str = "loss"
    """Name of the curve that the loss of the batch belongs to."""
    sizes: Tensor | None = None
    """Inputs of each row that are not padding, [rows]; None where there is no padding."""
    positions: Tensor | None = None
    """Of packed rows: place of each token in its document, [rows, tokens]. Each 0 begins a document that sees no other;
    the padding of a row counts as one."""
    documents: Tensor | None = None
    """Of packed rows: which document of its row each token belongs to, [rows, tokens]."""

    def pieces(self, rows: int) -> list[Self]:
        """Cut into micro-batches of `rows` (0: one piece)."""
        if not rows or rows >= len(self.inputs):
            return [self]
        return [self.select(torch.arange(len(self.inputs))[at : at + rows]) for at in range(0, len(self.inputs), rows)]

    def share(self, rank: int, ranks: int) -> Self:
        """Return the rows that process `rank` of `ranks` takes: all rows go round, each with about equal tokens.

        Rows stay whole. With fewer rows than processes, those without get one of which nothing is learnt: every process
        then computes, and a collective in the model waits for nobody.
        """
        sizes = torch.full((len(self.inputs),), self.inputs.shape[1]) if self.sizes is None else self.sizes
        dealt = deal(sizes.tolist(), ranks)[rank]
        if not dealt:
            first = self.select(torch.zeros(1, dtype=torch.int64))
            return replace(first, labels=torch.full_like(first.labels, IGNORED), learnt=0)
        return self.select(torch.tensor(dealt)).trimmed()

    def select(self, rows: Tensor) -> Self:
        """Return these rows of the batch, [chosen]."""
        chosen: dict[str, Any] = {name: tensor.index_select(0, rows) for name, tensor in self._tensors().items()}
        sizes = chosen.get("sizes")
        real = chosen["inputs"].numel() if sizes is None else int(sizes.sum())
        return replace(self, **chosen, learnt=int(chosen["labels"].ne(IGNORED).sum()), real=real)

    def trimmed(self) -> Self:
        """Leave out the columns at the end that are padding in every row."""
        if self.sizes is None:
            return self
        width = int(self.sizes.max())
        cut: dict[str, Any] = {name: held[:, :width] for name, held in self._tensors().items() if held.dim() > 1}
        return replace(self, **cut)

    def to(self, device: torch.device) -> Self:
        """Return the batch on a device."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self._tensors().items()}
        return replace(self, **moved)

    def _tensors(self) -> dict[str, Tensor]:
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in held.items() if isinstance(value, Tensor)}


def deal(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """Deal rows to processes, the largest first, each to whoever has least; returns each one's rows in order."""
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    held = [0] * ranks
    for row in sorted(range(len(sizes)), key=lambda at: (-sizes[at], at)):
        poorest = min(range(ranks), key=lambda rank: (held[rank], rank))
        dealt[poorest].append(row)
        held[poorest] += sizes[row]
    return [sorted(rows) for rows in dealt]


def permutation(size: int, *seed: int) -> Indices:
    """Return the numbers below `size` in an order that `seed` decides."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed))).permutation(size)


class PackedDocuments:
    """Documents joined by an end token and cut into windows; each epoch goes through them in another order."""

    def __init__(self, tokens: Tokens, length: int, batch_size: int, seed: Seed) -> None:
        self.tokens, self.length, self.batch_size, self.seed = tokens, length, batch_size, seed
        self.windows = (tokens.total - 1) // length
        if self.windows < 1:
            raise DataError(
                f"the documents have {tokens.total} tokens, fewer than one sequence of {length}",
                hint="Give more documents, or a smaller sequence_length.",
            )
        self._order = lru_cache(maxsize=2)(lambda epoch: permutation(self.windows, *seed, epoch))

    def steps(self, epochs: float) -> int:
        """Return the steps that so many times through the documents take."""
        return max(1, round(epochs * self.windows / self.batch_size))

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
        both = torch.from_numpy(np.stack([self.tokens.read(at * self.length, self.length + 1) for at in windows]))
        size = len(windows) * self.length
        return Batch(both[:, :-1].contiguous(), both[:, 1:].contiguous(), size, size)


def pad_rows(rows: Sequence[Row | Encoded], pad: int) -> Batch:
    """Lay conversations into one batch, padded on the right; a label stands where the next token is to be learnt."""
    sizes = [len(row.ids) - 1 for row in rows]
    inputs = np.full((len(rows), max(sizes)), pad, np.int64)
    labels = np.full((len(rows), max(sizes)), IGNORED, np.int64)
    for at, row in enumerate(rows):
        _lay(row, inputs[at], labels[at], 0)
    learnt = int((labels != IGNORED).sum())
    return Batch(torch.from_numpy(inputs), torch.from_numpy(labels), learnt, sum(sizes), sizes=torch.tensor(sizes))


def pack_rows(rows: Sequence[Sequence[Row | Encoded]], pad: int) -> Batch:
    """Lay several conversations or documents into each row of one batch, with positions that begin again at each.

    row         a b c d | e f | g h i |
    inputs      a b c   e   g h   .          the last token of each is only foretold
    labels      b c d   f   h i   -
    positions   0 1 2   0   0 1   0
    documents   0 0 0   1   2 2   3
    """
    sizes = [sum(len(item.ids) - 1 for item in row) for row in rows]
    shape = (len(rows), max(sizes))
    inputs, labels = np.full(shape, pad, np.int64), np.full(shape, IGNORED, np.int64)
    positions, documents = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for at, row in enumerate(rows):
        start = 0
        for number, item in enumerate(row):
            end = start + _lay(item, inputs[at], labels[at], start)
            positions[at, start:end], documents[at, start:end] = np.arange(end - start), number
            start = end
        positions[at, start:], documents[at, start:] = np.arange(shape[1] - start), len(row)
    return Batch(
        torch.from_numpy(inputs),
        torch.from_numpy(labels),
        int((labels != IGNORED).sum()),
        sum(sizes),
        sizes=torch.tensor(sizes),
        positions=torch.from_numpy(positions),
        documents=torch.from_numpy(documents),
    )


def _lay(row: Row | Encoded, inputs: Indices, labels: Indices, start: int) -> int:
    """Write one row's inputs and labels from `start` on; returns how many they are."""
    ids = np.asarray(row.ids, np.int64)
    end = start + len(ids) - 1
    inputs[start:end] = ids[:-1]
    labels[start:end] = np.where(np.asarray(row.mask, bool)[1:], ids[1:], IGNORED)
    return len(ids) - 1


def fixed_batches(rows: Tokens, batch_size: int, pad: int, limit: int) -> list[Batch]:
    """Return at most `limit` batches of conversations, sorted by length, for measuring."""
    chosen = [int(at) for at in np.argsort(rows.lengths[: limit * batch_size], kind="stable")]
    return [
        pad_rows([rows[index] for index in chosen[at : at + batch_size]], pad)
        for at in range(0, len(chosen), batch_size)
    ]
