"""Which weights become zero: the smallest, by one of three measures, in each row or in each stretch of m neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from catena.compress.blocks import Block, Measured, walk
from catena.compress.solver import COLUMNS, solve
from catena.core.errors import UsageError
from catena.core.stage import Context
from catena.models import quant
from catena.models.packed import finite

if TYPE_CHECKING:
    from catena.compress.prune import PruneConfig


def apply(ctx: Context, cfg: PruneConfig, model: Any, text: Tensor | None) -> float:
    """Set weights of a model's linear layers to zero, in place; returns the share of them that are."""
    chosen = quant.linears(model, cfg.ignore)
    _check(chosen, cfg)
    if text is None:
        for layer in chosen.values():
            _set(layer, by_magnitude(layer.weight.detach(), cfg.sparsity, cfg.group()))
    else:
        progress = ctx.progress("prune", model.config.get_text_config().num_hidden_layers, "blocks")
        for block in walk(model, text):
            _block(block, cfg, set(chosen))
            progress.advance()
        progress.finish()
    gone = sum(int((layer.weight == 0).sum()) for layer in chosen.values())
    return gone / sum(layer.weight.numel() for layer in chosen.values())


def _check(chosen: dict[str, nn.Linear], cfg: PruneConfig) -> None:
    if not chosen:
        raise UsageError("there is no linear layer to prune")
    for name, layer in chosen.items():
        finite(layer.weight)
        group = cfg.group()
        if group and layer.in_features % group[1]:
            raise UsageError(f"pattern: {name} has {layer.in_features} inputs, which {group[1]} does not divide")


def _block(block: Block, cfg: PruneConfig, chosen: set[str]) -> None:
    measured = block.measure()
    for name, layer in block.linears().items():
        if f"{block.name}.{name}" not in chosen or name not in measured:
            continue
        weight, inputs = layer.weight.detach().float(), measured[name]
        if cfg.method == "wanda":
            _set(layer, weight * kept(wanda_score(weight, inputs), cfg.sparsity, cfg.group()))
        else:
            _set(layer, by_sparsegpt(weight, inputs.gram, cfg.sparsity, cfg.group()))


def _set(layer: nn.Linear, weight: Tensor) -> None:
    with torch.no_grad():
        layer.weight.copy_(weight)


def by_magnitude(weight: Tensor, sparsity: float, group: tuple[int, int] | None) -> Tensor:
    """Return a weight [out, in] without its smallest numbers: of the whole layer, or of each stretch."""
    size = weight.float().abs()
    if group:
        return weight * kept(size, sparsity, group)
    count = int(sparsity * size.numel())
    mask = torch.ones(size.numel(), dtype=torch.bool)
    mask[size.flatten().argsort(stable=True)[:count]] = False
    return weight * mask.view(size.shape)


def wanda_score(weight: Tensor, inputs: Measured) -> Tensor:
    """Return |weight| times the norm of its input: how much a row's output would miss it."""
    return weight.abs() * inputs.gram.diagonal().sqrt()


def kept(score: Tensor, sparsity: float, group: tuple[int, int] | None) -> Tensor:
    """Return which weights [out, in] stay (bool): all but the least of each row, or all but n of each m."""
    gone, width = group or (int(sparsity * score.shape[1]), score.shape[1])
    cut = score.reshape(len(score), -1, width)
    mask = torch.ones_like(cut, dtype=torch.bool)
    mask.scatter_(2, cut.argsort(dim=2, stable=True)[:, :, :gone], False)
    return mask.view(score.shape)


def by_sparsegpt(weight: Tensor, gram: Tensor, sparsity: float, group: tuple[int, int] | None) -> Tensor:
    """Return a weight [out, in] with zeros whose error the columns after them make up for."""
    mask = torch.ones(weight.shape, dtype=torch.bool)

    def begin(columns: Tensor, diagonal: Tensor, first: int) -> None:
        score = (columns / diagonal) ** 2
        last = first + columns.shape[1]
        if group:
            mask[:, first:last] = kept(score, sparsity, group)
            return
        count = int(sparsity * score.numel())  # of a stretch of columns, wherever in it: rows may differ
        part = torch.ones(score.numel(), dtype=torch.bool)
        part[score.flatten().argsort()[:count]] = False
        mask[:, first:last] = part.view(score.shape)

    return solve(weight, gram, lambda column, at: column * mask[:, at], begin, group[1] if group else COLUMNS)
