"""The stages `govern.train_filter` and `govern.measure_filter`: a classifier for moderation, and what it finds.

The threshold is not chosen by the labelled texts but by ordinary ones: what a service's users write all day. It is set
so that at most `false_positives` of those held back from training would be found; the recall that this leaves is told.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field

from catena.core.config import Config
from catena.core.errors import DataError, UsageError
from catena.core.registry import require
from catena.core.sample import Sample
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, ModelVersion, Report, Score
from catena.govern.moderation.classifier import Filter, Shape, columns, load_filter


class TrainFilterConfig(Config):
    """What is bad, and how closely it is learnt."""

    bad: list[str] = Field(default_factory=lambda: ["1"], min_length=1)
    """Labels of what shall be found; every other label is harmless."""
    longest: int = Field(default=4, ge=1, le=6)
    """Characters of the longest n-gram."""
    bits: int = Field(default=18, ge=10, le=24)
    """The weights are 2 to this; two bytes each."""
    strength: float = Field(default=4.0, gt=0)
    """How closely the labelled texts are followed (the inverse of the L2 penalty)."""
    false_positives: float = Field(default=0.001, gt=0, lt=0.5)
    """Largest share of ordinary texts, held back from training, that may be found."""
    held_back: float = Field(default=0.5, gt=0, lt=1)
    """Share of the ordinary texts that sets the threshold; the rest is learnt as harmless."""
    split: str = "train"
    """Split of the labelled texts to learn from; where there is none of this name, all."""


class MeasureFilterConfig(Config):
    """What is bad, and on which split."""

    bad: list[str] = Field(default_factory=lambda: ["1"], min_length=1)
    """Labels of what shall be found."""
    split: str = "test"
    """Split to measure on; where there is none of this name, all."""


@stage("govern.train_filter")
def train_filter(
    ctx: Context, cfg: TrainFilterConfig, *, labelled: DatasetVersion, ordinary: DatasetVersion | None = None
) -> ModelVersion:
    """Train a small text classifier for moderation: character n-grams, one weight each, a threshold that few cross."""
    texts, bad = _labelled(ctx, labelled, cfg.bad, cfg.split)
    if min(sum(bad), len(bad) - sum(bad)) < 2:
        raise DataError(
            f"{sum(bad)} of {len(bad)} labelled texts are bad; both kinds are needed",
            hint=f"Labels that count as bad: {', '.join(cfg.bad)}. Change them with `bad`.",
        )
    usual = [_text(sample) for sample in _samples(ctx, ordinary)] if ordinary is not None else []
    random.Random(ctx.seed).shuffle(usual)
    held = usual[: int(len(usual) * cfg.held_back)]
    shape = Shape(cfg.longest, cfg.bits)
    learnt = usual[len(held) :]
    made = _fit([*texts, *learnt], [*bad, *[False] * len(learnt)], shape, cfg.strength, ctx.seed)
    if held:
        scores = sorted((_worst(made, text) for text in held), reverse=True)
        allowed = math.floor(cfg.false_positives * len(scores))
        made.threshold = min(max(scores[allowed] + 1e-4, 0.5), 0.9999)
    facts = {"bad": cfg.bad, "labelled": len(texts), "ordinary": len(usual), "held_back": len(held)}
    with ctx.store.temporary_folder() as folder:
        made.save(folder, facts)
        ctx.events.log("trained a text filter", threshold=round(made.threshold, 4), **facts)
        return ctx.store.put_model(
            folder, "filter", architecture="TextFilter", parameters=1 << cfg.bits, license=labelled.license
        )


@stage("govern.measure_filter")
def measure_filter(
    ctx: Context,
    cfg: MeasureFilterConfig,
    *,
    model: ModelVersion,
    labelled: DatasetVersion,
    ordinary: DatasetVersion | None = None,
) -> Report:
    """Measure a text filter: recall and false positives on labelled texts, false positives on ordinary ones."""
    if model.form != "filter":
        raise UsageError(f"the model is of the form {model.form!r}", hint="Use the output of govern.train_filter.")
    judge = load_filter(ctx.store.checkout(model))
    texts, bad = _labelled(ctx, labelled, cfg.bad, cfg.split)
    found = [bool(judge.find(text)) for text in texts]
    hits = sum(hit for hit, wrong in zip(found, bad, strict=True) if wrong)
    scores = {
        "recall": share(hits, sum(bad)),
        "false_positives_labelled": share(sum(found) - hits, len(bad) - sum(bad), better="lower"),
    }
    if ordinary is not None:
        alarms = [bool(judge.find(_text(sample))) for sample in _samples(ctx, ordinary)]
        scores["false_positives_ordinary"] = share(sum(alarms), len(alarms), better="lower")
    details = {"threshold": judge.threshold, "config": cfg.model_dump(mode="json"), "data": labelled.digest}
    return ctx.store.put_report(model, "moderation", scores, details=details)


def share(hits: int, count: int, *, better: Any = "higher") -> Score:
    """Return a share with its Clopper-Pearson interval (95 %): exact, also where there are no hits at all."""
    low, high = clopper_pearson(hits, count)
    return Score(value=round(hits / max(count, 1), 6), low=round(low, 6), high=round(high, 6), n=count, better=better)


def clopper_pearson(hits: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a share (Clopper and Pearson 1934)."""
    if count == 0:
        return 0.0, 1.0
    beta = require("scipy.stats", "data").beta
    rest = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(rest, hits, count - hits + 1))
    high = 1.0 if hits == count else float(beta.ppf(1 - rest, hits + 1, count - hits))
    return low, high


def _fit(texts: Sequence[str], bad: Sequence[bool], shape: Shape, strength: float, seed: int) -> Filter:
    """Fit the weights; each text's row has length one, so that long and short ones count the same."""
    import numpy as np

    sparse = require("scipy.sparse", "data")
    linear = require("sklearn.linear_model", "data")
    rows = [columns(text, shape) for text in texts]
    lengths = np.array([len(row) for row in rows])
    values = np.repeat(1 / np.sqrt(np.maximum(lengths, 1)), lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    matrix = sparse.csr_array((values, np.concatenate(rows), starts), shape=(len(rows), 1 << shape.bits))
    used = np.unique(matrix.indices)
    regression = linear.LogisticRegression(C=strength, max_iter=200, random_state=seed)
    regression.fit(matrix[:, used], list(bad))
    weights = np.zeros(1 << shape.bits, dtype=np.float32)
    weights[used] = regression.coef_[0]
    # As they will be stored, so that the threshold is that of the stored ones.
    return Filter(weights.astype(np.float16).astype(np.float32), float(regression.intercept_[0]), 0.5, shape)


def _worst(judge: Filter, text: str) -> float:
    """Return the highest score that any piece of a text gets."""
    from catena.govern.moderation.classifier import WINDOW, pieces

    return max((judge.score(text[max(0, end - WINDOW) : end]) for _, end in pieces(text)), default=0.0)


def _labelled(ctx: Context, data: DatasetVersion, bad: Sequence[str], split: str) -> tuple[list[str], list[bool]]:
    if data.shape != "example":
        raise UsageError(f"the labelled texts are of the shape {data.shape!r}", hint="Examples have input and output.")
    rows = list(_samples(ctx, data, split if split in data.splits else None))
    return [str(row.data["input"]) for row in rows], [str(row.data["output"]) in bad for row in rows]


def _samples(ctx: Context, data: DatasetVersion, split: str | None = None) -> Iterator[Sample]:
    yield from ctx.store.open_dataset(data).samples(split)


def _text(sample: Sample) -> str:
    return str(sample.data["input"]) if "input" in sample.data else sample.text
