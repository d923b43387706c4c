"""Stage `train.masked`: texts to an encoder, by foretelling masked tokens (Devlin et al. 2018, arXiv 1810.04805).

Each text is a row of its own, with the tokenizer's marks round it; one that is longer than a sequence becomes several
rows. A classifier begins from the result (`train.classify`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from catena.core.errors import DataError, UsageError
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, ModelVersion, Shape
from catena.models.presets import preset as preset_named
from catena.train.artifacts import fingerprint, license_of, read_split, seed_of, store_model
from catena.train.begin import begin, known_preset, say_counts
from catena.train.launch import launched
from catena.train.settings import BudgetConfig

if TYPE_CHECKING:
    from catena.train.batches import Batch
    from catena.train.tasks import MaskedRows

ENCODED_AT_ONCE = 256


class MaskedConfig(BudgetConfig):
    """How to train an encoder. At most one of `steps` and `epochs`; neither means one epoch."""

    preset: str = "bert-mini"
    """Named shape of an encoder (catena.models.presets), where it is trained from scratch."""
    context: int | None = Field(default=None, ge=8)
    """Longest sequence the model will take; default: the preset's."""
    sequence_length: int = Field(default=128, ge=8)
    """Most tokens in one row; longer texts are split into several."""

    @field_validator("preset")
    @classmethod
    def _an_encoder(cls, name: str) -> str:
        return known_preset(name, "encoder")

    @model_validator(mode="after")
    def _consistent(self) -> MaskedConfig:
        context = self.context or preset_named(self.preset).context
        if self.sequence_length > context:
            raise ValueError(f"sequence_length {self.sequence_length} is longer than the model's context, {context}")
        return self


@stage("train.masked")
@launched
def masked(
    ctx: Context,
    cfg: MaskedConfig,
    *,
    data: DatasetVersion,
    tokenizer: ModelVersion | None = None,
    base: ModelVersion | None = None,
) -> ModelVersion:
    """Train an encoder on masked tokens of documents (or of examples' inputs), from scratch or from a base."""
    from catena.train.loop import Plan, train
    from catena.train.optim import learning_rate
    from catena.train.tasks import masked_token_loss

    model, words = begin(ctx, cfg, "masked", tokenizer, base)
    if words.mask_token_id is None:
        raise UsageError("the base's tokenizer has no mask token", hint="Give an encoder, or train from scratch.")
    rows = _rows(ctx, cfg, words, data, cfg.split)
    steps = cfg.steps or rows.order.steps(cfg.epochs or 1.0)
    given = [data, *(item for item in (tokenizer, base) if item is not None)]
    plan = Plan(
        label="masked",
        steps=steps,
        batch=rows.batch,
        rate=lambda step: learning_rate(step, steps, cfg),
        validation=_validation(ctx, cfg, words, data),
        objective=masked_token_loss,
        fingerprint=fingerprint(ctx, cfg, *given),
    )
    train(ctx, model, plan, cfg)
    return store_model(ctx, model, words, license_of(*given))


def _rows(ctx: Context, cfg: MaskedConfig, words: Any, data: DatasetVersion, split: str) -> MaskedRows:
    import numpy as np

    from catena.train.tasks import LengthGroups, Mask, MaskedRows
    from catena.train.tokens import Tokens, make_shard

    shape: Shape = "example" if data.shape == "example" else "document"
    # Of an example only the input: the label must not be read off the text.
    samples = read_split(ctx, data, split, shape)
    texts = [sample.data["input"] if shape == "example" else sample.text for sample in samples]
    progress = ctx.progress(f"encode {split}", len(texts), "texts")
    shards = []
    for start in range(0, len(texts), ENCODED_AT_ONCE):
        piece = texts[start : start + ENCODED_AT_ONCE]
        pairs = _pieces(words, piece, cfg.sequence_length)
        shards.append(make_shard(pairs, range(len(pairs)), vocabulary=len(words)))
        progress.advance(len(piece))
    progress.finish()
    rows = Tokens(shards)
    if not len(rows):
        raise DataError(f"the texts of the split {split!r} are all empty", hint="Choose another split.")
    special = set(words.all_special_ids)
    ordinary = np.array([number for number in range(len(words)) if number not in special], np.int64)
    pad = words.pad_token_id if words.pad_token_id is not None else words.eos_token_id
    order = LengthGroups(rows.lengths, cfg.batch_size, seed_of(ctx))
    say_counts(ctx, {"empty": sum(not text.strip() for text in texts)}, len(texts), "texts")
    return MaskedRows(rows, order, Mask(words.mask_token_id, pad, ordinary))


def _pieces(words: Any, texts: list[str], length: int) -> list[tuple[list[int], list[bool]]]:
    """Return (ids, which may be masked) of each row that the texts come to; rows without such a token are left out."""
    told = words(
        texts,
        truncation=True,
        max_length=length,
        split_special_tokens=True,
        return_overflowing_tokens=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    rows = zip(told["input_ids"], told["special_tokens_mask"], strict=True)
    return [(ids, [not flag for flag in special]) for ids, special in rows if not all(special)]


def _validation(ctx: Context, cfg: MaskedConfig, words: Any, data: DatasetVersion) -> list[Batch]:
    if cfg.validation_split not in data.splits:
        ctx.events.log(f"the dataset has no split {cfg.validation_split!r}; training without measuring")
        return []
    return list(_rows(ctx, cfg, words, data, cfg.validation_split).in_order(cfg.eval_batches))
