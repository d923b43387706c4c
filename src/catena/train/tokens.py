"""Tokens: texts as the numbers a model reads, mapped from files. Nothing of them is in memory but where each begins.

    <workdir>/tokens-train/
        00000.tokens.npy    uint16, or int32 for a vocabulary of more than 65,536: the rows of one shard, joined
        00000.learnt.npy    whether each token is learnt from (conversations only)
        00000.lengths.npy   tokens of each row
        00000.samples.npy   which sample of the split each row was made from
        00000.json          tokens, rows, largest id, and what was done to samples; written last
        done.json           what all this was made from; written when every shard is there

They are written once (shards.py); batches.py, conversations.py and packing.py read them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from catena.core.errors import DataError

ARRAYS = ("tokens", "learnt", "lengths", "samples")


class Row(NamedTuple):
    """One document, or conversation, or piece of either."""

    ids: NDArray[np.integer[Any]]
    mask: NDArray[np.bool_]
    """True where a token is to be learnt."""


class HasIdsAndMask(Protocol):
    """What a conversation in tokens has."""

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def mask(self) -> Sequence[bool]: ...


@dataclass(frozen=True)
class Shard:
    """A run of rows, joined. Arrays in memory, or mapped from files."""

    tokens: NDArray[np.integer[Any]]
    learnt: NDArray[np.bool_] | None
    """None: all of them."""
    lengths: NDArray[np.int32]
    samples: NDArray[np.int64]
    counts: Mapping[str, int] = field(default_factory=dict)
    """What was done to samples: `cut`, `split`, `too_long`, `nothing_to_learn`, `empty`."""


class Tokens:
    """All rows of a split, in their order."""

    def __init__(self, shards: Sequence[Shard], largest: int | None = None) -> None:
        self._shards = list(shards)
        self.lengths = _joined([shard.lengths for shard in shards], np.int32)
        """Tokens of each row."""
        self.samples = _joined([shard.samples for shard in shards], np.int64)
        """Which sample of the split each row was made from; several rows of one sample stand together."""
        self._first_row = np.cumsum([0, *(len(shard.lengths) for shard in shards)])
        self._first_token = np.cumsum([0, *(len(shard.tokens) for shard in shards)])
        self._starts = np.cumsum([0, *self.lengths.tolist()])
        self.largest = max((int(shard.tokens.max()) for shard in shards), default=-1) if largest is None else largest
        """Largest token id."""
        self.counts: dict[str, int] = {}
        """What was done to samples, and to how many."""
        for shard in shards:
            for reason, count in shard.counts.items():
                self.counts[reason] = self.counts.get(reason, 0) + count

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> Row:
        number = int(np.searchsorted(self._first_row, row, side="right")) - 1
        shard = self._shards[number]
        start = int(self._starts[row] - self._first_token[number])
        place = slice(start, start + int(self.lengths[row]))
        ids = shard.tokens[place]
        return Row(ids, np.ones(len(ids), bool) if shard.learnt is None else shard.learnt[place])

    @property
    def total(self) -> int:
        """Tokens of all rows."""
        return int(self._first_token[-1])

    @property
    def learnt(self) -> int:
        """Tokens that are learnt from."""
        return sum(len(shard.tokens) if shard.learnt is None else int(shard.learnt.sum()) for shard in self._shards)

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """Return `count` tokens from `start` on of all rows joined."""
        parts = []
        number = int(np.searchsorted(self._first_token, start, side="right")) - 1
        while count > 0 and number < len(self._shards):
            at = start - int(self._first_token[number])
            part = self._shards[number].tokens[at : at + count]
            parts.append(part)
            start, count, number = start + len(part), count - len(part), number + 1
        return _joined(parts, np.int64)

    def check_vocabulary(self, size: int) -> None:
        """Raise `DataError` where a token is not one of a model's `size`."""
        if self.largest >= size:
            raise DataError(
                f"the data has the token {self.largest}, the model only {size} tokens (0 to {size - 1})",
                hint="Tokenizer and model do not belong together; give the tokenizer that the model was trained with.",
            )


def documents_in_memory(documents: Iterable[Sequence[int]], end: int) -> Tokens:
    """Return documents as tokens without files, each with the end token after it; empty ones are left out."""
    rows = [[*ids, end] for ids in documents if len(ids)]
    return Tokens([make_shard([(ids, None) for ids in rows], range(len(rows)))])


def conversations_in_memory(conversations: Iterable[HasIdsAndMask]) -> Tokens:
    """Return conversations as tokens without files."""
    rows = [(row.ids, row.mask) for row in conversations]
    return Tokens([make_shard(rows, range(len(rows)))])


def make_shard(
    rows: Sequence[tuple[Sequence[int], Sequence[bool] | None]],
    samples: Iterable[int],
    counts: Mapping[str, int] | None = None,
    vocabulary: int = 1 << 31,
) -> Shard:
    """Return rows of (ids, which are learnt) as one shard; with a `vocabulary` of up to 65,536 in two bytes a token."""
    dtype = np.uint16 if vocabulary <= 1 << 16 else np.int32
    every = all(mask is None for _, mask in rows)
    return Shard(
        tokens=_joined([np.asarray(ids, dtype) for ids, _ in rows], dtype),
        learnt=None if every else _joined([np.asarray(mask, bool) for _, mask in rows], np.bool_),
        lengths=np.array([len(ids) for ids, _ in rows], np.int32),
        samples=np.fromiter(samples, np.int64),
        counts=dict(counts or {}),
    )


def _joined(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype)


def open_tokens(folder: Path) -> Tokens:
    """Map a finished folder of shards. Raises `OSError`, `ValueError` or `KeyError` where it is damaged."""
    shards, largest = [], -1
    for path in sorted(folder.glob("[0-9]*.json")):
        facts = json.loads(path.read_text())
        arrays: dict[str, Any] = dict.fromkeys(ARRAYS)
        for name, size in facts["files"].items():
            file = folder / f"{path.stem}.{name}.npy"
            if file.stat().st_size != size:
                raise ValueError(f"{file.name} has {file.stat().st_size} bytes instead of {size}")
            # An array of no bytes cannot be mapped; lengths and samples are read, being small.
            mapped = name in ("tokens", "learnt") and facts["tokens"] > 0
            arrays[name] = np.load(file, mmap_mode="r" if mapped else None, allow_pickle=False)
        shards.append(Shard(**arrays, counts=facts["counts"]))
        largest = max(largest, facts["largest"])
    return Tokens(shards, largest)
