"""Calibration data: samples of a dataset as rows of tokens, which a model's inputs are measured on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from catena.core.config import Config
from catena.core.errors import DataError, UsageError
from catena.core.sample import Sample, sample_id
from catena.core.stage import Context
from catena.core.types import DatasetVersion

if TYPE_CHECKING:
    from torch import Tensor


class CalibrationConfig(Config):
    """Which text, and how much of it. A few thousand tokens of the kind that the model will read are enough."""

    split: str = "train"
    """Split of the data; never the one that is measured on afterwards. `train` of undivided data is all of it."""
    tokens: int = Field(default=32_768, ge=64)
    """How many at most; samples come in an order drawn by hash."""
    length: int = Field(default=512, ge=16)
    """Tokens of a row; at most the model's context."""


def for_data(method: str, data: DatasetVersion | None, needed: bool) -> DatasetVersion | None:
    """Return the data that a method calibrates with, or None; raises `UsageError` where it is missing."""
    if needed and data is None:
        raise UsageError(
            f"the method {method} needs calibration data",
            hint="Give it the input `data`: documents or conversations of the kind that the model will read.",
        )
    return data if needed else None


def calibration_text(
    ctx: Context, cfg: CalibrationConfig, data: DatasetVersion, tokenizer: Any, context: int
) -> Tensor:
    """Return rows of token ids [rows, length], documents joined by the end token.

    Raises `UsageError` for a split that is not there and `DataError` where there is too little text.
    """
    import torch

    split = data.split_of(cfg.split)
    if split not in data.splits:
        raise UsageError(
            f"calibration.split: the data has no split {cfg.split!r}",
            hint=f"It has: {', '.join(data.splits) or 'nothing'}.",
        )
    samples = ctx.store.open_dataset(data).samples(split)
    length = min(cfg.length, context or cfg.length)
    ids: list[int] = []
    for sample in sorted(samples, key=lambda one: sample_id(ctx.seed, one.id)):
        ids += [*_tokens(tokenizer, sample), tokenizer.eos_token_id]
        if len(ids) >= cfg.tokens:
            break
    count = min(len(ids), max(cfg.tokens, length)) // length
    if not count:
        raise DataError(
            f"the calibration data has {len(ids)} tokens, less than one row of {length}",
            hint="Give it more text, or set calibration.length.",
        )
    return torch.tensor(ids[: count * length]).view(count, length)


def _tokens(tokenizer: Any, sample: Sample) -> list[int]:
    if "messages" in sample.data:
        from catena.models.chat import encode_conversations

        return list(encode_conversations(tokenizer, [sample.data["messages"]])[0].ids)
    found: list[int] = tokenizer.encode(sample.text, add_special_tokens=False)
    return found
