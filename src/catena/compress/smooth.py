"""SmoothQuant (arXiv 2211.10438): outliers of the inputs move into the weights, which bear them better.

s = largest|input| ** alpha / largest|weight| ** (1 - alpha)      input / s (in the norm before),  weight * s
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from catena.compress.blocks import Block, Measured
from catena.compress.folds import Fold


def smooth_block_(block: Block, found: Sequence[Fold], measured: dict[str, Measured], alpha: float) -> int:
    """Even the inputs of a block's linear layers out in place, where a norm stands before them; returns how many."""
    folds = [fold for fold in found if fold.norm]
    for fold in folds:
        weights = [block.linears()[name].weight.detach() for name in fold.layers]
        scale = smooth_scale(weights, measured[fold.layers[0]].largest, alpha)
        fold.apply_(block.module, scale)
    return len(folds)


def smooth_scale(weights: Sequence[Tensor], largest: Tensor, alpha: float) -> Tensor:
    """Return what each input channel [in] is divided by, given the weights [out, in] that read it."""
    by_weight = torch.stack([weight.float().abs().amax(dim=0) for weight in weights]).amax(dim=0)
    scale = largest.clamp_min(1e-5) ** alpha / by_weight.clamp_min(1e-5) ** (1 - alpha)
    return scale.clamp(1e-5, 1e5)
