"""Stage `train.seq2seq`: pairs of texts to an encoder-decoder that turns the one into the other.

Examples are `{input: source, output: target}`: translations (`data.align_parallel`), summaries, rewritten sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from catena.core.errors import DataError
from catena.core.sample import Sample
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, ModelVersion
from catena.models.adapters import AdapterConfig, attach
from catena.train.artifacts import fingerprint, license_of, read_split, seed_of, store_model, store_trained
from catena.train.begin import begin, known_preset, say_counts
from catena.train.launch import launched
from catena.train.settings import BudgetConfig

if TYPE_CHECKING:
    from catena.models.classify import Row
    from catena.train.tasks import LabelledRows


class Seq2SeqConfig(BudgetConfig):
    """How to train on pairs. At most one of `steps` and `epochs`; neither means three epochs."""

    preset: str = "t5-small"
    """Named shape of an encoder-decoder (catena.models.presets), where it is trained from scratch."""
    context: int | None = Field(default=None, ge=8)
    """Longest sequence the model is made for; default: the preset's."""
    sequence_length: int = Field(default=128, ge=4)
    """Most tokens of a source, and of a target."""
    overlong: Literal["refuse", "cut", "drop"] = "drop"
    """What to do with a pair of which one side is longer; what was done is counted and logged."""
    adapter: AdapterConfig = AdapterConfig()
    """Trains a few new weights and leaves the base as it is; the result is an adapter."""

    @field_validator("preset")
    @classmethod
    def _an_encoder_decoder(cls, name: str) -> str:
        return known_preset(name, "encoder-decoder")


@stage("train.seq2seq")
@launched
def seq2seq(
    ctx: Context,
    cfg: Seq2SeqConfig,
    *,
    data: DatasetVersion,
    tokenizer: ModelVersion | None = None,
    base: ModelVersion | None = None,
) -> ModelVersion:
    """Train an encoder-decoder on pairs of source and target, from scratch or from a base."""
    from catena.train.loop import Plan, train
    from catena.train.optim import learning_rate
    from catena.train.tasks import target_text_loss

    model, words = begin(ctx, cfg, "seq2seq", tokenizer, base)
    if base is None and cfg.adapter.kind != "none":
        raise DataError("an adapter needs a base to be put on", hint="Give a base, or train all weights.")
    rows = _rows(ctx, cfg, words, read_split(ctx, data, cfg.split, "example"))
    validation = []
    if cfg.validation_split in data.splits:
        held = read_split(ctx, data, cfg.validation_split, "example")
        validation = _rows(ctx, cfg, words, held).in_order(cfg.eval_batches)
    model = attach(model, cfg.adapter, seed_of(ctx), words)
    given = [data, *(item for item in (tokenizer, base) if item is not None)]
    steps = cfg.steps or rows.order.steps(cfg.epochs or 3.0)
    plan = Plan(
        label="seq2seq",
        steps=steps,
        batch=rows.batch,
        rate=lambda step: learning_rate(step, steps, cfg),
        validation=validation,
        objective=target_text_loss,
        fingerprint=fingerprint(ctx, cfg, *given),
    )
    train(ctx, model, plan, cfg)
    if base is None:
        return store_model(ctx, model, words, license_of(*given))
    return store_trained(ctx, model, words, license_of(*given), cfg.adapter, base)


def _rows(ctx: Context, cfg: Seq2SeqConfig, words: Any, samples: Sequence[Sample]) -> LabelledRows:
    """Return pairs in tokens; raises `DataError` for one without a source or a target."""
    from catena.models.classify import fit, padding_of
    from catena.train.tasks import LabelledRows, LengthGroups

    for sample in samples:
        for side in ("input", "output"):
            if not str(sample.data[side]).strip():
                raise DataError(f"the {side} of the sample {sample.id} is empty", hint="Filter such rows out.")
    ctx.progress("encode", len(samples), "pairs").finish()
    sides: list[dict[int, Row]] = []
    lost: dict[str, int] = {}
    for side in ("input", "output"):
        texts = [str(sample.data[side]) for sample in samples]
        kept, rows, counts = fit(words, texts, cfg.sequence_length, cfg.overlong)
        sides.append(dict(zip(kept, rows, strict=True)))
        lost |= {f"{side}_{reason}": count for reason, count in counts.items()}
    say_counts(ctx, lost, len(samples), "pairs")
    both = sorted(sides[0].keys() & sides[1].keys())
    if not both:
        raise DataError(
            f"none of {len(samples)} pairs is left to learn from", hint="Raise sequence_length, or set overlong to cut."
        )
    sources, targets = ([side[index].ids for index in both] for side in sides)
    lengths = [len(source) + len(target) for source, target in zip(sources, targets, strict=True)]
    order = LengthGroups(lengths, cfg.batch_size, seed_of(ctx))
    return LabelledRows(sources, targets, order, padding_of(words))
