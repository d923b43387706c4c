"""`data.label_errors`: rows of a labelled set whose label is probably wrong, each with the label that it should have.

Confident learning (Northcutt et al. 2021, arXiv 1911.00068) as cleanlab does it, on probabilities by models that have
not seen the row (`label_model`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from pydantic import Field

from catena.core.config import Config
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion
from catena.data.confidence import labelled

Method = Literal["prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "predicted_neq_given"]


class LabelErrorsConfig(Config):
    action: Literal["reject", "flag"] = "reject"
    """`reject` keeps the row back as `label_error`; `flag` lets it go on with `metadata.label_error` and
    `metadata.suggested_label`."""
    method: Method = "prune_by_noise_rate"
    """cleanlab's rule; `both` finds fewer and surer ones, `predicted_neq_given` more."""
    folds: int = Field(default=5, ge=2, le=20)
    """Parts of the set; each is judged by a model trained on the others."""


class Doubt(NamedTuple):
    """A label that is probably wrong."""

    suggestion: str
    given: float
    """Probability of the label that the row has."""
    suggested: float
    """Probability of the label that it should have."""


def doubts(texts: Sequence[str], labels: Sequence[str], cfg: LabelErrorsConfig, seed: int) -> dict[int, Doubt]:
    """Return the probably wrong labels by place; labels with fewer rows than folds are not judged."""
    import numpy as np
    from cleanlab.filter import find_label_issues

    from catena.data.label_model import belief, coded, cross_scores, folds_of, hashed, weighted

    rows, names, codes = coded(labels, cfg.folds)
    features = weighted(hashed([texts[row] for row in rows], short=True))
    kept = np.ones(len(rows), dtype=np.bool_)
    scores = cross_scores(features, codes, len(names), folds_of(codes, cfg.folds, seed), kept)
    probabilities = belief(scores, codes).probabilities
    found = find_label_issues(codes, probabilities, filter_by=cfg.method, n_jobs=1)
    best = probabilities.argmax(axis=1)
    return {
        rows[place]: Doubt(
            names[best[place]],
            float(probabilities[place, codes[place]]),
            float(probabilities[place, best[place]]),
        )
        for place in np.flatnonzero(found).tolist()
        if best[place] != codes[place]
    }


@stage("data.label_errors")
def label_errors(ctx: Context, cfg: LabelErrorsConfig, *, source: DatasetVersion) -> DatasetVersion:
    """Find labels that are probably wrong by confident learning; keep those rows back, or flag them."""
    samples = labelled(ctx, source)
    with ctx.store.new_dataset(source.shape, license=source.license) as out:
        if not samples:
            return out.commit()
        ctx.events.log("searching label errors", rows=len(samples))
        texts, labels = ([str(sample.data[name]) for sample in samples] for name in ("input", "output"))
        found = doubts(texts, labels, cfg, ctx.seed)
        progress = ctx.progress("Label errors", len(samples))
        for place, sample in enumerate(progress.over(samples)):
            doubt = found.get(place)
            if doubt is None:
                out.add(sample)
                continue
            if cfg.action == "reject":
                said = f"{labels[place]!r} {doubt.given:.4f}, suggested {doubt.suggestion!r} {doubt.suggested:.4f}"
                out.reject(sample, "label_error", said)
            else:
                metadata = {**sample.metadata, "label_error": True, "suggested_label": doubt.suggestion}
                out.add(replace(sample, metadata=metadata))
        changed = {"flagged_label_error": len(found)} if found and cfg.action == "flag" else {}
        return out.commit(changed=changed)
