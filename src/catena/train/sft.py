"""Stage `train.sft`: a model and conversations to a model that answers. Learns from the assistant's tokens only.

A curriculum is a list of phases, each drawing from some levels (`metadata.level`): a few fixed phrasings first and many
free ones after, for example. One learning-rate schedule runs over all phases.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from catena.core.config import Config
from catena.core.errors import DataError, UsageError
from catena.core.sample import Sample
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, ModelVersion
from catena.train.artifacts import fingerprint, license_of, read_split, seed_of, store_model
from catena.train.replay import Replayed, packed_documents
from catena.train.settings import TrainConfig

if TYPE_CHECKING:
    from catena.models.chat import Encoded
    from catena.train.batches import Batch, Pool


class Phase(Config):
    """One part of a curriculum. At most one of `steps` and `epochs`; none means one epoch."""

    levels: tuple[int, ...] = ()
    """Values of `metadata.level` to draw from; empty: all conversations."""
    shares: tuple[float, ...] = ()
    """For each level its share of every batch; empty: each conversation counts the same."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps."""
    epochs: float | None = Field(default=None, gt=0)
    """Times to go through this phase's conversations."""
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    """Highest rate in this phase, in place of the stage's."""

    @model_validator(mode="after")
    def _consistent(self) -> Phase:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        if self.shares and (len(self.shares) != len(self.levels) or min(self.shares) <= 0):
            raise ValueError("shares are positive numbers, one for each level")
        return self


class SftConfig(TrainConfig):
    """How to fine-tune on conversations."""

    phases: tuple[Phase, ...] = (Phase(),)
    """The curriculum, in order."""
    take_turns: str = ""
    """Metadata key: conversations with one value of it (phrasings of one fact) are spread evenly over an epoch."""
    overlong: Literal["refuse", "cut", "drop"] = "cut"
    """What to do with a conversation longer than the model's context; what was done is counted and logged."""
    split: str = "train"
    """Split to train on."""
    validation_split: str = "validation"
    """Split to measure on; a dataset without it is trained without measuring."""
    replay_every: int = Field(default=8, ge=2)
    """With documents to replay: every so many steps a batch of them is learnt, so that the model does not forget."""
    replay_sequences: int = Field(default=8, ge=1)
    """Sequences in a batch of replayed documents."""
    replay_length: int = Field(default=128, ge=8)
    """Tokens in such a sequence."""

    @model_validator(mode="after")
    def _something_to_do(self) -> SftConfig:
        if not self.phases:
            raise ValueError("a curriculum needs at least one phase")
        return self


@stage("train.sft")
def sft(
    ctx: Context, cfg: SftConfig, *, base: ModelVersion, data: DatasetVersion, replay: DatasetVersion | None = None
) -> ModelVersion:
    """Fine-tune a model on conversations, with a curriculum and the loss on the assistant's tokens.

    With `replay`, documents are learnt in between, so that the model stays good at what it was pretrained on.
    """
    from catena.models.checkpoint import load
    from catena.train.batches import fixed_batches
    from catena.train.loop import Plan, train

    if base.form != "full":
        raise UsageError(f"{base.digest[:12]} is a {base.form} model; only a full one can be trained")
    samples = read_split(ctx, data, cfg.split, "conversation")
    model, words = load(ctx.store.checkout(base))
    samples, rows = _encode(ctx, cfg, words, samples, model.config.max_position_embeddings)
    pad = words.pad_token_id if words.pad_token_id is not None else words.eos_token_id
    conversations = Curriculum(cfg, samples, rows, seed_of(ctx), pad)
    course: Curriculum | Replayed = conversations
    if replay is not None:
        course = Replayed(conversations, packed_documents(ctx, cfg, words, replay), cfg.replay_every)
    given = [base, data] if replay is None else [base, data, replay]
    validation: list[Batch] = []
    if cfg.validation_split in data.splits:
        held = read_split(ctx, data, cfg.validation_split, "conversation")
        _, held_rows = _encode(ctx, cfg, words, held, model.config.max_position_embeddings)
        validation = fixed_batches(held_rows, cfg.batch_size, pad, cfg.eval_batches)
    plan = Plan(
        label="fine-tune",
        steps=course.steps,
        batch=course.batch,
        rate=course.rate,
        validation=validation,
        phase_ends=frozenset(course.ends),
        fingerprint=fingerprint(ctx, cfg, *given),
    )
    train(ctx, model, plan, cfg)
    return store_model(ctx, model, words, license_of(*given))


class Curriculum:
    """Phases as one training: which batch and which rate a step has, as pure functions of the step."""

    def __init__(self, cfg: SftConfig, samples: Sequence[Sample], rows: Sequence[Encoded], seed: int, pad: int) -> None:
        from catena.train.batches import BucketedConversations

        self.cfg = cfg
        pools = [pools_of(phase, samples, cfg.take_turns) for phase in cfg.phases]
        self._drawn = [
            BucketedConversations(rows, group, cfg.batch_size, (seed, number), pad)
            for number, group in enumerate(pools)
        ]
        sizes = [sum(len(pool.rows) for pool in group) for group in pools]
        lengths = [steps_of(phase, size, cfg.batch_size) for phase, size in zip(cfg.phases, sizes, strict=True)]
        self.ends = list(accumulate(lengths))
        """Number of steps done when each phase ends."""

    @property
    def steps(self) -> int:
        """Steps of all phases together."""
        return self.ends[-1]

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        number = bisect_right(self.ends, step)
        return self._drawn[number].batch(step - (self.ends[number - 1] if number else 0))

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: one schedule over all phases, each with its own height if it has one."""
        from catena.train.optim import learning_rate

        phase = self.cfg.phases[bisect_right(self.ends, step)]
        return learning_rate(step, self.steps, self.cfg, phase.learning_rate)


def steps_of(phase: Phase, rows: int, batch_size: int) -> int:
    """Return the optimizer steps that a phase's budget comes to."""
    if phase.steps is not None:
        return phase.steps
    return max(1, round((phase.epochs or 1.0) * rows / batch_size))


def pools_of(phase: Phase, samples: Sequence[Sample], take_turns: str = "") -> list[Pool]:
    """Return what a phase draws from: one pool, or one for each level where it has shares.

    Raises `DataError` when a level of the phase has no conversation.
    """
    import numpy as np

    from catena.train.batches import Pool

    numbers: dict[Any, int] = {}
    turns = [numbers.setdefault(sample.metadata.get(take_turns), len(numbers)) for sample in samples]
    level_of = [sample.metadata.get("level") for sample in samples]
    for level in phase.levels:
        if level not in level_of:
            present = sorted({str(found) for found in level_of})
            raise DataError(f"no conversation has the level {level}", hint=f"Levels here: {', '.join(present)}.")
    groups = [[level] for level in phase.levels] if phase.shares else [list(phase.levels)]
    pools = []
    for number, levels in enumerate(groups):
        rows = np.array([at for at, level in enumerate(level_of) if not levels or level in levels], np.int64)
        share = phase.shares[number] if phase.shares else 1.0
        pools.append(Pool(rows, share, np.array(turns, np.int64)[rows] if take_turns else None))
    return pools


def _encode(
    ctx: Context, cfg: SftConfig, words: Any, samples: list[Sample], context: int
) -> tuple[list[Sample], list[Encoded]]:
    from catena.models.chat import encode_conversations
    from catena.train.batches import fit

    encoded = encode_conversations(words, [sample.data["messages"] for sample in samples])
    kept, rows, counts = fit(encoded, context, cfg.overlong)
    for reason, count in counts.items():
        if count:
            ctx.events.metric(reason, count)
            ctx.events.log(f"{count} of {len(samples)} conversations: {reason.replace('_', ' ')} (context {context})")
    if not rows:
        raise DataError(
            f"none of {len(samples)} conversations has assistant tokens to learn from",
            hint="Each needs a message of the role assistant that begins within the model's context.",
        )
    learnt, total = sum(row.learnt for row in rows), sum(len(row.ids) for row in rows)
    ctx.events.log(f"{len(rows)} conversations, {total} tokens, {learnt} of them learnt from")
    return [samples[index] for index in kept], rows
