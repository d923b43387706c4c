"""Curriculum: phases of a fine-tuning as one training; which batch and which rate a step has, as pure functions of it.

Each phase draws conversations of some levels (`metadata.level`), evenly or by shares, in batches of equally many
(conversations.py), of equally many tokens, or packed (packing.py).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field, model_validator

from catena.core.config import Config
from catena.core.errors import DataError, did_you_mean
from catena.core.sample import Sample

if TYPE_CHECKING:
    from catena.train.batches import Batch
    from catena.train.conversations import Pool
    from catena.train.sft import SftConfig
    from catena.train.tokens import Tokens


SHORTEST_LINE = 512
"""Tokens of a packed row where the config says nothing and no conversation is longer."""


class Phase(Config):
    """One part of a curriculum. At most one of `steps` and `epochs`; none means one epoch."""

    levels: tuple[int, ...] = ()
    """Values of `metadata.level` to draw from; empty: all conversations."""
    shares: tuple[float, ...] = ()
    """For each level its share of every batch; empty: each conversation counts the same."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps."""
    epochs: float | None = Field(default=None, gt=0)
    """Times to go through this phase's conversations."""
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    """Highest rate in this phase, in place of the stage's."""

    @model_validator(mode="after")
    def _consistent(self) -> Phase:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        if self.shares and (len(self.shares) != len(self.levels) or min(self.shares) <= 0):
            raise ValueError("shares are positive numbers, one for each level")
        return self


@dataclass(frozen=True)
class Facts:
    """What a curriculum asks of each conversation, row by row."""

    levels: list[Any]
    turns: list[int]
    """A number for each value of the key `take_turns`."""


def facts_of(samples: Iterable[Sample], rows: Sequence[int], take_turns: str) -> Facts:
    """Return the facts of rows that were made from these samples (`rows`: each one's place among them).

    Raises `DataError` where no sample has the key `take_turns` in its metadata.
    """
    numbers: dict[Any, int] = {}
    levels, turns = [], []
    seen: set[str] = set()
    for sample in samples:
        seen.update(sample.metadata)
        levels.append(sample.metadata.get("level"))
        turns.append(numbers.setdefault(sample.metadata.get(take_turns), len(numbers)))
    if take_turns and take_turns not in seen:
        known = did_you_mean(take_turns, seen) or "They have no metadata."
        raise DataError(f"take_turns: no conversation has {take_turns!r} in its metadata", hint=known)
    return Facts([levels[row] for row in rows], [turns[row] for row in rows])


class Drawn(Protocol):
    """Batches of one phase."""

    def steps(self, epochs: float) -> int:
        """Return the steps that so many epochs take."""

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""


class Curriculum:
    """Phases as one training."""

    def __init__(self, cfg: SftConfig, facts: Facts, rows: Tokens, seed: int, pad: int) -> None:
        self.cfg = cfg
        self._drawn = [
            _draw(cfg, rows, pools_of(phase, facts, cfg.take_turns), (seed, number), pad)
            for number, phase in enumerate(cfg.phases)
        ]
        lengths = [steps_of(phase, drawn) for phase, drawn in zip(cfg.phases, self._drawn, strict=True)]
        self.ends = list(accumulate(lengths))
        """Number of steps done when each phase ends."""

    @property
    def steps(self) -> int:
        """Steps of all phases together."""
        return self.ends[-1]

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        number = bisect_right(self.ends, step)
        return self._drawn[number].batch(step - (self.ends[number - 1] if number else 0))

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: one schedule over all phases, each with its own height if it has one."""
        from catena.train.optim import learning_rate

        phase = self.cfg.phases[bisect_right(self.ends, step)]
        return learning_rate(step, self.steps, self.cfg, phase.learning_rate)


def _draw(cfg: SftConfig, rows: Tokens, pools: list[Pool], seed: tuple[int, ...], pad: int) -> Drawn:
    from catena.train.conversations import BucketedConversations
    from catena.train.packing import Filling, PackedRows

    if not cfg.packing and not cfg.tokens_per_batch:
        return BucketedConversations(rows, pools, cfg.batch_size, seed, pad)
    capacity = (cfg.sequence_length or max(int(rows.lengths.max()), SHORTEST_LINE)) if cfg.packing else 0
    return PackedRows(rows, pools, Filling(cfg.batch_size, cfg.tokens_per_batch, capacity), seed, pad)


def steps_of(phase: Phase, drawn: Drawn) -> int:
    """Return the optimizer steps that a phase's budget comes to."""
    return phase.steps or drawn.steps(phase.epochs or 1.0)


def pools_of(phase: Phase, facts: Facts, take_turns: str = "") -> list[Pool]:
    """Return what a phase draws from: one pool, or one for each level where it has shares.

    Raises `DataError` when a level of the phase has no conversation.
    """
    import numpy as np

    from catena.train.conversations import Pool

    for level in phase.levels:
        if level not in facts.levels:
            present = sorted({str(found) for found in facts.levels})
            raise DataError(f"no conversation has the level {level}", hint=f"Levels here: {', '.join(present)}.")
    groups = [[level] for level in phase.levels] if phase.shares else [list(phase.levels)]
    pools = []
    for number, levels in enumerate(groups):
        rows = np.array([at for at, level in enumerate(facts.levels) if not levels or level in levels], np.int64)
        share = phase.shares[number] if phase.shares else 1.0
        pools.append(Pool(rows, share, np.array(facts.turns, np.int64)[rows] if take_turns else None))
    return pools
