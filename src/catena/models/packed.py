"""What layers with packed weights have in common: the stored numbers stand for a dense weight, and a few can be
multiplied with as they are. `catena.models.quant` lists the kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from catena.core.errors import DataError

FEW_ROWS = 8
"""Up to so many rows a product with packed weights is bound by reading them, and the packed kernels win."""


class PackedLinear(nn.Module):
    """A linear layer that stores its weight in fewer bits than it computes with.

    `bits` is the weight's. `kept` names the tensors that are stored as they are; all others (the bias) go to half
    precision. Subclasses give `dense_weight` and, where there is a kernel for it, `product` and `prepack_`.
    """

    bits: ClassVar[int]
    kept: ClassVar[tuple[str, ...]]
    in_features: int
    out_features: int
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    def take_bias(self, linear: nn.Linear) -> None:
        """Copy the bias of the layer that this one stands for."""
        if linear.bias is not None:
            self.bias = linear.bias.detach().clone()

    def dense_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight [out, in] that the stored numbers stand for."""
        raise NotImplementedError

    def activations(self, inputs: Tensor) -> Tensor:
        """Return the inputs as the layer sees them: rounded, where its format says so."""
        return inputs

    def product(self, inputs: Tensor) -> Tensor:
        """Return inputs [..., in] times the transposed weight, without the bias; no gradient flows."""
        return functional.linear(self.activations(inputs), self.dense_weight(inputs.dtype))

    def prepack_(self, dtype: torch.dtype) -> bool:
        """Lay the weight out for many products with inputs of a number format, on the device where it is now.

        Returns whether a kernel reads the packed weight. Where none does, each product unpacks it, and whoever has the
        memory makes the layer dense (`quant.dequantize_`) instead.
        """
        return False

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        if torch.is_grad_enabled() and inputs.requires_grad:
            seen = inputs + (self.activations(inputs) - inputs).detach()  # the gradient passes the rounding by
            outputs = frozen_product(seen, self)
        else:
            outputs = self.product(inputs)
        return outputs if self.bias is None else outputs + self.bias.to(outputs.dtype)

    def extra_repr(self) -> str:
        """Say the shape."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _FrozenProduct(torch.autograd.Function):
    """A product with a packed weight. Autograd would keep the unpacked one of every layer until the backward pass; this
    keeps none and unpacks it again there."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        return functional.linear(inputs, layer.dense_weight(inputs.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.dense_weight(gradient.dtype), None


def frozen_product(inputs: Tensor, layer: nn.Module) -> Tensor:
    """Return inputs [..., in] times the transposed `layer.dense_weight` [out, in]; only the inputs get a gradient."""
    kind = inputs.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype
    outputs: Tensor = _FrozenProduct.apply(inputs.to(dtype), layer)  # type: ignore[no-untyped-call]
    return outputs


def finite(weight: Tensor) -> Tensor:
    """Return a weight as float32; raises `DataError` where it has values that are not finite."""
    values = weight.detach().float()
    if not torch.isfinite(values).all():
        raise DataError("the model's weights hold values that are not finite", hint="Its training went wrong.")
    return values


def has_vector_kernels(weight: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether torch's kernels over packed weights are worth their call.

    They are vectorised for bfloat16 on AVX-512 only; elsewhere they are 5 to 60 times slower than a dense product.
    """
    return (
        dtype == torch.bfloat16 and weight.device.type == "cpu" and "AVX512" in torch.backends.cpu.get_cpu_capability()
    )


def weight_args(bits: int, kind: str, strategy: str, group_size: int | None = None, **others: Any) -> dict[str, Any]:
    """Return how compressed-tensors describes rounded numbers, with all its fields."""
    return {
        "num_bits": bits,
        "type": kind,
        "symmetric": True,
        "strategy": strategy,
        "group_size": group_size,
        "block_structure": None,
        "dynamic": False,
        "actorder": None,
        "observer": "minmax",
        "observer_kwargs": {},
        **others,
    }


def matches(found: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None) -> bool:
    """Tell whether a description of numbers in a config means the same as ours."""
    if not found or not wanted:
        return not found and not wanted
    keys = ("num_bits", "type", "symmetric", "strategy", "dynamic")
    return all(found.get(key, False if key == "dynamic" else None) == wanted[key] for key in keys)
