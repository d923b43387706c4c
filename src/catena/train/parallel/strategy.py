"""The loop's view of the processes: everything that is different when there is more than one of them.

`Strategy` itself is one process, and the reference that all others must equal. The loop calls it in this order:

    place(model) -> optimizer(model) -> each step: backward, clip, optimizer.step -> pieces (checkpoints) -> gather

Every rank is given the same whole batch (batches are pure functions of the step) and takes its own part of it, so no
token has to be counted over the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catena.train.batches import Batch
from catena.train.objectives import next_token_loss
from catena.train.optim import begin, make_optimizer
from catena.train.parallel.contract import WorkerDone as WorkerDone
from catena.train.precision import precision
from catena.train.settings import TrainConfig

Objective = Callable[[Any, Batch], Tensor]
"""Summed loss over the learnt tokens (or rows) of a batch."""


@dataclass(slots=True)
class Wire:
    """Counts what this process hands to collectives and sends."""

    bytes: int = 0

    def add(self, *tensors: Tensor) -> None:
        """Count tensors about to be handed over."""
        self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of one global tensor that this process holds: weights, or a moment of the optimizer."""

    name: str
    """`model/<parameter>` or `<moment>/<parameter>`, with the parameter's name in the undivided model."""
    tensor: Tensor
    """The live local tensor; writing into it restores it."""
    shape: tuple[int, ...]
    """Of the global tensor."""
    offset: tuple[int, ...]
    """Where the local part begins in it."""
    writes: bool = True
    """Whether this process writes it to a checkpoint (of equal copies, one does)."""
    optional: bool = False
    """Whether the training can go on without it: where a checkpoint lacks it, the tensor stays as it is."""


class Strategy:
    """One process. The others inherit what does not change."""

    rank, world = 0, 1

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.wire = Wire()

    @property
    def main(self) -> bool:
        """Whether this process writes logs, the end result and the store."""
        return self.rank == 0

    def place(self, model: Any) -> Any:
        """Put the model (the same on every rank) where it trains; returns what is trained."""
        return model.to(self.device).train()

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """Return the optimizer of this process's weights."""
        return make_optimizer(model, self.config)

    def backward(self, model: Any, batch: Batch, objective: Objective, micro_batch_size: int) -> float:
        """Add the gradient of the whole batch's mean loss to the weights', over all processes; returns that mean."""
        total = 0.0
        for piece in batch.pieces(micro_batch_size):
            if not piece.learnt:
                continue
            with precision(self.config, self.device):
                # Divided by the tokens of the whole batch, not of the piece: pieces weigh as they should.
                loss = objective(model, piece.to(self.device)) / batch.learnt
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def clip(self, model: nn.Module, longest: float) -> float:
        """Shorten the whole gradient to a 2-norm of `longest`; returns the norm before."""
        return float(torch.nn.utils.clip_grad_norm_(model.parameters(), longest))

    @torch.no_grad()
    def measure(self, model: Any, batches: Sequence[Batch], objective: Objective = next_token_loss) -> float:
        """Return the mean loss over all learnt tokens of some batches, the same on every rank."""
        model.eval()
        total, learnt = 0.0, 0
        for batch in batches:
            with precision(self.config, self.device):
                total += float(objective(model, batch.to(self.device)))
            learnt += batch.learnt
        model.train()
        return total / max(learnt, 1)

    def pieces(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Piece]:
        """Return all that this process holds and a checkpoint needs; moments that are not there yet are made first."""
        begin(optimizer)
        found = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                held = {"model": parameter.detach(), **optimizer.state.get(parameter, {})}
                for kind, tensor in held.items():
                    found.append(Piece(f"{kind}/{name}", tensor, tuple(tensor.shape), (0,) * tensor.dim()))
        return found

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any process: all decide alike to stop, to repeat, to pass over."""
        return flag

    def same(self, number: int) -> int:
        """Return what the main process says; for what is measured, and must be alike everywhere."""
        return number

    def least(self, number: int) -> int:
        """Return the least that any process says; for what all of them must be able to do."""
        return number

    def gather(self, model: Any) -> Any:
        """Return the whole trained model on the CPU on the main process (elsewhere anything), ready to be saved.

        It is the very object that `place` was given, whatever was done to it since.
        """
        return model.to("cpu").eval()

    def close(self) -> None:
        """Leave the group of processes."""
