"""Stage `train.merge`: an adapter and its base to one full model, which everything else takes like any other."""

from __future__ import annotations

from catena.core.config import Config
from catena.core.errors import UsageError
from catena.core.stage import Context, stage
from catena.core.types import ModelVersion
from catena.train.artifacts import license_of, store_model


class MergeConfig(Config):
    """Merging has nothing to choose: what the adapter was trained on is written down beside it."""


@stage("train.merge")
def merge(ctx: Context, cfg: MergeConfig, *, adapter: ModelVersion, base: ModelVersion | None = None) -> ModelVersion:
    """Add a low-rank adapter to the weights of its base; the result needs neither.

    `base` may be left out: the adapter knows it. An adapter trained on int8 or nf4 weights is added to the rounded
    values, so that the result computes what was trained.
    """
    from catena.models.checkpoint import load

    if adapter.form != "adapter" or adapter.base is None:
        raise UsageError(
            f"{adapter.digest[:12]} is a {adapter.form} model; only an adapter can be merged",
            hint="Training with `adapter.kind` gives one.",
        )
    if base is not None and base.digest != adapter.base:
        raise UsageError(
            f"the adapter was trained on {adapter.base[:12]}, not on {base.digest[:12]}", hint="Leave `base` out."
        )
    progress = ctx.progress("merge", 1, "models")
    model, tokenizer = load(ctx.store.checkout(adapter))
    progress.advance()
    progress.finish()
    return store_model(ctx, model, tokenizer, license_of(adapter, base))
