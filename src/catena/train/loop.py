"""The training loop: take a batch, sum its loss, step, say how it goes, leave a checkpoint. Every training runs here.

One step is

    batch = plan.batch(step)                            a pure function: nothing to restore but the step
    loss = sum over tokens / tokens of the whole batch   right for any number of pieces and processes
    judge: go on, pass the step over, or go back         catena.train.guard
    optimizer.step at plan.rate(step)

What is different with several processes stands behind `Strategy`. A training that is killed and started again ends with
the same bits as one that was left alone.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from catena.core.errors import DataError, EnvironmentProblem
from catena.core.events import Events
from catena.core.stage import Context
from catena.train import randomness
from catena.train.batches import Batch
from catena.train.checkpoint import Checkpoints
from catena.train.guard import GuardState, MemoryShort, gone_back, halved, judge, measured, new_phase, out_of_memory
from catena.train.memory import MemoryWatch
from catena.train.objectives import next_token_loss
from catena.train.parallel.make import make_strategy
from catena.train.parallel.rendezvous import saying_who_is_lost
from catena.train.parallel.strategy import Objective, Piece, WorkerDone
from catena.train.precision import LossScale, choose_device, finished, prepare, settle_precision
from catena.train.settings import TrainConfig
from catena.train.signals import stop_after_step
from catena.train.speed import Speed, peak_flops, process_started

LOSS = "loss"


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
    """Steps after which a checkpoint is written in any case, and other data comes."""
    fingerprint: str = ""
    """Of config, data and seed: a checkpoint of another training is not taken up."""

    def place(self, number: int) -> tuple[int, int]:
        """Return the step whose batch comes as the `number`-th, and its phase; after all, the last one comes again."""
        ends = sorted({*self.phase_ends, self.steps})
        begin = ends[-2] if len(ends) > 1 else 0
        step = number if number < self.steps else begin + (number - begin) % (self.steps - begin)
        return step, bisect_right(ends, step)


@dataclass
class Counters:
    """What changes while the training goes on; kept in each checkpoint."""

    step: int = 0
    tokens: int = 0
    """Tokens learnt from."""
    window_loss: float = 0.0
    """Sum over the tokens since the last entry in the curve."""
    window_tokens: int = 0
    validation_loss: float | None = None
    fingerprint: str = ""
    guard: GuardState = field(default_factory=GuardState)
    scale: LossScale = field(default_factory=LossScale)

    @classmethod
    def read(cls, found: dict[str, Any]) -> Counters:
        """Make counters of what a checkpoint holds."""
        return cls(**{**found, "guard": GuardState(**found["guard"]), "scale": LossScale(**found["scale"])})


def train(ctx: Context, model: Any, plan: Plan, config: TrainConfig) -> Counters:
    """Train `model` in place to the end of the plan; goes on from a checkpoint in `ctx.workdir`.

    SIGTERM and Ctrl-C leave a checkpoint and raise `KeyboardInterrupt`. Raises `DataError` when the training diverges,
    `ProcessLost` when another of its processes is gone, and `WorkerDone` at the end of every one but the main one.
    """
    with saying_who_is_lost():
        training = Training(ctx, model, plan, config)
        try:
            with stop_after_step() as stopped:
                while not training.done:
                    training.step()
                    training.keep(stopped())
            return training.end()
        finally:
            training.close()


class Training:
    """A training under way: the model in its place, its optimizer, and its counters."""

    def __init__(self, ctx: Context, model: Any, plan: Plan, config: TrainConfig) -> None:
        self.plan, self._whole = plan, model
        device = choose_device(config)
        self.config = config = config.model_copy(update={"precision": settle_precision(ctx, config, device)})
        self.strategy = make_strategy(config, device)
        self.events = ctx.events if self.strategy.main else Events()
        self.events.fact("number_format", config.precision)
        self.events.fact("device", device.type)
        self.checkpoints = Checkpoints(ctx.workdir, self.strategy, config.checkpoint_keep, self.events.log)
        peak = peak_flops(config.precision, device.type) if self.strategy.main else 0.0
        self._speed = Speed(model, peak * self.strategy.world)
        self._memory = MemoryWatch()
        self.model = self.strategy.place(model)
        prepare(self.model, config, device, plan.steps)
        self.optimizer = self.strategy.optimizer(self.model)
        self._recovering = False
        self.counters = self._begin(ctx.seed)
        self._progress = self.events.progress(plan.label, plan.steps, "steps", done=self.counters.step)
        self._saved_at = time.monotonic()

    @property
    def done(self) -> bool:
        """Whether no step is left to do."""
        return self.counters.step >= self.plan.steps or self.counters.guard.ended

    def step(self) -> None:
        """Do one step of the plan, or go back where its loss is the last of a spike."""
        number, counters = self.counters.step, self.counters
        place, phase = self.plan.place(number + counters.guard.shift)
        if phase != counters.guard.phase:
            new_phase(counters.guard, phase)
        batch = self.plan.batch(place)
        rate = self.plan.rate(number)
        with self._speed.timing(batch):
            loss, norm = self._backward(batch)
            if math.isfinite(loss) and math.isfinite(norm):
                self._update(rate)
            self.model.zero_grad(set_to_none=True)
        counters.step += 1
        verdict = judge(counters.guard, self.config.guard, loss, norm, watched=batch.curve == LOSS)
        if verdict == "lost":
            raise self._lost()
        if verdict == "go back" and self._go_back():
            return
        if verdict == "go on":
            self._count(batch, loss)
        self._report(batch, loss, norm, rate)
        if self.plan.validation and (self.done or counters.step % self.config.eval_every == 0):
            self._measure()

    def keep(self, stopped: bool) -> None:
        """Begin a checkpoint where one is due, and leave where a signal says so."""
        counters, config = self.counters, self.config
        if counters.step % config.checkpoint_every == 0 and not counters.guard.spikes_in_a_row:
            counters.guard.anchor = counters.step
        due = (
            self.done
            or stopped
            or counters.step in (counters.guard.anchor, *self.plan.phase_ends)
            or (config.guard.keep_best and counters.guard.best_step == counters.step)
            or time.monotonic() - self._saved_at >= config.checkpoint_seconds
        )
        if not self.strategy.any(due):  # clocks and signals differ from process to process
            return
        self._save()
        if self.strategy.any(stopped):
            self.checkpoints.must_be_there()
            raise KeyboardInterrupt(f"stopped after step {counters.step}; a checkpoint is kept")

    def end(self) -> Counters:
        """Wait for the last checkpoint and bring the result together in the model that `train` was given."""
        state, events = self.counters.guard, self.events
        self.checkpoints.must_be_there()
        self._progress.finish()
        best = state.best_step if self.config.guard.keep_best else None
        if best not in (None, self.counters.step) and self.checkpoints.load_weights(self._pieces(), best or 0):
            events.log(f"the weights of step {best} are kept: validation loss {state.best:.5f}")
        if state.skipped:
            events.log(f"{state.skipped} of {self.plan.steps} steps were passed over: their gradient was not finite")
        events.metric("skipped_steps", state.skipped)
        if state.rewinds:
            events.metric("rewinds", state.rewinds)
        if self.strategy.world > 1:
            events.metric("bytes_on_wire", self.strategy.wire.bytes)
        finished(self.strategy.gather(self.model))
        if not self.strategy.main:
            raise WorkerDone
        return self.counters

    def close(self) -> None:
        """Let the writer of checkpoints come to its end, and leave the group of processes."""
        self.checkpoints.close()
        self.strategy.close()

    def _begin(self, seed: int) -> Counters:
        config, plan = self.config, self.plan
        found = self.checkpoints.load(self._pieces(), plan.fingerprint)
        if found is not None:
            self.events.log(f"{plan.label}: going on from step {found['step']} of {plan.steps}")
            self._recovering = True
            return Counters.read(found)
        randomness.seed_all(seed)  # dropout, where a model has it
        counters = Counters(fingerprint=plan.fingerprint)
        if config.guard.spike_z and config.guard.rewinds and plan.steps > config.guard.window:
            self.checkpoints.save(self._pieces(), asdict(counters))  # what a spike before the first one goes back to
        return counters

    def _pieces(self) -> list[Piece]:
        return self.strategy.pieces(self.model, self.optimizer)

    def _backward(self, batch: Batch) -> tuple[float, float]:
        """Compute the gradient of a batch, in smaller micro-batches where memory runs out.

        Returns (mean loss over learnt tokens, gradient norm before clipping).
        """
        device, state = self.strategy.device, self.counters.guard
        whole = self.config.micro_batch_size or -(-len(batch.inputs) // self.strategy.world)
        before = randomness.tensors(device)
        while True:
            rows = min(state.micro_batch or whole, whole)
            if device.type == "cpu" and self.config.guard.memory:
                # Processes that share layers or matrices meet in each micro-batch: all cut alike.
                rows = self.strategy.least(self._memory.rows(rows, batch.inputs.shape[1]))
            try:
                with self._memory.measuring(rows * batch.inputs.shape[1]):
                    return self._gradient(batch, rows)
            except (RuntimeError, MemoryError) as error:
                if not (self.config.guard.memory and out_of_memory(error)):
                    raise
                smaller = halved(rows)
                self._check_memory(rows, smaller, error)
            # The same tokens and the same random numbers again; what the failed attempt held is free by now.
            state.micro_batch = smaller or 1
            self.model.zero_grad(set_to_none=True)
            randomness.put_back(before, device)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            self.events.log(f"memory ran out with {rows} rows at once; step {self.counters.step} again with {smaller}")
            self.events.metric("micro_batch", state.micro_batch, self.counters.step)

    def _check_memory(self, rows: int, smaller: int | None, error: BaseException) -> None:
        """Raise where a step cannot be done again: nothing is left to halve, or the other processes have gone on."""
        if smaller is None:
            raise EnvironmentProblem(
                "memory ran out with a single sequence",
                hint="Train shorter sequences, a smaller model or adapters, or share it: parallel.data=zero3.",
            ) from error
        if self.strategy.world > 1 and not isinstance(error, MemoryShort):
            raise EnvironmentProblem(
                f"memory ran out with {rows} rows at once on process {self.strategy.rank}",
                hint=f"Set micro_batch_size to {smaller}, and run it again.",
            ) from error

    def _gradient(self, batch: Batch, rows: int) -> tuple[float, float]:
        scale, objective = 1.0, self.plan.objective
        if self.config.precision == "float16":
            scale = self.counters.scale.value

        def scaled(model: Any, piece: Batch) -> Tensor:
            return objective(model, piece) * scale

        loss = self.strategy.backward(self.model, batch, objective if scale == 1.0 else scaled, rows) / scale
        if scale != 1.0:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(1.0 / scale)
        norm = self.strategy.clip(self.model, self.config.clip)
        if self.config.precision == "float16":
            self.counters.scale.learn(math.isfinite(norm))
        return loss, norm

    def _update(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    def _count(self, batch: Batch, loss: float) -> None:
        counters = self.counters
        counters.tokens += batch.learnt
        if batch.curve == LOSS:
            counters.window_loss += loss * batch.learnt
            counters.window_tokens += batch.learnt

    def _go_back(self) -> bool:
        """Put the checkpoint before the spike back and leave out the data since; tells whether that one was there."""
        now, step = self.counters.guard, self.counters.step
        found = self.checkpoints.load(self._pieces(), self.plan.fingerprint, now.anchor)
        if found is None:
            self.events.log(
                f"the loss rose sharply up to step {step}; no checkpoint of step {now.anchor} to go back to"
            )
            return False
        self.counters = Counters.read(found)
        self.counters.guard = gone_back(self.counters.guard, now, step)
        self.events.log(
            f"the loss rose sharply up to step {step}: back to step {now.anchor}, leaving out the data of "
            f"{step - now.anchor} steps (time {now.rewinds + 1} of {self.config.guard.rewinds})"
        )
        self._progress.done = self.counters.step
        return True

    def _lost(self) -> DataError:
        state, step = self.counters.guard, self.counters.step
        why = (
            f"{state.skipped_in_a_row} steps in a row up to step {step} had no finite gradient"
            if state.skipped_in_a_row
            else f"it went back {state.rewinds} times, and its loss rose sharply again up to step {step}"
        )
        return DataError(f"the training diverged: {why}", hint="Lower learning_rate, or raise warmup_steps.")

    def _measure(self) -> None:
        counters = self.counters
        loss = self.strategy.measure(self.model, self.plan.validation, self.plan.objective)
        counters.validation_loss = loss
        self.events.metric("val_loss", round(loss, 5), counters.step)
        measured(counters.guard, self.config.guard, counters.step, loss)
        if counters.guard.ended:
            self.events.log(
                f"stopped early at step {counters.step}: no better validation loss than {counters.guard.best:.5f} "
                f"(step {counters.guard.best_step}) in {counters.guard.stale} measurements"
            )

    def _save(self) -> None:
        began, counters = time.perf_counter(), self.counters
        self.checkpoints.wait()
        if self.checkpoints.save_s:
            self.events.metric("checkpoint_save_s", round(self.checkpoints.save_s, 4), self.checkpoints.saved)
        best = counters.guard.best_step if self.config.guard.keep_best else None
        self.checkpoints.save(self._pieces(), asdict(counters), {counters.guard.anchor, best})
        self.events.metric("checkpoint_stall_ms", round(1000 * (time.perf_counter() - began), 2), counters.step)
        self._saved_at = time.monotonic()

    def _report(self, batch: Batch, loss: float, norm: float, rate: float) -> None:
        counters, events = self.counters, self.events
        if self._recovering:
            events.metric("time_to_recover_s", round(time.time() - process_started(), 3), counters.step)
            self._recovering = False
        if batch.curve != LOSS:
            events.metric(batch.curve, round(loss, 5), counters.step)
        self._progress.advance(1, **{batch.curve: round(loss, 4)}, **self._speed.shown, norm=round(norm, 4))
        if not self.done and counters.step % self.config.log_every:
            return
        if counters.window_tokens:
            events.metric(LOSS, round(counters.window_loss / counters.window_tokens, 7), counters.step)
            counters.window_loss, counters.window_tokens = 0.0, 0
        events.metric("learning_rate", rate, counters.step)
        events.metric("grad_norm", round(norm, 5) if math.isfinite(norm) else -1.0, counters.step)
        for name, value in self._speed.read().items():
            events.metric(name, value, counters.step)
