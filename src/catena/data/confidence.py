"""`data.confidence`: labelled rows whose label the other rows do not believe are kept back, over and over until stable.

Every round trains on the rows that are kept (never on the row that is judged), and judges all rows again: wrong labels
teach nothing any more, and a row that was doubted because of them comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from catena.core.config import Config
from catena.core.sample import Sample
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion
from catena.hub.fields import need_shape


class ConfidenceConfig(Config):
    threshold: float = Field(default=0.8, gt=0, lt=1)
    """Least confidence in a row's label."""
    measure: Literal["right", "probability"] = "right"
    """`right` is the probability that the label is no mistake, given how common mistakes are in this set; `probability`
    is the model's for the label, and is low for every row between two labels of like meaning."""
    folds: int = Field(default=5, ge=2, le=20)
    """Parts of the set; each is judged by a model trained on the others."""
    max_rounds: int = Field(default=10, ge=1)
    """Most rounds; it ends earlier when a round changes nothing."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The last round's view of each row, and how it came to that."""

    confidence: tuple[float | None, ...]
    """None where a label has too few rows to be judged."""
    kept: tuple[bool, ...]
    rounds: int
    stable: bool
    dropped_by_round: tuple[int, ...]
    noise: float


def judge(texts: Sequence[str], labels: Sequence[str], cfg: ConfidenceConfig, seed: int) -> Judged:
    """Judge each label until the set of kept rows does not change any more; rows of rare labels are kept unjudged."""
    import numpy as np

    from catena.data.label_model import belief, coded, cross_scores, folds_of, hashed, weighted

    rows, names, codes = coded(labels, cfg.folds)
    features = weighted(hashed([texts[row] for row in rows], short=True))
    fold = folds_of(codes, cfg.folds, seed)
    kept, stable = np.ones(len(rows), dtype=np.bool_), False
    seen: set[bytes] = set()
    dropped: list[int] = []
    while len(dropped) < cfg.max_rounds and not stable:
        seen.add(kept.tobytes())
        found = belief(cross_scores(features, codes, len(names), fold, kept), codes)
        confidence = found.right if cfg.measure == "right" else found.given
        now = confidence >= cfg.threshold
        dropped.append(int((~now).sum()))
        # A set that was there before would go round in a circle for ever.
        stable, kept = now.tobytes() in seen or not now.any(), now  # nothing kept, nothing to train on
    everything, values = np.ones(len(labels), dtype=np.bool_), np.full(len(labels), np.nan)
    everything[rows], values[rows] = kept, confidence
    return Judged(
        tuple(None if np.isnan(value) else round(float(value), 4) for value in values),
        tuple(everything.tolist()),
        len(dropped),
        stable,
        tuple(dropped),
        round(found.noise, 4),
    )


def labelled(ctx: Context, source: DatasetVersion) -> list[Sample]:
    """Return the rows of a labelled set; raises `UsageError` for another shape."""
    need_shape(source, "example")
    return list(ctx.store.open_dataset(source).samples())


@stage("data.confidence")
def confidence(ctx: Context, cfg: ConfidenceConfig, *, source: DatasetVersion) -> DatasetVersion:
    """Keep back labelled rows whose label is not believed, retraining on the rest until nothing changes."""
    samples = labelled(ctx, source)
    with ctx.store.new_dataset(source.shape, license=source.license) as out:
        if not samples:
            return out.commit()
        ctx.events.log("judging labels", rows=len(samples))
        texts, labels = ([str(sample.data[name]) for sample in samples] for name in ("input", "output"))
        judged = judge(texts, labels, cfg, ctx.seed)
        progress = ctx.progress("Confidence", len(samples))
        for place, sample in enumerate(progress.over(samples)):
            value = judged.confidence[place]
            scored = replace(sample, metadata={**sample.metadata, "confidence": value})
            if judged.kept[place]:
                out.add(scored)
            else:
                out.reject(scored, "low_confidence", f"{value:.4f} for the label {sample.data['output']!r}")
        found = {
            "rounds": judged.rounds,
            "stable": judged.stable,
            "dropped_by_round": list(judged.dropped_by_round),
            "estimated_noise": judged.noise,
            "unjudged": judged.confidence.count(None),
        }
        return out.commit(profile={"confidence": found})
