"""Quantization: a trained checkpoint in, one with 8-bit weights out. The number format is `catena.models.quant`'s.

model -> every linear layer rounded to int8 (one scale for each output channel) -> compressed-tensors folder
"""

from __future__ import annotations

import shutil
from typing import Literal

from catena.core.config import Config
from catena.core.errors import UsageError
from catena.core.stage import Context, stage
from catena.core.types import ModelVersion


class QuantizeConfig(Config):
    """How the weights are rounded."""

    scheme: Literal["int8"] = "int8"
    """`int8`: weight only, symmetric, one scale for each output channel, rounded to nearest; needs no data."""


@stage("compress.quantize")
def quantize(ctx: Context, cfg: QuantizeConfig, *, model: ModelVersion) -> ModelVersion:
    """Round a model's linear layers to int8; everything else (embedding, norms, head) goes to half precision."""
    if model.form != "full":
        raise UsageError(
            f"only a full model can be quantized; this one is {model.form!r}",
            hint="Merge it first (train.merge)."
            if model.form == "adapter"
            else "Quantize the model that it was made from.",
        )
    from catena.models import checkpoint
    from catena.models.quant import quantize_

    loaded, tokenizer = checkpoint.load(ctx.store.checkout(model))
    progress = ctx.progress("quantize", unit="layers")
    layers = quantize_(loaded)
    progress.advance(len(layers))
    progress.finish()
    if not layers:
        raise UsageError("the model has no linear layer beside its head, so there is nothing to round")
    folder = ctx.workdir / "model"
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left; quantizing again costs less than checking it
    checkpoint.save(loaded, tokenizer, folder)
    facts = checkpoint.describe(folder)
    small = ctx.store.put_model(folder, "quantized", base=model.digest, license=model.license, **facts)
    ctx.events.metric("size_ratio", round(small.size / model.size, 4))
    ctx.events.metric("quantized_layers", len(layers))
    return small
