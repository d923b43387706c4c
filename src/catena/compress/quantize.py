"""Quantization: a trained checkpoint in, one with smaller weights out. The number formats are `catena.models.quant`'s.

model -> (numbers measured on calibration text) -> every linear layer rounded -> compressed-tensors folder
"""

from __future__ import annotations

import shutil
from typing import Any, Literal

from pydantic import Field, model_validator

from catena.compress.calibrate import CalibrationConfig, calibration_text, for_data
from catena.core.config import Config
from catena.core.errors import UsageError
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, ModelVersion

Scheme = Literal["int8", "int4", "w8a8", "fp8", "fp8-dynamic", "nvfp4"]
Method = Literal["rtn", "awq", "gptq", "smoothquant"]
SUITS: dict[str, tuple[str, ...]] = {"awq": ("int4",), "gptq": ("int4", "int8", "w8a8"), "smoothquant": ("w8a8",)}
"""Which number formats a method is for; rounding to nearest is for all."""


class QuantizeConfig(Config):
    """How the weights are rounded."""

    scheme: Scheme = "int8"
    """What the numbers become. Weights only: `int8` (a scale for each output channel), `int4` (symmetric, a scale for
    each group), `fp8` (E4M3, a scale for each channel), `nvfp4` (E2M1, an FP8 scale for each 16). Weights and inputs:
    `w8a8` (int8, each row of the inputs with its own scale), `fp8-dynamic`."""
    method: Method = "rtn"
    """How they are chosen. `rtn` rounds to nearest and needs no data. `awq` enlarges what matters before it rounds
    (arXiv 2306.00978), `gptq` makes later weights good for the errors of earlier ones (arXiv 2210.17323),
    `smoothquant` moves the outliers of the inputs into the weights (arXiv 2211.10438)."""
    group_size: int = Field(default=128, ge=8)
    """Inputs that share a scale, in int4. 128 runs everywhere; smaller groups are more exact and need more room."""
    ignore: tuple[str, ...] = ("lm_head",)
    """Linear layers that stay as they are: whole names, or `re:` and a pattern."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """`smoothquant`: the share of the outliers that the weights take over."""
    calibration: CalibrationConfig = CalibrationConfig()

    @model_validator(mode="after")
    def _fits(self) -> QuantizeConfig:
        suited = SUITS.get(self.method)
        if suited and self.scheme not in suited:
            raise ValueError(f"the method {self.method} is for {', '.join(suited)}; the scheme is {self.scheme}")
        return self


@stage("compress.quantize")
def quantize(
    ctx: Context, cfg: QuantizeConfig, *, model: ModelVersion, data: DatasetVersion | None = None
) -> ModelVersion:
    """Round a model's linear layers to fewer bits; the rest (embedding, norms, head) goes to half precision."""
    refuse_small(model, "quantized")
    calibrated = for_data(cfg.method, data, cfg.method != "rtn")
    from catena.compress import rounding
    from catena.models import checkpoint, quant

    loaded, tokenizer = checkpoint.load(ctx.store.checkout(model))
    found = quant.linears(loaded, cfg.ignore)
    if not found:
        raise UsageError(
            "the model has no linear layer beside its head, so there is nothing to round"
            if not cfg.ignore or cfg.ignore == quant.IGNORED
            else "`ignore` leaves no linear layer to round"
        )
    quant.check_shapes(found, cfg.scheme, cfg.group_size)
    text = calibration_text(ctx, cfg.calibration, calibrated, tokenizer, model.context) if calibrated else None
    rounding.apply(ctx, cfg, loaded, text)
    small = keep(ctx, loaded, tokenizer, "quantized", model)
    ctx.events.metric("quantized_layers", len(found))
    return small


def refuse_small(model: ModelVersion, done: str) -> None:
    """Raise `UsageError` for what is not a full model."""
    if model.form != "full":
        raise UsageError(
            f"only a full model can be {done}; this one is {model.form!r}",
            hint="Merge it first (train.merge)."
            if model.form == "adapter"
            else "Take the model that it was made from.",
        )


def keep(
    ctx: Context, loaded: Any, tokenizer: Any, form: Literal["quantized", "full"], model: ModelVersion
) -> ModelVersion:
    """Store what became of a model, and tell how much smaller it is."""
    from catena.models import checkpoint

    folder = ctx.workdir / "model"
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left; making it again costs less than checking it
    checkpoint.save(loaded, tokenizer, folder)
    facts = checkpoint.describe(folder)
    small = ctx.store.put_model(folder, form, base=model.digest, license=model.license, **facts)
    ctx.events.metric("size_ratio", round(small.size / model.size, 4))
    return small
