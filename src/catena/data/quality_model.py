"""`data.quality`: a classifier trained on labelled rows scores every document; the poor ones are kept back.

Hashed words and pairs of words, TF-IDF weights from the labelled rows, logistic regression: what GPT-3 (Brown et al.
2020, appendix A) and CCNet's users do with fastText. The weights live as long as the stage; training takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from pydantic import Field

from catena.core.config import Config
from catena.core.errors import DataError
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion
from catena.data.confidence import labelled as labelled_rows

BATCH = 512


class QualityConfig(Config):
    good: list[str] = Field(default_factory=lambda: ["good"], min_length=1)
    """Labels of the rows that are worth keeping; every other label is poor."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Least probability of being good."""
    strength: float = Field(default=10.0, gt=0)
    """How closely the classifier follows the labelled rows (the inverse of the L2 penalty)."""
    folds: int = Field(default=5, ge=2, le=20)
    """Parts of the labelled rows, for the precision and recall in the profile."""


@dataclass(frozen=True, slots=True)
class Classifier:
    """Trained weights; scores are probabilities of being good."""

    weighting: Any
    """TF-IDF of the labelled rows."""
    weights: Any
    """[columns]; 0 for what no labelled row has."""
    bias: float

    def scores(self, texts: Sequence[str]) -> list[float]:
        """Return the probability of each text, with four digits: the last bits differ between processors."""
        import numpy as np

        from catena.data.label_model import hashed

        logits = self.weighting.transform(hashed(texts, short=False)) @ self.weights + self.bias
        return [round(float(value), 4) for value in 1 / (1 + np.exp(-np.clip(logits, -50, 50)))]


def train(texts: Sequence[str], good: Sequence[bool], cfg: QualityConfig, seed: int) -> Classifier:
    """Train on labelled texts; both kinds weigh the same, however many there are of each."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    from catena.data.label_model import hashed

    weighting = TfidfTransformer(sublinear_tf=True)
    features = weighting.fit_transform(hashed(texts, short=False)).tocsr()
    used = np.unique(features.indices)  # a small labelled set fills few of the columns
    regression = LogisticRegression(C=cfg.strength, class_weight="balanced", max_iter=300, random_state=seed)
    regression.fit(features[:, used], list(good))
    weights = np.zeros(features.shape[1])
    weights[used] = regression.coef_[0]
    return Classifier(weighting, weights, float(regression.intercept_[0]))


def cross_validated(texts: Sequence[str], good: Sequence[bool], cfg: QualityConfig, seed: int) -> dict[str, float]:
    """Return precision and recall of finding the poor rows, each judged by a classifier that has not seen it."""
    import numpy as np

    from catena.data.label_model import folds_of

    fold = folds_of(np.array(good, dtype=np.int64), cfg.folds, seed)
    found = np.zeros(len(texts), dtype=np.bool_)
    for number in range(cfg.folds):
        rest, asked = np.flatnonzero(fold != number).tolist(), np.flatnonzero(fold == number).tolist()
        model = train([texts[row] for row in rest], [good[row] for row in rest], cfg, seed)
        found[asked] = [score < cfg.threshold for score in model.scores([texts[row] for row in asked])]
    poor = ~np.array(good)
    hits = int((found & poor).sum())
    return {
        "precision": round(hits / max(int(found.sum()), 1), 4),
        "recall": round(hits / max(int(poor.sum()), 1), 4),
    }


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    waiting = iter(items)
    while batch := list(islice(waiting, BATCH)):
        yield batch


@stage("data.quality")
def quality(ctx: Context, cfg: QualityConfig, *, source: DatasetVersion, labelled: DatasetVersion) -> DatasetVersion:
    """Score documents by a classifier trained on labelled rows, and keep the poor ones back as `low_quality`."""
    rows = labelled_rows(ctx, labelled)
    texts = [str(row.data["input"]) for row in rows]
    good = [str(row.data["output"]) in cfg.good for row in rows]
    if min(sum(good), len(good) - sum(good)) < cfg.folds:
        raise DataError(
            f"of the labelled rows {sum(good)} are good and {len(good) - sum(good)} poor; "
            f"each kind needs {cfg.folds} or more",
            hint=f"Labels that count as good: {', '.join(cfg.good)}. Change them with `good`.",
        )
    ctx.events.log("training the quality classifier", rows=len(rows))
    measured = cross_validated(texts, good, cfg, ctx.seed)
    model = train(texts, good, cfg, ctx.seed)
    progress = ctx.progress("Quality", source.rows, "documents")
    with ctx.store.new_dataset(source.shape, license=source.license) as out:
        for batch in _batches(ctx.store.open_dataset(source).samples()):
            for sample, score in zip(batch, model.scores([sample.text for sample in batch]), strict=True):
                scored = replace(sample, metadata={**sample.metadata, "quality": score})
                if score < cfg.threshold:
                    out.reject(scored, "low_quality", f"{score:.4f} is below {cfg.threshold:g}")
                else:
                    out.add(scored)
            progress.advance(len(batch))
        progress.finish()
        return out.commit(profile={"quality": {"labelled": len(rows), "good": sum(good), **measured}})
