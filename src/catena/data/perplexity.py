"""`data.perplexity`: documents that a language model finds improbable are kept back, each with its perplexity.

The model is an n-gram model trained here on a reference set (see `ngram`: no download, megabytes a second), or any
model of the store. As in CCNet (Wenzek et al. 2020, arXiv 1911.00359), what is cut is the tail of the documents by
perplexity, for each language by itself: characters of different scripts are not equally hard to foretell.

Scores are spooled in the work folder, so a run that was killed goes on behind the last scored batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from math import exp, isfinite, nan
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from catena.core.config import Config
from catena.core.errors import DataError, UsageError
from catena.core.generate import Request
from catena.core.registry import require
from catena.core.sample import Sample, dig
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, ModelVersion

BATCH = 256
WIDTH = 8
"""Bytes of a spooled score."""
OVERFLOW = 700.0
"""exp of more is infinite."""


class PerplexityConfig(Config):
    unit: Literal["characters", "words"] = "characters"
    """What the n-gram model foretells; characters need less reference text and no word list, in any script."""
    order: int = Field(default=5, ge=2, le=9)
    """Longest n-gram of the n-gram model: 5 characters, or better 3 words."""
    reference_tokens: int = Field(default=5_000_000, ge=1)
    """How many characters (words) of the reference are read, from its beginning; memory is some 70 bytes for each."""
    model_tokens: int = Field(default=512, ge=2)
    """How many tokens at the beginning of a document a model of the store is asked about."""
    max_quantile: float = Field(default=2 / 3, gt=0, le=1)
    """Keep this share of the documents, the most probable ones: CCNet's head and middle."""
    min_quantile: float = Field(default=0.0, ge=0, lt=1)
    """Keep back this share, the most probable ones: boilerplate that the reference has word for word."""
    max_perplexity: float | None = Field(default=None, gt=0)
    """A limit that takes the place of `max_quantile`."""
    min_perplexity: float | None = Field(default=None, gt=0)
    """A limit that takes the place of `min_quantile`."""
    group_by: str = "language"
    """Quantiles are taken among the rows with the same value under this metadata key; among all if it is empty."""

    @model_validator(mode="after")
    def _in_order(self) -> PerplexityConfig:
        if self.min_quantile >= self.max_quantile:
            raise ValueError(f"min_quantile {self.min_quantile:g} is not below max_quantile {self.max_quantile:g}")
        if self.min_perplexity and self.max_perplexity and self.min_perplexity >= self.max_perplexity:
            raise ValueError(f"min_perplexity {self.min_perplexity:g} is not below {self.max_perplexity:g}")
        return self


Limits = tuple[float, float]


def limits_of(scores: Mapping[str, Sequence[float]], cfg: PerplexityConfig) -> dict[str, Limits]:
    """Return the least and the greatest perplexity that each group of rows is kept at."""
    import numpy as np

    limits = {}
    for group, values in scores.items():
        known = [value for value in values if isfinite(value)]
        low, high = 0.0, float("inf")
        if known and cfg.min_quantile:
            low = float(np.quantile(known, cfg.min_quantile))
        if known and cfg.max_quantile < 1:
            high = float(np.quantile(known, cfg.max_quantile))
        limits[group] = (cfg.min_perplexity or low, cfg.max_perplexity or high)
    return limits


@stage("data.perplexity", uses=("catena.infer.engine",))
def perplexity(
    ctx: Context,
    cfg: PerplexityConfig,
    *,
    source: DatasetVersion,
    reference: DatasetVersion | None = None,
    model: ModelVersion | None = None,
) -> DatasetVersion:
    """Keep back documents of a perplexity beyond a quantile or a limit; `metadata.perplexity` says what it was."""
    if (reference is None) == (model is None):
        raise UsageError(
            "perplexity is measured by a reference set or by a model, and needs exactly one of the two",
            hint="Give the input `reference` (an n-gram model is trained on it) or the input `model`.",
        )
    spool = ctx.workdir / "scores.f64"
    _score_all(ctx, cfg, source, reference or model, spool)
    scores = _read(spool)
    groups: dict[str, list[float]] = {}
    for sample, value in zip(ctx.store.open_dataset(source).samples(), scores, strict=True):
        groups.setdefault(group_of(sample, cfg), []).append(value)
    limits = limits_of(groups, cfg)
    with ctx.store.new_dataset(source.shape, license=source.license) as out:
        for sample, value in zip(ctx.store.open_dataset(source).samples(), scores, strict=True):
            low, high = limits[group_of(sample, cfg)]
            if not isfinite(value):
                out.reject(sample, "perplexity", "too little text to measure")
                continue
            # Four digits that count: the last bits of a model's arithmetic differ between processors.
            scored = replace(sample, metadata={**sample.metadata, "perplexity": float(f"{value:.4g}")})
            if value > high:
                out.reject(scored, "perplexity", f"{value:.4g} is above {high:.4g}")
            elif value < low:
                out.reject(scored, "perplexity", f"{value:.4g} is below {low:.4g}")
            else:
                out.add(scored)
        told = {group: {"low": f"{low:.4g}", "high": f"{high:.4g}"} for group, (low, high) in sorted(limits.items())}
        return out.commit(profile={"perplexity": told})


def group_of(sample: Sample, cfg: PerplexityConfig) -> str:
    """Return the group whose quantiles count for a row."""
    value = dig(sample.metadata, cfg.group_by) if cfg.group_by else None
    return "" if value is None else str(value)


def _score_all(
    ctx: Context, cfg: PerplexityConfig, source: DatasetVersion, by: DatasetVersion | ModelVersion | None, spool: Path
) -> None:
    """Append the perplexity of each row that the spool does not have yet."""
    import numpy as np

    done = spool.stat().st_size // WIDTH if spool.exists() else 0
    if done >= source.rows:
        return
    texts = (sample.text for sample in islice(ctx.store.open_dataset(source).samples(), done, None))
    found = _by_model(ctx, cfg, by, texts) if isinstance(by, ModelVersion) else _by_ngrams(ctx, cfg, by, texts)
    progress = ctx.progress("Perplexity", source.rows, "documents", done=done)
    with spool.open("r+b" if spool.exists() else "w+b") as stream:
        stream.truncate(done * WIDTH)  # a kill may have cut the last number short
        stream.seek(0, 2)
        for batch in found:
            stream.write(np.array(batch, dtype="<f8").tobytes())
            stream.flush()
            progress.advance(len(batch))
    progress.finish()


def _read(spool: Path) -> list[float]:
    import numpy as np

    return [float(value) for value in np.fromfile(spool, dtype="<f8")] if spool.exists() else []


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    waiting = iter(texts)
    while batch := list(islice(waiting, BATCH)):
        yield batch


def _by_ngrams(
    ctx: Context, cfg: PerplexityConfig, reference: DatasetVersion | None, texts: Iterable[str]
) -> Iterator[list[float]]:
    from catena.data.ngram import train

    assert reference is not None
    known = (sample.text for sample in ctx.store.open_dataset(reference).samples())
    try:
        scorer = train(known, unit=cfg.unit, order=cfg.order, max_tokens=cfg.reference_tokens)
    except ValueError as error:
        raise DataError(f"no language model can be trained: {error}") from error
    for batch in _batches(texts):
        nats, tokens = scorer.nats(batch)
        yield [perplexity_of(total, count) for total, count in zip(nats.tolist(), tokens.tolist(), strict=True)]


def _by_model(ctx: Context, cfg: PerplexityConfig, model: ModelVersion, texts: Iterable[str]) -> Iterator[list[float]]:
    folder = ctx.store.checkout(model)
    tokenizer = require("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # a control token that a document spells out is text
    room = min(cfg.model_tokens, model.context or cfg.model_tokens)
    generator = ctx.generator(model)
    try:
        for batch in _batches(texts):
            # A document of megabytes is not cut into tokens for the sake of its first ones.
            ids = [tokenizer.encode(text[: 16 * room], add_special_tokens=False).ids[:room] for text in batch]
            result = [nan] * len(batch)
            requests = [Request(str(place), tuple(found)) for place, found in enumerate(ids) if len(found) > 1]
            for completion in generator.score(requests):
                found = completion.logprobs
                result[int(completion.request_id)] = perplexity_of(-sum(found), len(found))
            yield result
    finally:
        generator.close()


def perplexity_of(nats: float, tokens: int) -> float:
    """Return exp of the mean of nats for each token; NaN where there is no token."""
    return exp(min(nats / tokens, OVERFLOW)) if tokens else nan
