"""Linear layers whose products are in float8, for GPUs that have it. Weights, sums and all else stay as they are.

One scale for each tensor, found at each step ("tensorwise", arXiv 2209.05433): activations and weights in e4m3,
gradients, which need range more than digits, in e5m2. All three products of a layer are in float8.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MULTIPLE = 16
"""What rows and columns of a float8 product must be a multiple of."""
SMALLEST = 256
"""Rows and columns below which the conversion costs more than the product saves."""


def use_float8(model: nn.Module) -> int:
    """Turn a model's linear layers into float8 ones, the output head left out; returns how many were.

    The layers stay the same objects with the same weights, so their names and the optimizer's states do not change.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    count = 0
    for layer in model.modules():
        if type(layer) is nn.Linear and layer is not head and _suits(layer.weight):
            layer.__class__ = Float8Linear
            count += 1
    return count


def without_float8(model: nn.Module) -> None:
    """Turn the layers back into plain ones."""
    for layer in model.modules():
        if type(layer) is Float8Linear:
            layer.__class__ = nn.Linear  # type: ignore[assignment]


def _suits(weight: Tensor) -> bool:
    return all(size >= SMALLEST and size % MULTIPLE == 0 for size in weight.shape)


class Float8Linear(nn.Linear):
    """A linear layer whose three products are in float8; as many rows as float8 cannot take go the plain way."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the outputs [..., out] of inputs [..., in], in bfloat16."""
        rows = input.reshape(-1, input.shape[-1])
        if rows.shape[0] % MULTIPLE:
            return functional.linear(input, self.weight, self.bias)
        out: Tensor = _Product.apply(rows, self.weight)  # type: ignore[no-untyped-call]
        out = out.reshape(*input.shape[:-1], out.shape[-1])
        return out if self.bias is None else out + self.bias.to(out.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        """[n, in] x [out, in] -> [n, out]"""
        small, rows_scale = _quantized(rows, torch.float8_e4m3fn)
        weights, weight_scale = _quantized(weight, torch.float8_e4m3fn)
        ctx.save_for_backward(small, rows_scale, weights, weight_scale)
        ctx.kinds = rows.dtype, weight.dtype
        return _multiply(small, weights.t(), rows_scale * weight_scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of both factors. The right factor of a float8 product is laid out by columns."""
        rows, rows_scale, weights, weight_scale = ctx.saved_tensors
        small, scale = _quantized(gradient, torch.float8_e5m2)
        of_rows = _multiply(small, weights.t().contiguous().t(), scale * weight_scale)
        of_weight = _multiply(small.t().contiguous(), rows.t().contiguous().t(), scale * rows_scale)
        return of_rows.to(ctx.kinds[0]), of_weight.to(ctx.kinds[1])


def _quantized(tensor: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a tensor in float8, and the scale (a float32 scalar) to multiply it with."""
    scale = tensor.detach().abs().amax().float().clamp(min=1e-12) / torch.finfo(kind).max
    return (tensor.detach() / scale).to(kind).contiguous(), scale


def _multiply(left: Tensor, right: Tensor, scale: Tensor) -> Tensor:
    one = torch.ones((), device=left.device)
    return torch._scaled_mm(left, right, scale_a=scale, scale_b=one, out_dtype=torch.bfloat16)
