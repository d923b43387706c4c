"""What each method does with a model: block by block, each measured with those before it as they became."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from catena.compress import awq, smooth, solver
from catena.compress.blocks import Block, Measured, walk_with_probe
from catena.compress.folds import find
from catena.core.stage import Context
from catena.models import quant
from catena.models.packed import PackedLinear, finite
from catena.models.quant_int import Int4Linear, Int8Linear, group_scale, round_int4

if TYPE_CHECKING:
    from catena.compress.quantize import QuantizeConfig


def apply(ctx: Context, cfg: QuantizeConfig, model: Any, text: Tensor | None) -> None:
    """Replace a model's linear layers by rounded ones, in place."""
    chosen = quant.linears(model, cfg.ignore)
    for layer in chosen.values():
        finite(layer.weight)
    if text is not None:
        progress = ctx.progress("quantize", model.config.get_text_config().num_hidden_layers, "blocks")
        for block, probe in walk_with_probe(model, text):
            _block(block, probe, cfg, set(chosen))
            progress.advance()
        progress.finish()
    # What stands outside of the blocks, and everything where nothing is measured.
    quant.quantize_(model, cfg.ignore, cfg.scheme, cfg.group_size)


def _block(block: Block, probe: Block, cfg: QuantizeConfig, chosen: set[str]) -> None:
    measured = block.measure()
    names = {name for name in block.linears() if f"{block.name}.{name}" in chosen and name in measured}
    folds = find(probe) if cfg.method in ("smoothquant", "awq") else []
    if cfg.method == "smoothquant":
        smooth.smooth_block_(block, folds, measured, cfg.alpha)
    elif cfg.method == "awq":
        awq.scale_block_(block, folds, measured, names, cfg.group_size)
    for name in sorted(names):
        layer = block.linears()[name]
        block.module.set_submodule(name, _rounded(name, layer, measured[name], cfg))


def _rounded(name: str, linear: nn.Linear, inputs: Measured, cfg: QuantizeConfig) -> PackedLinear:
    weight = linear.weight.detach().float()
    if cfg.method == "awq":
        cut = awq.cuts(name)
        scale = awq.best_cut(weight, inputs.gram, cfg.group_size) if cut else group_scale(weight, cfg.group_size)
        return Int4Linear.of(round_int4(weight, scale), scale, linear)
    if cfg.method == "gptq" and cfg.scheme == "int4":
        return Int4Linear.of(*solver.gptq_groups(weight, inputs.gram, cfg.group_size), linear)
    layer = quant.SCHEMES[cfg.scheme].rounded(linear, cfg.group_size)
    if cfg.method == "gptq" and isinstance(layer, Int8Linear):
        layer.weight, layer.weight_scale = solver.gptq_channels(weight, inputs.gram)
    return layer
