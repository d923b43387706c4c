"""AWQ (arXiv 2306.00978): channels with large inputs are enlarged before rounding, and groups are cut where that helps.

A channel that is multiplied by s before rounding, and its input divided by s, errs 1/s as much; the scale of its group
grows only where it was the largest. s = mean|input| ** a, with the a in 0..1 that errs least. The error of a layer's
output is taken from the inputs' second moments G, without the inputs: the mean of |(W' - W) x|^2 is tr(D G D^T).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from catena.compress.blocks import Block, Measured
from catena.compress.folds import Fold
from catena.models.quant_int import group_scale, round_int4

STEPS = 20
"""Values of `a` that are tried."""
UNCUT = ("q_proj", "k_proj", "qkv_proj", "query", "key", "query_key_value", "Wqkv", "c_attn")
"""Last names of layers that give queries or keys (values too, where they are one). Their groups are not cut, as AWQ's
own code leaves those that it knows: their numbers meet in products and then in a softmax, where an error of the layer's
output says little about that of the attention."""
CUTS = tuple(1 - step / 20 for step in range(11))
"""Shares of a group's largest number that its scale is made for: 1 down to 0.5."""


def scale_block_(
    block: Block, folds: Sequence[Fold], measured: dict[str, Measured], chosen: set[str], group_size: int
) -> None:
    """Scale a block's channels in place where a fold lets them be; `chosen` layers are to be rounded."""
    for fold in folds:
        layers = [name for name in fold.layers if name in chosen]
        if not layers or len(layers) < len(fold.layers):
            continue
        inputs = measured[layers[0]]
        weights = [block.linears()[name].weight.detach().float() for name in layers]
        scale = best_scale(weights, inputs, group_size)
        fold.apply_(block.module, scale)
        for one in {id(measured[name]): measured[name] for name in layers}.values():
            one.divide(scale)


def best_scale(weights: Sequence[Tensor], inputs: Measured, group_size: int) -> Tensor:
    """Return the factor of each input channel [in] with which weights [out, in] err least when rounded in groups."""
    best, least = torch.ones_like(inputs.mean), float("inf")
    for step in range(STEPS):
        scale = inputs.mean.clamp_min(1e-8) ** (step / STEPS)
        scale = (scale / (scale.max() * scale.min()).sqrt()).clamp(1e-4, 1e4)
        error = 0.0
        for weight in weights:
            larger = weight * scale
            steps = group_scale(larger, group_size)
            error += output_error(rounded(larger, steps) / scale - weight, inputs.gram)
        if error < least:
            best, least = scale, error
    return best


def cuts(name: str) -> bool:
    """Tell whether the groups of a layer may be cut."""
    return name.rpartition(".")[2] not in UNCUT


def best_cut(weight: Tensor, gram: Tensor, group_size: int) -> Tensor:
    """Return the scale [out, groups] of each group that errs least: the largest numbers may be cut off."""
    rows, size = weight.shape
    moments = gram.view(size // group_size, group_size, size // group_size, group_size)
    moments = moments.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # [groups, group, group]
    whole = group_scale(weight, group_size)
    best, least = whole, torch.full(whole.shape, float("inf"))
    for cut in CUTS:
        scale = (whole.float() * cut).clamp_min(2.0**-24).half()
        difference = (rounded(weight, scale) - weight).view(rows, -1, group_size).transpose(0, 1)
        error = ((difference @ moments) * difference).sum(dim=2).T
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best


def rounded(weight: Tensor, scale: Tensor) -> Tensor:
    """Return the values [out, in] that a weight has after rounding to 4 bits with scales [out, groups]."""
    steps = scale.float().repeat_interleave(weight.shape[1] // scale.shape[1], dim=1)
    return round_int4(weight, scale) * steps


def output_error(difference: Tensor, gram: Tensor) -> float:
    """Return the mean squared error of a layer's output, from that of its weight and its inputs' second moments."""
    return float(((difference @ gram) * difference).sum())
