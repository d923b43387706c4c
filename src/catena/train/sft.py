"""Stage `train.sft`: a model and conversations to a model that answers. Learns from the assistant's tokens only.

A curriculum is a list of phases, each drawing from some levels (`metadata.level`): a few fixed phrasings first and many
free ones after, for example. One learning-rate schedule runs over all phases.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from catena.core.errors import DataError, UsageError
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, ModelVersion
from catena.models.adapters import AdapterConfig, attach
from catena.train.artifacts import encode_split, fingerprint, license_of, seed_of, store_trained
from catena.train.curriculum import Curriculum, Phase, facts_of
from catena.train.launch import launched
from catena.train.overlong import Overlong
from catena.train.replay import Replayed, packed_documents
from catena.train.settings import SplitConfig

if TYPE_CHECKING:
    from catena.train.batches import Batch
    from catena.train.encode import Encoding
    from catena.train.tokens import Tokens


class SftConfig(SplitConfig):
    """How to fine-tune on conversations."""

    phases: tuple[Phase, ...] = (Phase(),)
    """The curriculum, in order."""
    take_turns: str = ""
    """Metadata key: conversations with one value of it (phrasings of one fact) are spread evenly over an epoch."""
    overlong: Overlong = "cut"
    """What to do with a conversation that is too long: `refuse` it, `cut` its end off, `split` it at a question, `drop`
    it; what was done is counted and logged."""
    packing: bool = False
    """Several conversations in one row, none seeing another: hardly any padding. `batch_size` counts such rows."""
    sequence_length: int | None = Field(default=None, ge=8)
    """Most tokens of a row; default: the model's context; of packed rows the longest conversation, at least 512."""
    tokens_per_batch: int = Field(default=0, ge=0)
    """Most tokens of a batch, padding too, in place of `batch_size`: short conversations come in larger batches."""
    replay_every: int = Field(default=8, ge=2)
    """With documents to replay: every so many steps a batch of them is learnt, so that the model does not forget."""
    replay_sequences: int = Field(default=8, ge=1)
    """Sequences in a batch of replayed documents."""
    replay_length: int = Field(default=128, ge=8)
    """Tokens in such a sequence."""
    adapter: AdapterConfig = AdapterConfig()
    """Trains a few new weights and leaves the model as it is; the result is an adapter (`train.merge` merges it)."""

    @model_validator(mode="after")
    def _consistent(self) -> SftConfig:
        if not self.phases:
            raise ValueError("a curriculum needs at least one phase")
        if self.packing and self.adapter.tokens_ahead:
            raise ValueError(f"packing has one row for many conversations; a {self.adapter.kind} stands before each")
        return self


@stage("train.sft")
@launched
def sft(
    ctx: Context, cfg: SftConfig, *, base: ModelVersion, data: DatasetVersion, replay: DatasetVersion | None = None
) -> ModelVersion:
    """Fine-tune a model on conversations, with a curriculum and the loss on the assistant's tokens.

    With `replay`, documents are learnt in between, so that the model stays good at what it was pretrained on.
    """
    from catena.models.checkpoint import load
    from catena.models.heads import context_of
    from catena.train.batches import fixed_batches
    from catena.train.loop import Plan, train
    from catena.train.objectives import check_packable

    if base.form != "full":
        raise UsageError(
            f"{base.digest[:12]} is a {base.form} model; only a full one can be trained",
            hint="An adapter becomes one with train.merge.",
        )
    model, words = load(ctx.store.checkout(base))
    if cfg.packing:
        check_packable(model)
    plan = encoding(cfg, ctx.store.checkout(base), base.digest, context_of(model.config.to_dict()))
    rows = _conversations(ctx, data, cfg.split, plan, words)
    rows.check_vocabulary(model.config.vocab_size)
    pad = words.pad_token_id if words.pad_token_id is not None else words.eos_token_id or 0
    samples = ctx.store.open_dataset(data).samples(data.split_of(cfg.split))
    facts = facts_of(samples, rows.samples.tolist(), cfg.take_turns)
    conversations = Curriculum(cfg, facts, rows, seed_of(ctx), pad)
    course: Curriculum | Replayed = conversations
    if replay is not None:
        course = Replayed(conversations, packed_documents(ctx, cfg, words, base, replay), cfg.replay_every)
    given = [base, data] if replay is None else [base, data, replay]
    validation: list[Batch] = []
    if cfg.validation_split in data.splits:
        held = _conversations(ctx, data, cfg.validation_split, plan, words)
        validation = fixed_batches(held, cfg.batch_size, pad, cfg.eval_batches)
    model = attach(model, cfg.adapter, seed_of(ctx), words)
    work = Plan(
        label="fine-tune",
        steps=course.steps,
        batch=course.batch,
        rate=course.rate,
        validation=validation,
        phase_ends=frozenset(course.ends),
        fingerprint=fingerprint(ctx, cfg, *given),
    )
    train(ctx, model, work, cfg)
    return store_trained(ctx, model, words, license_of(*given), cfg.adapter, base)


def encoding(cfg: SftConfig, folder: Path, digest: str, context: int) -> Encoding:
    """Return how conversations become tokens for the model in a folder, which takes `context` (0: any number)."""
    from catena.train.encode import Encoding

    context -= min(cfg.adapter.tokens_ahead, context)
    limits = [limit for limit in (context, cfg.sequence_length) if limit]
    return Encoding(
        shape="conversation",
        tokenizer=str(folder),
        vocabulary=digest,
        longest=min(limits, default=0),
        overlong=cfg.overlong,
    )


def _conversations(ctx: Context, data: DatasetVersion, split: str, plan: Encoding, words: Any) -> Tokens:
    """Return the conversations of a split in tokens. Raises `DataError` where nothing is to be learnt."""
    rows = encode_split(ctx, split, data, split, plan=plan, words=words)
    if not len(rows):
        raise DataError(
            f"none of {data.splits[data.split_of(split)].rows} conversations has assistant tokens to learn from",
            hint="Each needs a message of the role assistant that begins within the model's context.",
        )
    ctx.events.log(f"{len(rows)} conversations, {rows.total} tokens, {rows.learnt} of them learnt from")
    return rows
