"""Pruning: weights become zeros, or whole parts of a model go and the rest is an ordinary smaller model.

    unstructured   magnitude, wanda, sparsegpt: half of the weights, or two of each four; the shapes stay
    structured     heads, width, layers: smaller shapes, written as a dense folder with a changed config

Zeros are for the study of accuracy: no engine in use is faster by them. Structure that is gone is faster everywhere.
A pruned model is a full model: train it further, quantize it, serve it.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from catena.compress.calibrate import CalibrationConfig, calibration_text, for_data
from catena.compress.quantize import keep, refuse_small
from catena.core.config import Config
from catena.core.errors import UsageError
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, ModelVersion

STRUCTURED = ("heads", "width", "layers")


class PruneConfig(Config):
    """What is taken away."""

    method: Literal["magnitude", "wanda", "sparsegpt", "heads", "width", "layers"] = "wanda"
    """Zeros: `magnitude` (the smallest weights; needs no data), `wanda` (smallest weight times input norm, arXiv
    2306.11695), `sparsegpt` (the rest makes up for what goes, arXiv 2301.00774). Whole parts: `heads` of attention (a
    key-value head goes with its queries), `width` (channels of the feed-forward), `layers` (the blocks that change
    their input least, arXiv 2403.03853)."""
    sparsity: float = Field(default=0.5, gt=0, lt=1)
    """Share that goes: of the weights of each layer, of the heads, of the feed-forward's channels, of the blocks."""
    pattern: str | None = None
    """`2:4` takes two of each four neighbours (`n:m`), in place of `sparsity`; for zeros only."""
    ignore: tuple[str, ...] = ("lm_head",)
    """Linear layers that stay as they are: whole names, or `re:` and a pattern; for zeros only."""
    calibration: CalibrationConfig = CalibrationConfig()

    @field_validator("pattern")
    @classmethod
    def _readable(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            gone, sign, of = pattern.partition(":")
            if not (sign and gone.isdigit() and of.isdigit() and 0 < int(gone) < int(of)):
                raise ValueError(f"{pattern!r} is not n:m with n less than m, such as 2:4")
        return pattern

    def group(self) -> tuple[int, int] | None:
        """Return n and m of the pattern."""
        gone, _, of = (self.pattern or "").partition(":")
        return (int(gone), int(of)) if self.pattern else None


@stage("compress.prune")
def prune(ctx: Context, cfg: PruneConfig, *, model: ModelVersion, data: DatasetVersion | None = None) -> ModelVersion:
    """Set the least useful weights to zero, or take whole heads, channels or blocks away."""
    refuse_small(model, "pruned")
    if cfg.pattern and cfg.method in STRUCTURED:
        raise UsageError(f"pattern: {cfg.pattern} is for zeros; {cfg.method} takes a share", hint="Set sparsity.")
    calibrated = for_data(cfg.method, data, cfg.method != "magnitude")
    from catena.compress import zeros
    from catena.compress.structure import PARTS
    from catena.models import checkpoint

    loaded, tokenizer = checkpoint.load(ctx.store.checkout(model))
    text = calibration_text(ctx, cfg.calibration, calibrated, tokenizer, model.context) if calibrated else None
    if cfg.method in STRUCTURED:
        assert text is not None
        loaded = PARTS[cfg.method](ctx, loaded, text, cfg.sparsity)
    else:
        share = zeros.apply(ctx, cfg, loaded, text)
        ctx.events.metric("zeros", round(share, 4))
    small = keep(ctx, loaded, tokenizer, "full", model)
    _loads_the_same(ctx, small, loaded, text)
    return small


def _loads_the_same(ctx: Context, small: ModelVersion, loaded: Any, text: Any) -> None:
    """Raise `UsageError` where the stored folder does not compute what was pruned: its config could not say it."""
    import torch

    from catena.models import checkpoint

    ids = torch.arange(16)[None] if text is None else text[:1, :64]
    again = checkpoint.load_model(ctx.store.checkout(small))
    with torch.no_grad():
        before, after = loaded(input_ids=ids)[0], again(input_ids=ids)[0]
    if not torch.allclose(before, after, atol=1e-3):
        raise UsageError(f"{type(loaded).__name__} cannot be written with this structure", hint="Prune other parts.")
