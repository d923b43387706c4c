"""What a training does when something goes wrong: rules over numbers, without torch and without files.

    every step       judge(state, config, loss, norm)    -> "go on", "pass over", "go back" or "lost"
    every measuring  measured(state, config, step, loss) -> whether to stop early
    out of memory    halved(rows)                        -> the next smaller micro-batch, or None

The state is plain numbers. It stands in each checkpoint, so a training that goes on judges as one left alone would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from catena.core.config import Config

Verdict = Literal["go on", "pass over", "go back", "lost"]
GIVE_UP_AFTER = 20
"""Steps passed over in a row before the training is declared lost."""
MEMORY_MARGIN = 0.05
"""Share of the free memory that a micro-batch is not given: the allocator and others need some."""


class MemoryShort(MemoryError):
    """Raised by a strategy on every process alike, when one of them ran out of memory before any had to wait for it."""


class GuardConfig(Config):
    """What is watched while training, and what is done about it."""

    spike_z: float = Field(default=6.0, ge=0)
    """Standard deviations above the mean of the last steps at which a loss is a spike; 0: none is looked for."""
    spike_rise: float = Field(default=0.5, ge=0)
    """Nats that a spike rises above that mean at least: at a loss near nothing a hard batch is many deviations."""
    spike_steps: int = Field(default=3, ge=1)
    """Spikes in a row that send the training back; a single hard batch does not."""
    window: int = Field(default=100, ge=4)
    """Steps that the mean is taken over; half of them must have been seen."""
    rewinds: int = Field(default=5, ge=0)
    """Times that the training may go back before it is declared lost; 0: spikes are counted only."""
    patience: int = Field(default=0, ge=0)
    """Measurements in a row without a better validation loss that end the training; 0: it goes on to its end."""
    min_delta: float = Field(default=0.0, ge=0)
    """Nats by which a validation loss must fall to count as better."""
    keep_best: bool = False
    """Whether the weights of the best validation loss are the result, instead of the last ones."""
    memory: bool = True
    """Whether a step that runs out of memory, or would on a CPU, is done again in smaller micro-batches."""


@dataclass
class GuardState:
    """What the rules remember."""

    skipped: int = 0
    """Steps passed over, because their loss or gradient was not finite."""
    skipped_in_a_row: int = 0
    losses: list[float] = field(default_factory=list)
    """Of the last steps, spikes left out."""
    spikes_in_a_row: int = 0
    spikes: int = 0
    rewinds: int = 0
    shift: int = 0
    """Batches that were left out by going back: step `s` takes the batch of `s + shift`."""
    phase: int = 0
    """Of the data that the losses are of."""
    anchor: int = 0
    """Step whose checkpoint the training goes back to."""
    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    """Measurements since the best one."""
    ended: bool = False
    """Whether the training was stopped early."""
    micro_batch: int = 0
    """Rows that fitted into memory at last; 0: as configured."""


def judge(state: GuardState, config: GuardConfig, loss: float, norm: float, *, watched: bool = True) -> Verdict:
    """Take a step's loss and gradient norm (before clipping) into the state, and say what to do.

    Of a batch that is not `watched` (it belongs to another curve) only finiteness is judged.
    """
    if not (math.isfinite(loss) and math.isfinite(norm)):
        state.skipped += 1
        state.skipped_in_a_row += 1
        return "lost" if state.skipped_in_a_row >= GIVE_UP_AFTER else "pass over"
    state.skipped_in_a_row = 0
    if not watched or not config.spike_z:
        return "go on"
    if not is_spike(state.losses, config, loss):
        state.spikes_in_a_row = 0
        state.losses = [*state.losses, loss][-config.window :]
        return "go on"
    state.spikes += 1
    state.spikes_in_a_row += 1
    if state.spikes_in_a_row < config.spike_steps or not config.rewinds:
        return "go on"
    return "go back" if state.rewinds < config.rewinds else "lost"


def is_spike(losses: Sequence[float], config: GuardConfig, loss: float) -> bool:
    """Tell whether a loss stands out from those before it."""
    if len(losses) * 2 < config.window:
        return False
    mean = math.fsum(losses) / len(losses)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in losses) / len(losses))
    return loss - mean > max(config.spike_z * deviation, config.spike_rise)


def gone_back(then: GuardState, now: GuardState, step: int) -> GuardState:
    """Return the state after going back to `then`, from a spike that was seen when `step` steps were done.

    All batches from there to the spike are left out; what was counted stays counted.
    """
    then.shift = now.shift + step - now.anchor
    then.anchor, then.rewinds = now.anchor, now.rewinds + 1
    then.skipped, then.spikes, then.micro_batch = now.skipped, now.spikes, now.micro_batch
    return then


def new_phase(state: GuardState, phase: int) -> None:
    """Forget the losses: what comes now is other data, whose loss may stand elsewhere."""
    state.losses, state.spikes_in_a_row, state.phase = [], 0, phase


def measured(state: GuardState, config: GuardConfig, step: int, loss: float) -> bool:
    """Take a validation loss into the state; returns whether it is the best so far. `state.ended` says to stop."""
    better = state.best is None or loss < state.best - config.min_delta
    if better and math.isfinite(loss):
        state.best, state.best_step, state.stale = loss, step, 0
        return True
    state.stale += 1
    state.ended = bool(config.patience) and state.stale >= config.patience
    return False


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that memory has run out, on a GPU or in torch's CPU allocator."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def halved(rows: int) -> int | None:
    """Return half of a micro-batch's rows, rounded up; None where there is nothing left to halve."""
    return (rows + 1) // 2 if rows > 1 else None


def fitting(rows: int, row_tokens: int, bytes_per_token: float, free: int) -> int:
    """Return how many rows of `row_tokens` can be computed at once in `free` bytes, by halving; at least one.

    Linux kills a process that takes too much memory without a word, so on a CPU this is asked before the step.
    """
    while rows > 1 and rows * row_tokens * bytes_per_token > free * (1 - MEMORY_MARGIN):
        rows = halved(rows) or 1
    return rows
