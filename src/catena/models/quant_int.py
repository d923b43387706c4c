"""Linear layers of whole numbers: 8 bits with a scale for each output channel, 4 bits with a scale for each group.

int8, layout `int-quantized` of compressed-tensors, symmetric, rounded to nearest:

    scale[n] = max|weight[n]| / 127        weight[n, k] ~ weight int8[n, k] * weight_scale float32[n, 1]

int4, layout `pack-quantized`: eight numbers in an int32, the first lowest, 8 added so that they are not negative:

    weight_packed int32 [out, in / 8]      weight_scale float16 [out, in / group]      weight_shape int64 [2]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from catena.models import native
from catena.models.packed import FEW_ROWS, PackedLinear, finite, has_vector_kernels

LEVELS = 127
PER_INT32 = 8
KERNEL_GROUPS = (32, 64, 128, 256)
"""Group sizes that torch's kernel takes."""
FEW_ROWS_INT4 = 40
"""Up to so many rows its int4 kernel wins: from `FEW_ROWS` on a dense product is faster, but unpacking is slow."""


class Int8Linear(PackedLinear):
    """A linear layer that keeps its weight as int8 and multiplies in the number format of its input."""

    bits, kept = 8, ("weight", "weight_scale")
    planes = 2
    """Bytes that our kernel keeps of each input."""
    weight: Tensor
    weight_scale: Tensor

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(out_features, 1))
        self._kernel = False
        self.panels: native.Panels | None = None
        """The weight, where our own kernel is used; `weight` is then empty."""

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Int8Linear:
        """Quantize a layer."""
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        layer.weight, layer.weight_scale = quantize_weight(linear.weight.detach())
        layer.take_bias(linear)
        return layer

    def prepack_(self, dtype: torch.dtype) -> bool:
        """Lay the numbers out for our own kernel, or use torch's for a few rows where it is fast."""
        if self.panels is None and _native(self, self.weight, dtype):
            self.panels = native.Panels(native.INT8, self.weight, self.weight_scale, planes=self.planes)
            self.weight = self.weight.new_empty(0, self.in_features)
        self._kernel = self.panels is None and has_vector_kernels(self.weight, dtype)
        return self._kernel or self.panels is not None

    def product(self, inputs: Tensor) -> Tensor:
        """Multiply; the scale is applied to the outputs: there are fewer of them than weights."""
        if self.panels is not None:
            return _by_panels(self.panels, inputs, self)
        scale = self.weight_scale.to(inputs.dtype)[:, 0]
        if self._kernel and inputs.dtype == torch.bfloat16 and inputs.numel() < FEW_ROWS * self.in_features:
            rows = inputs.reshape(-1, self.in_features).contiguous()
            return torch._weight_int8pack_mm(rows, self.weight, scale).view(*inputs.shape[:-1], self.out_features)
        return functional.linear(inputs, self.weight.to(inputs.dtype)) * scale

    def dense_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight [out, in] that the int8 numbers stand for."""
        codes = self.weight if self.panels is None else self.panels.numbers()
        return (codes.float() * self.weight_scale.float()).to(dtype)


class DynamicInt8Linear(Int8Linear):
    """W8A8: the input's rows are rounded to int8 too, each by its own largest value; sums are exact whole numbers."""

    planes = 1

    def activations(self, inputs: Tensor) -> Tensor:
        """Return the inputs as their int8 numbers stand for them."""
        codes, scale = rows_to_int8(inputs)
        return codes.to(inputs.dtype) * scale

    def prepack_(self, dtype: torch.dtype) -> bool:
        """Lay the numbers out for our own kernel; torch's kernel of whole numbers reads the weight as it is."""
        return super().prepack_(dtype) or self.weight.device.type == "cpu"

    def product(self, inputs: Tensor) -> Tensor:
        """Multiply whole numbers, then scale."""
        if self.panels is not None:
            return _by_panels(self.panels, inputs, self)
        if inputs.device.type != "cpu":
            return functional.linear(self.activations(inputs), self.dense_weight(inputs.dtype))
        codes, scale = rows_to_int8(inputs)
        sums = torch._int_mm(codes.reshape(-1, self.in_features), self.weight.t())
        outputs = sums.view(*inputs.shape[:-1], self.out_features).float() * scale.float() * self.weight_scale[:, 0]
        return outputs.to(inputs.dtype)


class Int4Linear(PackedLinear):
    """A linear layer of 4-bit numbers, each group of neighbouring inputs with its own scale."""

    bits, kept = 4, ("weight_packed", "weight_scale", "weight_shape")
    planes = 2
    weight_packed: Tensor
    weight_scale: Tensor
    weight_shape: Tensor

    def __init__(self, in_features: int, out_features: int, group_size: int, *, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.group_size = group_size
        self.register_buffer("weight_packed", torch.zeros(out_features, in_features // PER_INT32, dtype=torch.int32))
        self.register_buffer("weight_scale", torch.ones(out_features, in_features // group_size, dtype=torch.float16))
        self.register_buffer("weight_shape", torch.tensor([out_features, in_features]))
        self._laid_out: tuple[Tensor, Tensor] | None = None
        self._codes: Tensor | None = None
        self.panels: native.Panels | None = None
        """The weight, where our own kernel is used; `weight_packed` is then empty."""

    @classmethod
    def of(cls, codes: Tensor, scale: Tensor, linear: nn.Linear) -> Int4Linear:
        """Make a layer of codes [out, in] in -8..7 and scales [out, in / group]; the bias is that of `linear`."""
        size, count = linear.in_features, scale.shape[1]
        layer = cls(size, linear.out_features, size // count, bias=linear.bias is not None)
        layer.weight_packed, layer.weight_scale = pack_int4(codes), scale
        layer.take_bias(linear)
        return layer

    def prepack_(self, dtype: torch.dtype) -> bool:
        """Lay the numbers out for our kernel, or for torch's where it is fast and takes the shape; else one a byte."""
        self._laid_out = self._codes = None
        if self.panels is None and _native(self, self.weight_packed, dtype, self.group_size):
            self.panels = native.Panels(
                native.INT4, unpack_int4(self.weight_packed), self.weight_scale, planes=self.planes
            )
            self.weight_packed = self.weight_packed.new_empty(0, self.in_features // PER_INT32)
        if self.panels is not None:
            return True
        fits = (
            self.group_size in KERNEL_GROUPS and self.out_features % 16 == 0 and self.in_features % self.group_size == 0
        )
        if not (fits and has_vector_kernels(self.weight_packed, dtype)):
            self._codes = unpack_int4(self.weight_packed)  # a quarter of float32, and four times as fast as 4 bits
            return False
        codes = unpack_int4(self.weight_packed).to(torch.int32) + 8
        tiles = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        scale = self.weight_scale.t().to(dtype)
        self._laid_out = tiles, torch.stack([scale, torch.zeros_like(scale)], dim=2).contiguous()
        return True

    def product(self, inputs: Tensor) -> Tensor:
        """Multiply with the packed numbers for a few rows of bfloat16, else with the unpacked weight."""
        if self.panels is not None:
            return _by_panels(self.panels, inputs, self)
        few = inputs.numel() < FEW_ROWS_INT4 * self.in_features
        if self._laid_out is None or not few or inputs.dtype != self._laid_out[1].dtype:
            return functional.linear(inputs, self.dense_weight(inputs.dtype))
        rows = inputs.reshape(-1, self.in_features).contiguous()
        outputs = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, self._laid_out[0], self.group_size, self._laid_out[1]
        )
        return outputs.view(*inputs.shape[:-1], self.out_features)  # type: ignore[no-any-return]

    def dense_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight [out, in] that the 4-bit numbers stand for."""
        if self.panels is not None:
            return grouped(self.panels.numbers(), self.weight_scale, dtype)
        codes = unpack_int4(self.weight_packed) if self._codes is None else self._codes
        return grouped(codes, self.weight_scale, dtype)


def _native(layer: PackedLinear, numbers: Tensor, dtype: torch.dtype, group: int = 0) -> bool:
    fits = dtype == torch.bfloat16 and numbers.device.type == "cpu"
    return fits and native.takes(layer.out_features, layer.in_features, group)


def _by_panels(panels: native.Panels, inputs: Tensor, layer: PackedLinear) -> Tensor:
    """Multiply in C; many rows with the unpacked weight, where torch is faster at that."""
    few = inputs.numel() < native.MANY * layer.in_features
    if inputs.dtype == torch.bfloat16 and (few or native.wins_at_many(inputs.dtype)):
        return panels.product(inputs)
    return functional.linear(layer.activations(inputs), layer.dense_weight(inputs.dtype))


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight [out, in] to int8 with a float32 scale [out, 1] for each output channel.

    Raises `DataError` where the weight has values that are not finite.
    """
    values = finite(weight)
    scale = values.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny * LEVELS) / LEVELS
    return (values / scale).round().clamp(-LEVELS, LEVELS).to(torch.int8), scale


def group_scale(weight: Tensor, group_size: int) -> Tensor:
    """Return the float16 scale [out, in / group] with which the largest number of each group is 7.5 steps from 0.

    Half a step beyond 7 makes the error of the largest as large as any other's, and lets -8 be used.
    """
    largest = weight.float().view(weight.shape[0], -1, group_size).abs().amax(dim=2) / 7.5
    return largest.clamp(2.0**-24, torch.finfo(torch.float16).max).half()  # the smallest and the largest float16


def round_int4(weight: Tensor, scale: Tensor) -> Tensor:
    """Return the codes [out, in] in -8..7 nearest to a weight, given the scales [out, groups]."""
    steps = scale.float().repeat_interleave(weight.shape[1] // scale.shape[1], dim=1)
    return (weight.float() / steps).round().clamp(-8, 7).to(torch.int8)


def pack_int4(codes: Tensor) -> Tensor:
    """Pack int8 codes [out, in] in -8..7 into int32 [out, in / 8]."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=codes.device)
    nibbles = (codes.to(torch.int32) + 8).view(codes.shape[0], -1, PER_INT32)
    return (nibbles << shifts).sum(dim=2, dtype=torch.int32)


def unpack_int4(packed: Tensor) -> Tensor:
    """Return the int8 codes [out, in] of packed ones [out, in / 8]."""
    # Bytes first: on a little-endian machine the low byte, with the first two numbers, comes first.
    octets = packed.contiguous().view(torch.uint8)
    nibbles = torch.stack([octets & 15, octets >> 4], dim=2)
    return nibbles.view(packed.shape[0], -1).to(torch.int8) - 8


def grouped(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return int8 codes [out, in] times the scales [out, groups] of their groups, in a number format."""
    values = codes.to(dtype).view(*scale.shape, -1)
    return values.mul_(scale.to(dtype)[:, :, None]).view(codes.shape)


def rows_to_int8(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Round inputs [..., in] to int8 with a scale [..., 1] for each row, as compressed-tensors does: 127.5 steps."""
    largest = inputs.abs().amax(dim=-1, keepdim=True) / 127.5
    scale = torch.where(largest == 0, torch.finfo(inputs.dtype).eps, largest)
    return (inputs / scale).round().clamp(-128, 127).to(torch.int8), scale
