"""The training loop: take a batch, sum its loss, step, say how it goes, leave a checkpoint. Every training runs here.

One step is

    batch = plan.batch(step)                            a pure function: nothing to restore but the step
    loss = sum over tokens / tokens of the whole batch   right for any number of pieces
    clip, or pass the step over if it is not finite
    optimizer.step at plan.rate(step)

A training that is killed and started again ends with the same bits as one that was left alone.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from catena.core.errors import DataError
from catena.core.stage import Context
from catena.train.batches import Batch
from catena.train.checkpoint import load_checkpoint, save_checkpoint
from catena.train.objectives import next_token_loss
from catena.train.parallel.strategy import Objective, Strategy
from catena.train.precision import choose_device, settle_precision
from catena.train.settings import TrainConfig

LOSS = "loss"
GIVE_UP_AFTER = 20
"""Steps passed over in a row before the training is declared lost."""


@dataclass(frozen=True)
class Plan:
    """What a training is to do, as functions of the step."""

    label: str
    steps: int
    batch: Callable[[int], Batch]
    rate: Callable[[int], float]
    validation: Sequence[Batch] = ()
    objective: Objective = next_token_loss
    phase_ends: frozenset[int] = frozenset()
    """Steps after which a checkpoint is written in any case."""
    fingerprint: str = ""
    """Of config, data and seed: a checkpoint of another training is not taken up."""


@dataclass
class Counters:
    """What changes while the training goes on; kept in each checkpoint."""

    step: int = 0
    tokens: int = 0
    """Tokens learnt from."""
    skipped: int = 0
    """Steps passed over, because their gradient was not finite."""
    skipped_in_a_row: int = 0
    window_loss: float = 0.0
    """Sum over the tokens since the last entry in the curve."""
    window_tokens: int = 0
    validation_loss: float | None = None
    fingerprint: str = field(default="")


def train(ctx: Context, model: Any, plan: Plan, config: TrainConfig) -> Counters:
    """Train `model` in place to the end of the plan; goes on from a checkpoint in `ctx.workdir`.

    SIGTERM and Ctrl-C leave a checkpoint and raise `KeyboardInterrupt`. Raises `DataError` when the training diverges.
    """
    device = choose_device(config)
    config = config.model_copy(update={"precision": settle_precision(ctx, config, device)})
    strategy = Strategy(config, device)
    model = strategy.place(model)
    optimizer = strategy.optimizer(model)
    counters = _resume(ctx, model, optimizer, plan)
    progress = ctx.progress(plan.label, plan.steps, "steps", done=counters.step)
    speed, saved = _Speed(), time.monotonic()
    with _stop_after_step() as stopped:
        for step in range(counters.step, plan.steps):
            batch = plan.batch(step)
            rate = plan.rate(step)
            with speed.timing(batch):
                loss, norm = train_step(strategy, model, optimizer, batch, rate, plan.objective)
            _count(counters, batch, loss, norm)
            if batch.curve != LOSS:
                ctx.events.metric(batch.curve, round(loss, 5), counters.step)
            progress.advance(1, **{batch.curve: round(loss, 4)})
            last = counters.step == plan.steps
            if last or counters.step % config.log_every == 0:
                _log(ctx, counters, rate, norm, speed)
            if plan.validation and (last or counters.step % config.eval_every == 0):
                counters.validation_loss = strategy.measure(model, plan.validation, plan.objective)
                ctx.events.metric("val_loss", round(counters.validation_loss, 5), counters.step)
            due = time.monotonic() - saved >= config.checkpoint_seconds
            if due or last or stopped() or counters.step in plan.phase_ends:
                save_checkpoint(ctx.workdir, model, optimizer, asdict(counters))
                saved = time.monotonic()
            if stopped():
                raise KeyboardInterrupt(f"stopped after step {counters.step}; a checkpoint is kept")
    progress.finish()
    if counters.skipped:
        ctx.events.log(f"{counters.skipped} of {plan.steps} steps were passed over: their gradient was not finite")
    ctx.events.metric("skipped_steps", counters.skipped)
    strategy.gather(model)
    return counters


def train_step(
    strategy: Strategy,
    model: Any,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    rate: float,
    objective: Objective = next_token_loss,
) -> tuple[float, float]:
    """Do one optimizer step; returns (mean loss over learnt tokens, gradient norm before clipping).

    Where either is not finite the weights and the optimizer's moments stay as they were.
    """
    config = strategy.config
    total = strategy.backward(model, batch, objective, config.micro_batch_size)
    norm = strategy.clip(model, config.clip)
    if math.isfinite(total) and math.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total, norm


def _resume(ctx: Context, model: Any, optimizer: torch.optim.Optimizer, plan: Plan) -> Counters:
    found = load_checkpoint(ctx.workdir, model, optimizer, plan.fingerprint, ctx.events.log)
    if found is None:
        torch.manual_seed(ctx.seed)  # dropout, where a model has it
        return Counters(fingerprint=plan.fingerprint)
    ctx.events.log(f"{plan.label}: going on from step {found['step']} of {plan.steps}")
    return Counters(**found)


def _count(counters: Counters, batch: Batch, loss: float, norm: float) -> None:
    counters.step += 1
    if math.isfinite(loss) and math.isfinite(norm):
        counters.skipped_in_a_row = 0
        counters.tokens += batch.learnt
        if batch.curve != LOSS:
            return
        counters.window_loss += loss * batch.learnt
        counters.window_tokens += batch.learnt
        return
    counters.skipped += 1
    counters.skipped_in_a_row += 1
    if counters.skipped_in_a_row >= GIVE_UP_AFTER:
        raise DataError(
            f"the training diverged: {GIVE_UP_AFTER} steps in a row up to step {counters.step} had no finite gradient",
            hint="Lower learning_rate, or raise warmup_steps.",
        )


class _Speed:
    """Tokens per second of the steps since the last reading; padding, measuring and saving are not counted."""

    def __init__(self) -> None:
        self.tokens, self.seconds = 0, 0.0

    @contextmanager
    def timing(self, batch: Batch) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began
        self.tokens += batch.real

    def read(self) -> float:
        rate = self.tokens / max(self.seconds, 1e-9)
        self.tokens, self.seconds = 0, 0.0
        return rate


def _log(ctx: Context, counters: Counters, rate: float, norm: float, speed: _Speed) -> None:
    step = counters.step
    if counters.window_tokens:
        ctx.events.metric("loss", round(counters.window_loss / counters.window_tokens, 5), step)
        counters.window_loss, counters.window_tokens = 0.0, 0
    ctx.events.metric("learning_rate", rate, step)
    ctx.events.metric("grad_norm", round(norm, 5) if math.isfinite(norm) else -1.0, step)
    ctx.events.metric("tokens_per_s", round(speed.read(), 1), step)


@contextmanager
def _stop_after_step() -> Iterator[Callable[[], bool]]:
    """Hold SIGINT and SIGTERM back until the step is done: weights and moments always belong together.

    A second signal stops at once. Outside the main thread signals are not ours to take.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, _: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
