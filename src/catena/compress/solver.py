"""One column after another: each is rounded, or set to zero, and those that follow make up for its error.

GPTQ (arXiv 2210.17323) and SparseGPT (arXiv 2301.00774) are this solver with two ways to change a column. With U the
upper Cholesky factor of the inverse of the inputs' second moments, the best answer to an error e in column i is to take
e / U[i, i] * U[i, i:] off the columns from i on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from catena.core.errors import DataError
from catena.models.quant_int import LEVELS, group_scale

DAMPING = 0.01
"""Added to the diagonal, as a share of its mean, so that the inverse exists."""
COLUMNS = 128
"""Columns whose corrections are applied at once to all that follow."""

Change = Callable[[Tensor, int], Tensor]
"""Takes a column [out] and its number, and returns what it becomes."""
Begin = Callable[[Tensor, Tensor, int], None]
"""Sees the columns of a stretch [out, columns], corrected, with U's diagonal over it and its first number."""


def solve(weight: Tensor, gram: Tensor, change: Change, begin: Begin, stretch: int) -> Tensor:
    """Change every column of a weight [out, in]; `begin` is called before each `stretch` of columns."""
    work, factor = weight.float().clone(), inverse_factor(gram)
    work[:, gram.diagonal() == 0] = 0  # inputs that never came: their weights do nothing
    for first in range(0, work.shape[1], COLUMNS):
        last = min(first + COLUMNS, work.shape[1])
        errors = torch.zeros(len(work), last - first)
        for at in range(first, last):
            if at % stretch == 0:
                # A stretch may reach past these columns: the corrections that wait for the rest are made first.
                end = min(at + stretch, work.shape[1])
                if end > last:
                    work[:, last:end] -= errors[:, : at - first] @ factor[first:at, last:end]
                begin(work[:, at:end], factor.diagonal()[at:end], at)
                if end > last:
                    work[:, last:end] += errors[:, : at - first] @ factor[first:at, last:end]
            column = work[:, at].clone()
            new = change(column, at)
            error = (column - new) / factor[at, at]
            work[:, at:last] -= error[:, None] * factor[at, at:last]
            work[:, at] = new
            errors[:, at - first] = error
        work[:, last:] -= errors @ factor[first:last, last:]
    return work


def inverse_factor(gram: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the damped inverse. Raises `DataError` for moments that are not finite."""
    damped = gram.double().clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1
    mean = diagonal.mean()
    if not torch.isfinite(mean):
        raise DataError("the model's layers give numbers that are not finite on the calibration data")
    share = DAMPING
    while True:
        try:
            lower = torch.linalg.cholesky(damped + share * mean * torch.eye(len(damped), dtype=damped.dtype))
            factor: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
            return factor.float()
        except RuntimeError:  # `LinAlgError`, not positive definite
            share *= 10  # inputs that hardly differ; more damping is nearer to rounding each by itself


def gptq_groups(weight: Tensor, gram: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Return int4 codes [out, in] and scales [out, groups] of a weight, errors made up for."""
    scales: list[Tensor] = []
    codes = torch.zeros(weight.shape, dtype=torch.int8)

    def begin(columns: Tensor, _: Tensor, __: int) -> None:
        scales.append(group_scale(columns.contiguous(), columns.shape[1])[:, 0])

    def change(column: Tensor, at: int) -> Tensor:
        scale = scales[-1].float()
        codes[:, at] = (column / scale).round().clamp(-8, 7).to(torch.int8)
        return codes[:, at] * scale

    solve(weight, gram, change, begin, group_size)
    return codes, torch.stack(scales, dim=1)


def gptq_channels(weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 codes [out, in] and scales [out, 1] of a weight, errors made up for."""
    largest = weight.float().abs().amax(dim=1)
    scale = largest.clamp_min(torch.finfo(torch.float32).tiny * LEVELS) / LEVELS
    codes = torch.zeros(weight.shape, dtype=torch.int8)

    def change(column: Tensor, at: int) -> Tensor:
        codes[:, at] = (column / scale).round().clamp(-LEVELS, LEVELS).to(torch.int8)
        return codes[:, at] * scale

    solve(weight, gram, change, lambda *_: None, weight.shape[1])
    return codes, scale[:, None]
