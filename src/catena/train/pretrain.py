"""Stage `train.pretrain`: documents and a tokenizer to a language model, from scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from catena.core.errors import ConfigError, DataError, UsageError
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, ModelVersion
from catena.models.presets import preset as preset_named
from catena.train.artifacts import fingerprint, license_of, read_split, seed_of, store_model
from catena.train.settings import TrainConfig

if TYPE_CHECKING:
    from catena.train.batches import Batch, PackedDocuments

ENCODED_AT_ONCE = 256


class PretrainConfig(TrainConfig):
    """How to train from scratch. At most one of `steps`, `tokens` and `epochs`; none means one epoch."""

    preset: str = "llama-4m"
    """Named shape of the model (catena.models.presets)."""
    context: int | None = Field(default=None, ge=8)
    """Longest sequence the model will take; default: the preset's."""
    sequence_length: int = Field(default=128, ge=8)
    """Tokens in one training sequence; documents are packed into them end to end."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps."""
    tokens: int | None = Field(default=None, ge=1)
    """Tokens to train on; rounded down to whole steps."""
    epochs: float | None = Field(default=None, gt=0)
    """Times to go through the documents."""
    split: str = "train"
    """Split to train on."""
    validation_split: str = "validation"
    """Split to measure on; a dataset without it is trained without measuring."""

    @field_validator("preset")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            preset_named(name)
        except ConfigError as error:
            raise ValueError(f"{error.message}. {error.hint}") from error
        return name

    @model_validator(mode="after")
    def _consistent(self) -> PretrainConfig:
        if sum(budget is not None for budget in (self.steps, self.tokens, self.epochs)) > 1:
            raise ValueError("give one of steps, tokens and epochs, not several")
        context = self.context or preset_named(self.preset).context
        if self.sequence_length > context:
            raise ValueError(f"sequence_length {self.sequence_length} is longer than the model's context, {context}")
        return self


@stage("train.pretrain")
def pretrain(ctx: Context, cfg: PretrainConfig, *, tokenizer: ModelVersion, data: DatasetVersion) -> ModelVersion:
    """Train a Llama-class model from scratch on packed documents."""
    from catena.models.presets import build
    from catena.models.tokenizer import load_tokenizer
    from catena.train.loop import Plan, train
    from catena.train.optim import learning_rate

    if not any(file.path == "tokenizer.json" for file in tokenizer.files):
        raise UsageError(f"{tokenizer.digest[:12]} has no tokenizer", hint="Give the output of train.tokenizer.")
    words = load_tokenizer(ctx.store.checkout(tokenizer))
    packed = _packed(ctx, cfg, words, data, cfg.split)
    steps = steps_of(cfg, packed.windows)
    model = build(
        cfg.preset, len(words), seed_of(ctx), context=cfg.context, pad_id=words.pad_token_id, end_id=words.eos_token_id
    )
    ctx.events.metric("parameters", sum(parameter.numel() for parameter in model.parameters()))
    ctx.events.metric("training_tokens", steps * cfg.batch_size * cfg.sequence_length)
    plan = Plan(
        label="pretrain",
        steps=steps,
        batch=packed.batch,
        rate=lambda step: learning_rate(step, steps, cfg),
        validation=_validation(ctx, cfg, words, data),
        fingerprint=fingerprint(ctx, cfg, tokenizer, data),
    )
    train(ctx, model, plan, cfg)
    return store_model(ctx, model, words, license_of(tokenizer, data))


def steps_of(cfg: PretrainConfig, windows: int) -> int:
    """Return the optimizer steps that the config's budget comes to, for documents of `windows` sequences."""
    if cfg.steps is not None:
        return cfg.steps
    if cfg.tokens is not None:
        return max(1, cfg.tokens // (cfg.batch_size * cfg.sequence_length))
    return max(1, round((cfg.epochs or 1.0) * windows / cfg.batch_size))


def _packed(ctx: Context, cfg: PretrainConfig, words: Any, data: DatasetVersion, split: str) -> PackedDocuments:
    from catena.models.tokenizer import encode_texts
    from catena.train.batches import PackedDocuments

    texts = [sample.text for sample in read_split(ctx, data, split, "document")]
    progress = ctx.progress(f"encode {split}", len(texts), "documents")
    encoded: list[list[int]] = []
    for start in range(0, len(texts), ENCODED_AT_ONCE):
        piece = texts[start : start + ENCODED_AT_ONCE]
        encoded += encode_texts(words, piece)
        progress.advance(len(piece))
    progress.finish()
    return PackedDocuments(encoded, words.eos_token_id, cfg.sequence_length, cfg.batch_size, (seed_of(ctx),))


def _validation(ctx: Context, cfg: PretrainConfig, words: Any, data: DatasetVersion) -> list[Batch]:
    if cfg.validation_split not in data.splits:
        ctx.events.log(f"the dataset has no split {cfg.validation_split!r}; training without measuring")
        return []
    try:
        return _packed(ctx, cfg, words, data, cfg.validation_split).in_order(cfg.eval_batches)
    except DataError as error:
        ctx.events.log(f"training without measuring: in the split {cfg.validation_split!r}, {error.message}")
        return []
