"""Folds: where a factor for each channel can go from one layer into the next without a change of the result.

    norm * (1 / s)  ->  columns of the layers that read it * s
    rows * (1 / s)  ->  columns of the layer that reads them * s       (up -> down, value -> output)

They are found by trial on real inputs and not by a list of architectures: a pair counts where the block's output stays
as it was. A norm whose output something else reads too, a query, a gate behind a non-linear function all fail it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catena.compress.blocks import Block

TOLERANCE = 1e-3
"""Largest relative change of a block's output (float32) that counts as none."""
LARGE = 10.0
"""Size of a linear layer's outputs at which no curve of a feed-forward is straight."""


@dataclass(frozen=True)
class Fold:
    """A layer whose output is divided, and the linear layers that make up for it."""

    source: str
    layers: tuple[str, ...]
    norm: bool
    offset: float = 0.0
    """What a norm adds to its weight before it multiplies: 1 in Gemma."""

    def apply_(self, module: nn.Module, scale: Tensor) -> None:
        """Divide the source's output by `scale` [channels], multiply what reads it; in place."""
        source: Any = module.get_submodule(self.source)
        with torch.no_grad():
            if self.norm:
                source.weight.copy_((source.weight + self.offset) / scale - self.offset)
            else:
                source.weight.div_(scale[:, None])
            if getattr(source, "bias", None) is not None:
                source.bias.div_(scale)
            for name in self.layers:
                layer: Any = module.get_submodule(name)
                layer.weight.mul_(scale)


def find(block: Block) -> list[Fold]:
    """Return the folds of a block, norms first."""
    norms = [fold for fold in _after_norms(block) if _holds(block, fold)]
    found, seen = [], set()
    for fold in norms:  # plain norms come before those with an offset
        if fold.source not in seen:
            found.append(fold)
            seen.add(fold.source)
    return found + [fold for fold in _between_linears(block) if _holds(block, fold)]


def _after_norms(block: Block) -> list[Fold]:
    """Return each norm with the linear layers whose input is the very tensor that it gave."""
    given: dict[str, Tensor] = {}
    taken: dict[str, Tensor] = {}

    def leaf(name: str, module: nn.Module) -> Any:
        if isinstance(module, nn.Linear):
            return module.register_forward_pre_hook(lambda _, inputs: taken.update({name: inputs[0]}))
        return module.register_forward_hook(lambda _, __, output: given.update({name: output}))

    hooks = [
        leaf(name, module)
        for name, module in block.module.named_modules()
        if _is_norm(module) or isinstance(module, nn.Linear)
    ]
    try:
        block.once()
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for source, output in given.items():
        layers = tuple(name for name, tensor in taken.items() if tensor is output)
        if layers:
            found += [Fold(source, layers, norm=True, offset=offset) for offset in (0.0, 1.0)]
    return found


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return not list(module.children()) and isinstance(weight, Tensor) and weight.ndim == 1


def _between_linears(block: Block) -> list[Fold]:
    layers = block.linears()
    return [
        Fold(source, (target,), norm=False)
        for target, reader in layers.items()
        for source, writer in layers.items()
        if source != target
        and source.rpartition(".")[0] == target.rpartition(".")[0]
        and writer.out_features == reader.in_features
    ]


def _holds(block: Block, fold: Fold) -> bool:
    """Tell whether a block's output stays when channels are scaled by random factors between 1/2 and 2.

    What a linear layer gives is made large before: the small numbers of a young model pass a curve as if it were
    straight.
    """
    names = (fold.source, *fold.layers)
    saved = {name: copy.deepcopy(block.module.get_submodule(name).state_dict()) for name in names}
    first: Any = block.module.get_submodule(fold.layers[0])
    scale = 4.0 ** (torch.rand(first.in_features, generator=torch.Generator().manual_seed(0)) - 0.5)
    try:
        if not fold.norm:
            _enlarge(block, fold.source)
        before = block.once()
        fold.apply_(block.module, scale.to(first.weight))
        change = block.once() - before
    finally:
        for name, state in saved.items():
            block.module.get_submodule(name).load_state_dict(state)
    # Against what the block adds to one token and not to another: the rest may be much larger.
    added = before - block.hidden[0]
    return bool(change.norm() <= TOLERANCE * (added - added.mean(dim=1, keepdim=True)).norm())


def _enlarge(block: Block, source: str) -> None:
    """Scale a linear layer so that its outputs differ by `LARGE` from token to token."""
    sizes: list[float] = []
    layer: Any = block.module.get_submodule(source)
    hook = layer.register_forward_hook(lambda _, __, out: sizes.append(float(out.flatten(0, -2).std(dim=0).mean())))
    try:
        block.once()
    finally:
        hook.remove()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(LARGE / max(sizes[0], 1e-12))
