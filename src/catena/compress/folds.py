"""Folds: where a factor for each channel can go from one layer into the next without a change of the result.

    norm * (1 / s)  ->  columns of the layers that read it * s
    rows * (1 / s)  ->  columns of the layer that reads them * s       (up -> down, value -> output)

They are found by trial on real inputs and not by a list of architectures: a pair counts where the block's output stays
as it was. A norm whose output something else reads too, a query, a gate behind a non-linear function all fail it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catena.compress.blocks import Block

TOLERANCE = 1e-3
"""Largest relative change of a block's output (float32) that counts as none."""


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
    before = block.once()
    norms = [fold for fold in _after_norms(block) if _holds(block, fold, before)]
    found, seen = [], set()
    for fold in norms:  # plain norms come before those with an offset
        if fold.source not in seen:
            found.append(fold)
            seen.add(fold.source)
    return found + [fold for fold in _between_linears(block) if _holds(block, fold, before)]


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


def _holds(block: Block, fold: Fold, before: Tensor) -> bool:
    """Tell whether a block's output stays when channels are scaled by random factors between 1/2 and 2."""
    names = (fold.source, *fold.layers)
    saved = {
        name: {key: value.clone() for key, value in block.module.get_submodule(name).state_dict().items()}
        for name in names
    }
    first: Any = block.module.get_submodule(fold.layers[0])
    random = torch.Generator().manual_seed(0)
    scale = 2.0 ** (2 * torch.rand(first.in_features, generator=random) - 1)
    fold.apply_(block.module, scale.to(first.weight))
    change = block.once() - before
    for name, state in saved.items():
        block.module.get_submodule(name).load_state_dict(state)
    # Against what the block adds: the stream that runs past it may be much larger.
    added = (before - block.hidden[0]).norm()
    return bool(change.norm() <= TOLERANCE * added)
