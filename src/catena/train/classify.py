"""Stage `train.classify`: a model and labelled texts to a classifier, of whole texts or of the words in them.

Examples are `{input: text, output: label}`; for the head `token` the output holds tags or spans (catena.models.tags).
The body may be any encoder, decoder or encoder-decoder; the head is new, and its labels stand in config.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from catena.core.errors import DataError, did_you_mean
from catena.core.sample import Sample
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, ModelVersion
from catena.models.adapters import AdapterConfig, attach
from catena.train.artifacts import fingerprint, license_of, read_split, seed_of, store_trained
from catena.train.begin import check_base, say_counts
from catena.train.launch import launched
from catena.train.settings import BudgetConfig

if TYPE_CHECKING:
    from catena.models.tags import Tagged
    from catena.train.tasks import LabelledRows

IGNORED = -100


class ClassifyConfig(BudgetConfig):
    """How to train a classifier. At most one of `steps` and `epochs`; neither means three epochs."""

    head: Literal["sequence", "token"] = "sequence"
    """`sequence`: one label for a text. `token`: labels of the words, or of stretches, in it."""
    labels: tuple[str, ...] = ()
    """The labels there are; empty: those of the training split."""
    class_weights: Literal["equal", "balanced"] | dict[str, float] = "equal"
    """What a mistake costs: `equal`; `balanced`, rows / (labels x rows of the label); or a number for each label, 1
    where none is given."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Share of the body's and the head's inner values that are dropped in training; default: as the model says."""
    overlong: Literal["refuse", "cut", "drop"] = "cut"
    """What to do with a text longer than the model's context; what was done is counted and logged."""
    adapter: AdapterConfig = AdapterConfig()
    """Trains a few new weights and the head, and leaves the model as it is; the result is an adapter."""

    @model_validator(mode="after")
    def _consistent(self) -> ClassifyConfig:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("a label stands twice in labels")
        if isinstance(self.class_weights, dict) and any(weight < 0 for weight in self.class_weights.values()):
            raise ValueError("class_weights are 0 or more")
        return self


class Labelled(NamedTuple):
    """The examples of a split, checked."""

    names: list[str]
    texts: list[str]
    outputs: list[str]
    tagged: list[Tagged]
    """Of the head `token`; empty for the other."""

    def labels(self) -> list[set[str]]:
        """Return the labels that each example uses."""
        return [tagged.labels for tagged in self.tagged] if self.tagged else [{output} for output in self.outputs]


@stage("train.classify")
@launched
def classify(ctx: Context, cfg: ClassifyConfig, *, base: ModelVersion, data: DatasetVersion) -> ModelVersion:
    """Train a classifier of texts, or of the words in them, on labelled examples."""
    from catena.models.checkpoint import load
    from catena.train.loop import Plan, train
    from catena.train.optim import learning_rate
    from catena.train.tasks import label_objective

    check_base(base)
    examples = _labelled(cfg, read_split(ctx, data, cfg.split, "example"))
    labels = cfg.labels or tuple(sorted(set().union(*examples.labels())))
    _check(labels, examples)
    if len(labels) < 2:
        raise DataError(f"there is one label only: {labels[0]}", hint="A classifier needs two to choose from.")
    model, words = load(ctx.store.checkout(base), head=cfg.head, labels=labels, seed=seed_of(ctx))
    _prepare(model, words, cfg.dropout)
    rows = _rows(ctx, cfg, (model, words), labels, examples)
    validation = []
    if cfg.validation_split in data.splits:
        held = _labelled(cfg, read_split(ctx, data, cfg.validation_split, "example"))
        _check(labels, held)
        validation = _rows(ctx, cfg, (model, words), labels, held).in_order(cfg.eval_batches)
    model = attach(model, cfg.adapter, seed_of(ctx), words)
    steps = cfg.steps or rows.order.steps(cfg.epochs or 3.0)
    plan = Plan(
        label="classify",
        steps=steps,
        batch=rows.batch,
        rate=lambda step: learning_rate(step, steps, cfg),
        validation=validation,
        objective=label_objective(weights_of(cfg, labels, rows.labels)),
        fingerprint=fingerprint(ctx, cfg, base, data),
    )
    train(ctx, model, plan, cfg)
    return store_trained(ctx, model, words, license_of(base, data), cfg.adapter, base)


def _labelled(cfg: ClassifyConfig, samples: Sequence[Sample]) -> Labelled:
    """Read examples; raises `DataError` for one without text or label, or whose tags do not fit its text."""
    from catena.models.tags import parse_tagged

    found = Labelled([], [], [], [])
    for sample in samples:
        text, output = str(sample.data["input"]), str(sample.data["output"]).strip()
        if not text.strip() or not output:
            what = "label" if text.strip() else "text"
            raise DataError(f"the sample {sample.id} has no {what}", hint="Filter such rows out, or mend them.")
        found.names.append(sample.id)
        found.texts.append(text)
        found.outputs.append(output)
        if cfg.head == "token":
            found.tagged.append(parse_tagged(text, output, sample.id))
    return found


def _check(labels: Sequence[str], examples: Labelled) -> None:
    """Raise `DataError` for the first label that is none of `labels`."""
    known = set(labels)
    for name, used in zip(examples.names, examples.labels(), strict=True):
        for label in sorted(used - known):
            raise DataError(
                f"the label {label!r} of the sample {name} is none of the {len(labels)} that are trained",
                hint=f"{did_you_mean(label, known)} `data.align_labels` merges spellings.",
            )


def _prepare(model: Any, words: Any, dropout: float | None) -> None:
    """Set the dropout, and the padding token, by which decoders find the last token of a row."""
    from torch import nn

    from catena.models.classify import padding_of

    if model.config.pad_token_id is None:
        model.config.pad_token_id = padding_of(words)
    for module in model.modules():
        if dropout is not None and isinstance(module, nn.Dropout):
            module.p = dropout


def _rows(
    ctx: Context, cfg: ClassifyConfig, loaded: tuple[Any, Any], labels: Sequence[str], examples: Labelled
) -> LabelledRows:
    """Return the examples in tokens, cut or dropped where they are longer than the context."""
    from catena.models.classify import fit, padding_of
    from catena.models.heads import context_of
    from catena.models.tags import numbers_of
    from catena.train.tasks import LabelledRows, LengthGroups

    model, words = loaded
    number = {label: place for place, label in enumerate(labels)}
    ctx.progress("encode", len(examples.texts), "examples").finish()
    context = context_of(model.config.to_dict())
    context -= min(cfg.adapter.tokens_ahead, context)
    kept, rows, counts = fit(words, examples.texts, context, cfg.overlong)
    told: list[Any] = [number.get(examples.outputs[index]) for index in kept]
    if cfg.head == "token":
        told = [numbers_of(examples.tagged[index], row.offsets, number) for index, row in zip(kept, rows, strict=True)]
    say_counts(ctx, counts, len(examples.texts), "examples")
    if not rows:
        raise DataError(f"none of {len(examples.texts)} examples is left to learn from", hint="Set overlong to cut.")
    order = LengthGroups([len(row.ids) for row in rows], cfg.batch_size, seed_of(ctx))
    return LabelledRows([row.ids for row in rows], told, order, padding_of(words))


def weights_of(cfg: ClassifyConfig, labels: Sequence[str], told: Sequence[Any]) -> list[float] | None:
    """Return the weight of each label, None where all weigh the same; raises `DataError` for an unknown label's."""
    if cfg.class_weights == "equal":
        return None
    if isinstance(cfg.class_weights, dict):
        for label in cfg.class_weights:
            if label not in labels:
                raise DataError(f"class_weights: there is no label {label!r}", hint=did_you_mean(label, labels))
        return [float(cfg.class_weights.get(label, 1.0)) for label in labels]
    counts: Counter[int] = Counter()
    for numbers in told:
        counts.update([numbers] if isinstance(numbers, int) else [number for number in numbers if number != IGNORED])
    return [counts.total() / (len(labels) * counts[place]) if counts[place] else 0.0 for place in range(len(labels))]
