"""4-bit NormalFloat: the frozen base under a QLoRA adapter (arXiv 2305.14314, sections 3 and appendix E).

A weight is cut into blocks of 64 numbers. Each block keeps its largest magnitude, and for each number which of 16
levels, the quantiles of a normal distribution, is nearest to it. The magnitudes are themselves rounded to 8 bits, in
groups of 256 around their mean (double quantization; the paper takes FP8, here it is int8). In all 4.13 bits a number.

    weight      int8 [numbers / 2]    two levels in a byte, the first in the high half
    magnitudes  int8 [blocks]         the magnitude of a block is magnitudes[block] * group_scale[block // 256] + mean
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from catena.core.errors import DataError
from catena.models.quant import Int8Linear, frozen_product

LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
BLOCK, GROUP = 64, 256


class NF4Linear(nn.Module):
    """A frozen linear layer that keeps its weight in 4 bits; gradients flow through it to its input."""

    weight: Tensor
    magnitudes: Tensor
    group_scale: Tensor
    mean: Tensor
    pairs: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        if not torch.isfinite(weight).all():
            raise DataError("the model's weights hold values that are not finite", hint="Its training went wrong.")
        codes, largest = _to_blocks(weight.flatten())
        magnitudes, group_scale, mean = _to_groups(largest)
        # As int8, because T5 converts a feed-forward's input to the number format of its weight unless that is int8.
        self.register_buffer("weight", codes.view(torch.int8))
        self.register_buffer("magnitudes", magnitudes)
        self.register_buffer("group_scale", group_scale)
        self.register_buffer("mean", mean)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())
        # Both numbers of a byte in one look-up: on a CPU seven times as fast as to take the halves apart.
        levels = torch.tensor(LEVELS, device=weight.device)
        pairs = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], dim=1)
        self.register_buffer("pairs", pairs, persistent=False)

    def dense_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight [out, in] that the codes stand for."""
        values = nn.functional.embedding(self.weight.view(torch.uint8).int(), self.pairs).view(-1, BLOCK)
        largest = self.magnitudes.float() * self.group_scale.repeat_interleave(GROUP)[: len(self.magnitudes)]
        numbers = values * (largest + self.mean)[:, None]
        whole = numbers.flatten()[: self.out_features * self.in_features]
        return whole.view(self.out_features, self.in_features).to(dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        outputs = frozen_product(inputs, self)
        return outputs if self.bias is None else outputs + self.bias.to(outputs.dtype)

    def extra_repr(self) -> str:
        """Say the shape."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def _to_blocks(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return packed codes and each block's largest magnitude. The last block is filled up with zeros."""
    blocks = nn.functional.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(dim=1)
    levels = torch.tensor(LEVELS, device=values.device)
    between = (levels[1:] + levels[:-1]) / 2
    shares = blocks / largest.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    nearest = torch.bucketize(shares.flatten(), between).to(torch.uint8)
    return nearest[0::2] * 16 + nearest[1::2], largest


def _to_groups(largest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return magnitudes as int8, the scale of each group, and the mean that was taken off."""
    mean = largest.mean()
    rest = nn.functional.pad(largest - mean, (0, -len(largest) % GROUP)).view(-1, GROUP)
    scale = rest.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny * 127) / 127
    codes = (rest / scale[:, None]).round().to(torch.int8)
    return codes.flatten()[: len(largest)].clone(), scale, mean


FROZEN: dict[str, Callable[[nn.Linear], nn.Module]] = {"int8": Int8Linear.from_linear, "nf4": NF4Linear}


def freeze_(model: nn.Module, layers: Collection[str], weights: str) -> None:
    """Replace, in place, the named linear layers by frozen ones of a number format ("int8" or "nf4")."""
    for name in layers:
        linear: Any = model.get_submodule(name)
        model.set_submodule(name, FROZEN[weights](linear))


@torch.no_grad()
def round_(model: nn.Module, layers: Collection[str], weights: str) -> None:
    """Give the named layers, in place, the values that they have in a number format; they stay dense."""
    for name in layers:
        layer: Any = model.get_submodule(name)
        frozen: Any = FROZEN[weights](layer)
        layer.weight.copy_(frozen.dense_weight())


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, shared ones once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
