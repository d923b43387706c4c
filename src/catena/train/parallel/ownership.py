"""Who answers for which weights: of equal copies one process writes, and under ZeRO it alone steps.

Whole parameters are dealt out, the largest first, each to whoever has least (ZeRO, arXiv 1910.02054, whose stages 1 and
2 these are).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from catena.train.parallel.mesh import Axis
from catena.train.parallel.reduction import BUCKET_BYTES, Named, Reduction, buckets, unpack
from catena.train.parallel.strategy import Wire


def dealt(sizes: Sequence[int], ranks: int) -> list[int]:
    """Return for each size who owns it: the largest first, each to whoever has least."""
    owners, held = [0] * len(sizes), [0] * ranks
    for number in sorted(range(len(sizes)), key=lambda at: (-sizes[at], at)):
        poorest = min(range(ranks), key=lambda rank: (held[rank], rank))
        owners[number] = poorest
        held[poorest] += sizes[number]
    return owners


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """Return a weight's gradient; zeros where this process's part of the batch did not reach it."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


class Owners:
    """The trained weights of a model, and the position in the axis of the owner of each."""

    def __init__(self, model: nn.Module, axis: Axis, wire: Wire) -> None:
        self.axis, self.wire = axis, wire
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        owners = dealt([parameter.numel() for _, parameter in trained], axis.size)
        self.parameters = dict(trained)
        self.of = {name: owner for (name, _), owner in zip(trained, owners, strict=True)}

    @property
    def own(self) -> list[nn.Parameter]:
        """The weights that this process answers for."""
        return [parameter for name, parameter in self.parameters.items() if self.of[name] == self.axis.at]

    def by_owner(self, names: Sequence[str]) -> list[tuple[int, list[str]]]:
        """Group names by their owners, in the order of the axis."""
        groups = [(rank, [name for name in names if self.of[name] == rank]) for rank in range(self.axis.size)]
        return [(rank, group) for rank, group in groups if group]

    def reduce(self, names: Sequence[str], reduction: Reduction) -> None:
        """Bring the summed gradients to their owners, and drop them elsewhere."""
        for owner, group in self.by_owner(names):
            gradients: Named = [(name, gradient_of(self.parameters[name])) for name in group]
            reduction(gradients, owner)
            if owner != self.axis.at:
                for name in group:
                    self.parameters[name].grad = None

    @torch.no_grad()
    def broadcast(self) -> None:
        """Send the owners' weights to all others."""
        for owner, group in self.by_owner(list(self.parameters)):
            for bucket in buckets([self.parameters[name] for name in group]):
                flat = torch.cat([parameter.reshape(-1) for parameter in bucket])
                self.wire.add(flat)
                dist.broadcast(flat, self.axis.ranks[owner], group=self.axis.group)
                if owner != self.axis.at:
                    unpack(flat, bucket)


class EarlyReduction:
    """Brings gradients to their owners while backward still runs, and drops them (ZeRO stage 2).

    Weights are taken in runs of about `BUCKET_BYTES`, the last layers first, and the runs strictly in this order:
    whatever order gradients are finished in, every process does the same collectives.
    """

    def __init__(self, owners: Owners, reduction: Reduction) -> None:
        self.owners, self.reduction = owners, reduction
        self.runs = _runs(owners)
        self._kept: dict[str, Tensor] = {}
        self._ready: set[str] = set()
        self._next = 0
        for name, parameter in owners.parameters.items():
            parameter.register_post_accumulate_grad_hook(self._noting(name))  # type: ignore[no-untyped-call]

    def _noting(self, name: str) -> Callable[[Tensor], None]:
        def note(_: Tensor) -> None:
            self._ready.add(name)
            while self._next < len(self.runs) and self._ready.issuperset(self.runs[self._next]):
                self._reduce_next()

        return note

    def _reduce_next(self) -> None:
        names = self.runs[self._next]
        self._next += 1
        self.owners.reduce(names, self.reduction)
        for name in names:
            parameter = self.owners.parameters[name]
            if parameter.grad is not None:
                # Set aside: the next piece's gradient must not be added to what is summed already.
                kept = self._kept.get(name)
                self._kept[name] = parameter.grad if kept is None else kept.add_(parameter.grad)
                parameter.grad = None

    def end_piece(self) -> None:
        """Reduce what is left after a backward."""
        while self._next < len(self.runs):
            self._reduce_next()
        self._next = 0
        self._ready.clear()

    def finish(self) -> None:
        """Put the sums over all pieces where the optimizer looks for them."""
        for name, gradient in self._kept.items():
            self.owners.parameters[name].grad = gradient
        self._kept.clear()


def _runs(owners: Owners) -> list[list[str]]:
    runs: list[list[str]] = [[]]
    size = 0
    for name, parameter in reversed(owners.parameters.items()):
        if size >= BUCKET_BYTES:
            runs.append([])
            size = 0
        runs[-1].append(name)
        size += parameter.numel() * parameter.element_size()
    return runs
