"""How gradients meet: summed over the processes that hold the same weights, in buckets, small on the wire if wanted.

Our own synchronous reduction and no hook of DistributedDataParallel: it is the same over gloo and nccl, counts its
bytes, knows nothing of the model, and keeps PowerSGD's memory where checkpoints can reach it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from catena.train.parallel.mesh import Axis
from catena.train.parallel.settings import ParallelConfig
from catena.train.parallel.strategy import Wire

BUCKET_BYTES = 25 * 2**20
"""Gradients are sent in pieces of about this size: large enough for the link, small enough to copy."""

Named = Sequence[tuple[str, Tensor]]
"""Gradients by the name of their parameter, in an order that is the same on every process."""


class Reduction(Protocol):
    """Replaces each gradient by its sum over an axis: everywhere, or on the `owner` (a position in the axis) only."""

    def __call__(self, gradients: Named, owner: int | None = None) -> None: ...


def make_reduction(config: ParallelConfig, axis: Axis, wire: Wire) -> Plain | Halved | PowerSGD:
    """Return the reduction that the config names."""
    if config.compression == "powersgd":
        return PowerSGD(axis, wire, config.rank)
    if config.compression == "none":
        return Plain(axis, wire)
    return Halved(axis, wire, torch.float16 if config.compression == "float16" else torch.bfloat16)


class Plain:
    """Sums in the gradients' own number format."""

    def __init__(self, axis: Axis, wire: Wire) -> None:
        self.axis, self.wire = axis, wire

    def __call__(self, gradients: Named, owner: int | None = None) -> None:
        """Sum the gradients in place."""
        for bucket in buckets([gradient for _, gradient in gradients]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            self._sum(flat, owner)
            unpack(flat, bucket)

    def _sum(self, flat: Tensor, owner: int | None) -> None:
        self.wire.add(flat)
        if owner is None:
            dist.all_reduce(flat, group=self.axis.group)
        else:
            dist.reduce(flat, self.axis.ranks[owner], group=self.axis.group)


class Halved(Plain):
    """Sums in 16 bits: half the bytes.

    float16 has few small numbers (below 6e-8 all is zero) and a gradient is full of them, so each bucket is first
    multiplied such that its largest sum just fits.
    """

    def __init__(self, axis: Axis, wire: Wire, dtype: torch.dtype) -> None:
        super().__init__(axis, wire)
        self.dtype = dtype

    def _sum(self, flat: Tensor, owner: int | None) -> None:
        scale = self._scale(flat) if self.dtype == torch.float16 else 1.0
        small = (flat * scale).to(self.dtype)
        super()._sum(small, owner)
        flat.copy_(small).div_(scale)

    def _scale(self, flat: Tensor) -> Tensor | float:
        largest = flat.abs().max()
        self.wire.add(largest)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.axis.group)
        room = torch.finfo(self.dtype).max / 2 / self.axis.size
        return torch.where((largest > 0) & largest.isfinite(), room / largest, 1.0)


class PowerSGD(Plain):
    """Sums matrices through two thin factors (PowerSGD, arXiv 1905.13727), with error feedback and a warm start.

    A matrix M [rows, columns] is sent as P = M Q [rows, rank] and Q = M^T P [columns, rank]; what is lost stays in
    `errors` and is added to the next step's gradient. Vectors, and matrices that this would not make smaller, are
    summed as they are.
    """

    def __init__(self, axis: Axis, wire: Wire, rank: int) -> None:
        super().__init__(axis, wire)
        self.rank = rank
        self.errors: dict[str, Tensor] = {}
        self.factors: dict[str, Tensor] = {}

    def shrinks(self, gradient: Tensor) -> bool:
        """Whether a gradient of this shape is sent as factors."""
        rows, columns = len(gradient), gradient[0].numel() if gradient.dim() > 1 else 1
        return gradient.dim() > 1 and self.rank * (rows + columns) < rows * columns

    def prepare(self, gradients: Named) -> None:
        """Make errors (zero) and factors (random, the same everywhere) for matrices that have none yet."""
        for number, (name, gradient) in enumerate(gradients):
            if name not in self.errors and self.shrinks(gradient):
                matrix = gradient.flatten(1)
                generator = torch.Generator().manual_seed(number)
                start = torch.randn(matrix.shape[1], self.rank, generator=generator)
                self.errors[name] = torch.zeros_like(matrix)
                self.factors[name] = start.to(matrix)

    def __call__(self, gradients: Named, owner: int | None = None) -> None:
        """Sum the gradients in place; matrices approximately, the same on every process."""
        self.prepare(gradients)
        matrices = [(name, gradient) for name, gradient in gradients if name in self.errors]
        super().__call__([(name, gradient) for name, gradient in gradients if name not in self.errors], owner)
        if not matrices:
            return
        whole = [gradient.flatten(1).add(self.errors[name]) for name, gradient in matrices]
        left = [matrix @ self.factors[name] for (name, _), matrix in zip(matrices, whole, strict=True)]
        self._sum_all(left)
        left = [torch.linalg.qr(factor).Q if factor.isfinite().all() else factor for factor in left]
        right = [matrix.T @ factor for matrix, factor in zip(whole, left, strict=True)]
        kept = [matrix - factor @ other.T for matrix, factor, other in zip(whole, left, right, strict=True)]
        self._sum_all(right)
        for (name, gradient), one, other, error in zip(matrices, left, right, kept, strict=True):
            gradient.copy_((one @ other.T).view_as(gradient))
            if other.isfinite().all():
                self.errors[name].copy_(error)
                self.factors[name].copy_(other)

    def _sum_all(self, factors: Sequence[Tensor]) -> None:
        for bucket in buckets(factors):
            flat = torch.cat([factor.reshape(-1) for factor in bucket])
            self._sum(flat, None)
            unpack(flat, bucket)


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Group tensors, in order, into runs of one number format and about `BUCKET_BYTES`."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size >= BUCKET_BYTES or bucket[0].dtype != tensor.dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
    if bucket:
        yield bucket


def unpack(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy a flat bucket back into the tensors that it was made of."""
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, part in zip(tensors, torch.split(flat, sizes), strict=True):
        tensor.copy_(part.view_as(tensor))


def total(value: float, group: Any, device: torch.device) -> float:
    """Return the sum of a number over a group (None: over all processes)."""
    number = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(number, group=group)
    return float(number)
