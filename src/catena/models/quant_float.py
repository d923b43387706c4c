"""Linear layers of short floating-point numbers: FP8 with a scale for each output channel, NVFP4 with one for each 16.

FP8, layout `float-quantized` of compressed-tensors: `weight` float8_e4m3fn [out, in], `weight_scale` float32 [out, 1].

NVFP4, layout `nvfp4-pack-quantized`: numbers of one sign bit, two exponent bits and one mantissa bit (E2M1), two in a
byte, the first in the low half; a scale for each 16 inputs in FP8; one float32 for the whole layer, by which the scales
are divided:

    weight_packed uint8 [out, in / 2]    weight_scale float8_e4m3fn [out, in / 16]    weight_global_scale float32 [1]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from catena.models.packed import PackedLinear, finite
from catena.models.quant_int import grouped

FP8 = torch.float8_e4m3fn
FP8_LARGEST = torch.finfo(FP8).max
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FP4_GROUP = 16


class FP8Linear(PackedLinear):
    """A linear layer that keeps its weight in FP8 (E4M3)."""

    bits, kept = 8, ("weight", "weight_scale")
    weight: Tensor
    weight_scale: Tensor

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=FP8))
        self.register_buffer("weight_scale", torch.ones(out_features, 1))

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> FP8Linear:
        """Quantize a layer."""
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        values = finite(linear.weight)
        largest = values.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny * FP8_LARGEST)
        layer.weight_scale = largest / FP8_LARGEST
        layer.weight = (values / layer.weight_scale).clamp(-FP8_LARGEST, FP8_LARGEST).to(FP8)
        layer.take_bias(linear)
        return layer

    def dense_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight [out, in] that the FP8 numbers stand for."""
        return fp8_values(self.weight).mul_(self.weight_scale.float()).to(dtype)


class DynamicFP8Linear(FP8Linear):
    """FP8 weights, and inputs that are rounded to FP8 too, each row by its own largest value."""

    def activations(self, inputs: Tensor) -> Tensor:
        """Return the inputs as their FP8 numbers stand for them."""
        largest = inputs.abs().amax(dim=-1, keepdim=True) / FP8_LARGEST
        scale = torch.where(largest == 0, torch.finfo(inputs.dtype).eps, largest)
        return (inputs / scale).clamp(-FP8_LARGEST, FP8_LARGEST).to(FP8).to(inputs.dtype) * scale


class FP4Linear(PackedLinear):
    """A linear layer that keeps its weight in NVFP4: 4.5 bits a number in all."""

    bits, kept = 4, ("weight_packed", "weight_scale", "weight_global_scale")
    weight_packed: Tensor
    weight_scale: Tensor
    weight_global_scale: Tensor

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.register_buffer("weight_packed", torch.zeros(out_features, in_features // 2, dtype=torch.uint8))
        self.register_buffer("weight_scale", torch.ones(out_features, in_features // FP4_GROUP).to(FP8))
        self.register_buffer("weight_global_scale", torch.ones(1))
        self._codes: Tensor | None = None

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> FP4Linear:
        """Quantize a layer; its inputs must be a multiple of 16."""
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        values = finite(linear.weight)
        groups = values.view(layer.out_features, -1, FP4_GROUP)
        largest = groups.abs().amax(dim=2)
        # The largest scale becomes the largest FP8 number, so that small ones do not fall below the smallest.
        whole = FP8_LARGEST * FP4_VALUES[-1] / largest.max().clamp_min(torch.finfo(torch.float32).tiny * 1e4)
        layer.weight_global_scale = whole.view(1)
        layer.weight_scale = (largest / FP4_VALUES[-1] * whole).clamp(2.0**-9, FP8_LARGEST).to(FP8)
        steps = (layer.weight_scale.float() / whole)[:, :, None]
        layer.weight_packed = pack_fp4((groups / steps).view_as(values))
        layer.take_bias(linear)
        return layer

    def dense_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight [out, in] that the FP4 numbers stand for."""
        scale = fp8_values(self.weight_scale) / self.weight_global_scale.float()
        codes = unpack_fp4(self.weight_packed) if self._codes is None else self._codes
        return grouped(codes, scale / 2, torch.float32).to(dtype)

    def prepack_(self, dtype: torch.dtype) -> bool:
        """Lay the numbers out one in a byte: no kernel of a processor reads two."""
        self._codes = unpack_fp4(self.weight_packed)
        return False


def pack_fp4(values: Tensor) -> Tensor:
    """Round values [out, in] to the nearest FP4 number, ties to the even code, and pack them: uint8 [out, in / 2]."""
    levels = torch.tensor(FP4_VALUES, device=values.device)
    between = (levels[1:] + levels[:-1]) / 2
    size = values.abs().contiguous()
    upper, lower = torch.bucketize(size, between, right=True), torch.bucketize(size, between)
    codes = torch.where(upper % 2 == 0, upper, lower) + 8 * (values < 0).long()  # they differ at a tie only
    return (codes[:, 0::2] | (codes[:, 1::2] << 4)).to(torch.uint8)


def unpack_fp4(packed: Tensor) -> Tensor:
    """Return twice the values [out, in] of packed ones [out, in / 2]: whole numbers, as int8."""
    levels = [round(2 * value) for value in FP4_VALUES]
    table = torch.tensor([*levels, *(-level for level in levels)], dtype=torch.int8, device=packed.device)
    return table[torch.stack([packed & 15, packed >> 4], dim=2).int()].view(packed.shape[0], -1)


def fp8_values(numbers: Tensor) -> Tensor:
    """Return FP8 numbers as float32: by their bits, which is many times as fast on a processor as to convert them.

    Sign, exponent and mantissa of E4M3 stand in a float16 where they stand here, and its exponents are 8 less.
    """
    if numbers.device.type != "cpu":
        return numbers.float()
    bits = numbers.view(torch.int8).to(torch.int16)
    return ((bits << 7) & 0x3F80 | (bits & -0x8000)).view(torch.float16).float().mul_(2.0**8)
