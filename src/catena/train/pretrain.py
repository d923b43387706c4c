"""Stage `train.pretrain`: documents to a language model, from scratch with a tokenizer or on from a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from catena.core.errors import ConfigError, DataError, UsageError
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, ModelVersion
from catena.models.adapters import AdapterConfig, attach
from catena.models.attention_settings import LOCAL_GLOBAL, LocalGlobal
from catena.models.presets import preset as preset_named
from catena.train.artifacts import encode_split, fingerprint, license_of, seed_of, store_trained
from catena.train.launch import launched
from catena.train.overlong import Overlong
from catena.train.settings import SplitConfig

if TYPE_CHECKING:
    from catena.train.batches import Batch, PackedDocuments
    from catena.train.encode import Encoding
    from catena.train.packing import PackedRows


class PretrainConfig(SplitConfig):
    """How to train on documents. At most one of `steps`, `tokens` and `epochs`; none means one epoch."""

    preset: str | None = "llama-4m"
    """Named shape of the model (catena.models.presets); a `base` has a shape already, and this is not looked at."""
    context: int | None = Field(default=None, ge=8)
    """Longest sequence the model will take; default: the preset's."""
    sequence_length: int = Field(default=128, ge=8)
    """Tokens in one training sequence."""
    documents: Literal["joined", "separate"] = "joined"
    """`joined`: laid end to end and cut into sequences, no padding. `separate`: packed whole, none seeing another."""
    overlong: Overlong = "split"
    """What to do with a separate document longer than a sequence: `refuse`, `cut`, `split` or `drop` it; counted."""
    tokens_per_batch: int = Field(default=0, ge=0)
    """Most tokens of a batch, padding too, in place of `batch_size`."""
    attention: Literal["dense", "local_global"] = "dense"
    """What a token sees: all before it, or a window and the start of its document (docs/attention.md)."""
    window: int = Field(default=256, ge=1)
    """Tokens that each token sees behind it, itself included; for `local_global`."""
    memory: int = Field(default=16, ge=0)
    """Tokens at the start of a document that all of it sees; for `local_global`."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps."""
    tokens: int | None = Field(default=None, ge=1)
    """Tokens to train on; rounded down to whole steps."""
    epochs: float | None = Field(default=None, gt=0)
    """Times to go through the documents."""
    adapter: AdapterConfig = AdapterConfig()
    """Trains a few new weights and leaves the `base` as it is; the result is an adapter (`train.merge` merges it)."""

    @field_validator("preset")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        try:
            if name is not None:
                preset_named(name, "decoder")
        except ConfigError as error:
            raise ValueError(f"{error.message}. {error.hint}") from error
        return name

    @model_validator(mode="after")
    def _consistent(self) -> PretrainConfig:
        if sum(budget is not None for budget in (self.steps, self.tokens, self.epochs)) > 1:
            raise ValueError("give one of steps, tokens and epochs, not several")
        if self.preset is not None:
            context = self.context or preset_named(self.preset).context
            if self.sequence_length > context:
                raise ValueError(
                    f"sequence_length {self.sequence_length} is longer than the model's context, {context}"
                )
        if 0 < self.tokens_per_batch < self.sequence_length:
            raise ValueError(f"tokens_per_batch {self.tokens_per_batch} does not hold one sequence")
        return self


@stage("train.pretrain")
@launched
def pretrain(
    ctx: Context,
    cfg: PretrainConfig,
    *,
    data: DatasetVersion,
    tokenizer: ModelVersion | None = None,
    base: ModelVersion | None = None,
) -> ModelVersion:
    """Train a language model on documents: a new one with a `tokenizer`, or a `base` further with its own."""
    from catena.train.loop import Plan, train
    from catena.train.objectives import check_packable
    from catena.train.optim import learning_rate

    source = _source(cfg, tokenizer, base)
    model, words = _model(ctx, cfg, source, new=base is None)
    if cfg.documents == "separate":
        check_packable(model)
    plan = encoding(cfg, str(ctx.store.checkout(source)), source.digest)
    drawn = _drawn(ctx, cfg, words, data, cfg.split, plan)
    drawn.tokens.check_vocabulary(model.config.vocab_size)
    steps = steps_of(cfg, drawn)
    ctx.events.metric("parameters", sum(parameter.numel() for parameter in model.parameters()))
    ctx.events.metric("training_tokens", steps * batch_tokens(cfg))
    validation = _validation(ctx, cfg, words, data, plan)
    model = attach(model, cfg.adapter, seed_of(ctx), words)
    work = Plan(
        label="pretrain",
        steps=steps,
        batch=drawn.batch,
        rate=lambda step: learning_rate(step, steps, cfg),
        validation=validation,
        fingerprint=fingerprint(ctx, cfg, source, data),
    )
    train(ctx, model, work, cfg)
    return store_trained(ctx, model, words, license_of(source, data), cfg.adapter, source)


def _source(cfg: PretrainConfig, tokenizer: ModelVersion | None, base: ModelVersion | None) -> ModelVersion:
    """Return where the tokenizer comes from. Raises `UsageError` where inputs and config do not fit together."""
    if base is not None and tokenizer is not None:
        raise UsageError("a base brings its own tokenizer", hint="Give base or tokenizer, not both.")
    source = base or tokenizer
    if source is None:
        raise UsageError(
            "there is nothing to begin with",
            hint="Give tokenizer (for a new model) or base (to train a model further).",
        )
    if base is not None and base.form != "full":
        raise UsageError(
            f"{base.digest[:12]} is a {base.form} model; only a full one can be trained further",
            hint="An adapter becomes one with train.merge.",
        )
    if base is None and (cfg.adapter.kind != "none" or cfg.preset is None):
        raise UsageError(
            "a new model needs a preset and all of its weights trained", hint="Adapters, and preset: null, need a base."
        )
    if not any(file.path == "tokenizer.json" for file in source.files):
        raise UsageError(f"{source.digest[:12]} has no tokenizer", hint="Give the output of train.tokenizer.")
    return source


def _model(ctx: Context, cfg: PretrainConfig, source: ModelVersion, *, new: bool) -> tuple[Any, Any]:
    """Build an untrained model, or load the base; returns it and its tokenizer."""
    from catena.models.checkpoint import load
    from catena.models.heads import context_of
    from catena.models.presets import build
    from catena.models.tokenizer import load_tokenizer

    folder = ctx.store.checkout(source)
    if new:
        words = load_tokenizer(folder)
        ends = {"pad_id": words.pad_token_id, "end_id": words.eos_token_id}
        model = build(str(cfg.preset), len(words), seed_of(ctx), context=cfg.context, **ends)
    else:
        model, words = load(folder)
        context = context_of(model.config.to_dict())
        if 0 < context < cfg.sequence_length + cfg.adapter.tokens_ahead:
            raise UsageError(
                f"sequence_length {cfg.sequence_length} is longer than the model's context, {context}",
                hint=f"Set sequence_length to {context} or less.",
            )
    if cfg.attention == LOCAL_GLOBAL:
        from catena.models.attention import use_local_global

        use_local_global(model, LocalGlobal(window=cfg.window, memory=cfg.memory))
    return model, words


def encoding(cfg: PretrainConfig, folder: str, digest: str) -> Encoding:
    """Return how documents become tokens, with the tokenizer in a folder."""
    from catena.train.encode import Encoding

    longest = cfg.sequence_length if cfg.documents == "separate" else 0
    return Encoding(shape="document", tokenizer=folder, vocabulary=digest, longest=longest, overlong=cfg.overlong)


def batch_tokens(cfg: PretrainConfig) -> int:
    """Return the tokens of a batch, where all its sequences are full."""
    rows = cfg.tokens_per_batch // cfg.sequence_length or cfg.batch_size
    return rows * cfg.sequence_length


def steps_of(cfg: PretrainConfig, drawn: PackedDocuments | PackedRows) -> int:
    """Return the optimizer steps that the config's budget comes to."""
    if cfg.steps is not None:
        return cfg.steps
    if cfg.tokens is not None:
        return max(1, cfg.tokens // batch_tokens(cfg))
    return drawn.steps(cfg.epochs or 1.0)


def _drawn(
    ctx: Context, cfg: PretrainConfig, words: Any, data: DatasetVersion, split: str, plan: Encoding
) -> PackedDocuments | PackedRows:
    import numpy as np

    from catena.train.batches import PackedDocuments
    from catena.train.conversations import Pool
    from catena.train.packing import Filling, PackedRows

    tokens = encode_split(ctx, split, data, split, plan=plan, words=words)
    seed = (seed_of(ctx),)
    if cfg.documents == "joined":
        return PackedDocuments(tokens, cfg.sequence_length, batch_tokens(cfg) // cfg.sequence_length, seed)
    if not len(tokens):
        raise DataError(f"no document is left of the split {split!r}", hint="See what was done to them in the log.")
    filling = Filling(cfg.batch_size, cfg.tokens_per_batch, cfg.sequence_length)
    pad = words.pad_token_id if words.pad_token_id is not None else words.eos_token_id or 0
    return PackedRows(tokens, [Pool(np.arange(len(tokens)))], filling, seed, pad)


def _validation(ctx: Context, cfg: PretrainConfig, words: Any, data: DatasetVersion, plan: Encoding) -> list[Batch]:
    if cfg.validation_split not in data.splits:
        ctx.events.log(f"the dataset has no split {cfg.validation_split!r}; training without measuring")
        return []
    try:
        return _drawn(ctx, cfg, words, data, cfg.validation_split, plan).in_order(cfg.eval_batches)
    except DataError as error:
        ctx.events.log(f"training without measuring: in the split {cfg.validation_split!r}, {error.message}")
        return []
