"""Perplexity: how well a model foretells held-out documents, by token and by byte.

    documents -> tokens -> windows -> log-probabilities (Generator.score) -> sums by document -> report

A document longer than the window is read in overlapping windows; each token counts once, in the first window that
holds it, with at least `window - stride` tokens before it. Perplexity by token compares models of one tokenizer; bits
per byte compare any two.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, field_validator

from catena.core.config import Config
from catena.core.errors import ConfigError, DataError
from catena.core.generate import GENERATORS, Generator, Request
from catena.core.registry import require
from catena.core.sample import Sample, sample_id
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, ModelVersion, Report, Score
from catena.evaluate.choice import known_generator, samples_of
from catena.evaluate.stats import Interval, bootstrap_ratio, mapped


class PerplexityConfig(Config):
    """What is read, and in what pieces."""

    split: str = "test"
    """Split of the dataset that is measured; `all` for a dataset without splits."""
    max_tokens: int | None = Field(default=20_000, ge=2)
    """Stop after so many tokens; documents come in an order drawn by hash, the last one is cut. None reads all."""
    window: int | None = Field(default=None, ge=2)
    """Tokens that the model sees at once; by default its whole context."""
    stride: int | None = Field(default=None, ge=1)
    """Tokens from one window to the next; by default half a window."""
    generator: str = "native"
    """Who scores: the native engine, or another one that tells log-probabilities of prompts (vllm, sglang)."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Options of that engine."""

    def modules(self) -> tuple[str, ...]:
        """Return where the generator lives: a plugin's too."""
        return (GENERATORS.table()[self.generator].partition(":")[0],)

    @field_validator("generator")
    @classmethod
    def _scores(cls, name: str) -> str:
        return known_generator(name)


class Window(NamedTuple):
    """A piece of a document: `tokens[start:end]`, of which those from `first` on are counted."""

    start: int
    first: int
    end: int


@dataclass
class DocumentLoss:
    """What one document cost: negative log-likelihood in nats over its counted tokens, and the bytes of its text."""

    id: str
    bytes: int
    tokens: int = 0
    nats: float = 0.0


@stage("evaluate.perplexity", uses=("catena.infer.engine",))
def perplexity(ctx: Context, cfg: PerplexityConfig, *, model: ModelVersion, data: DatasetVersion) -> Report:
    """Measure perplexity and bits per byte on held-out documents."""
    folder = ctx.store.checkout(model)
    window, stride = window_and_stride(cfg, model.context)
    documents = tokenized(folder, samples_of(ctx.store, data, cfg.split), cfg.max_tokens, ctx.seed)
    if not documents:
        raise DataError(f"the documents of the split {cfg.split!r} have no text", hint="Choose another split.")
    started = time.monotonic()
    generator = ctx.generator(model, cfg.generator, **cfg.engine)
    try:
        losses = score_documents(ctx, generator, documents, (window, stride))
    finally:
        generator.close()
    tokens = sum(loss.tokens for loss in losses)
    ctx.events.metric("scored_tokens_per_second", round(tokens / max(time.monotonic() - started, 1e-9), 1))
    nats = [loss.nats for loss in losses]
    by_token = bootstrap_ratio(nats, [loss.tokens for loss in losses], seed=ctx.seed)
    by_byte = bootstrap_ratio([value / log(2) for value in nats], [loss.bytes for loss in losses], seed=ctx.seed)
    return ctx.store.put_report(
        model,
        "perplexity",
        {
            "perplexity": _score(mapped(by_token, exp), tokens, ""),
            "bits_per_byte": _score(by_byte, sum(loss.bytes for loss in losses), "bits"),
        },
        details={
            "data": data.digest,
            "config": measured_by(cfg, (window, stride), ctx.seed),
            "generator": cfg.generator,
            "split": cfg.split,
            "documents": len(losses),
            "tokens": tokens,
            "window": window,
            "stride": stride,
            "interval": "95 %, bootstrap over documents",
        },
    )


def measured_by(cfg: PerplexityConfig, shape: tuple[int, int], seed: int) -> dict[str, Any]:
    """Return what decides the scores beside model and data: window and stride as used, the seed where it chooses."""
    chosen = seed if cfg.max_tokens is not None else None
    values = cfg.model_dump(mode="json", exclude={"generator", "engine"})  # these are how the model was run
    return {**values, "window": shape[0], "stride": shape[1], "seed": chosen}


def _score(interval: Interval, count: int, unit: str) -> Score:
    low, high = round(interval.low, 6), round(interval.high, 6)
    return Score(value=round(interval.value, 6), low=low, high=high, n=count, unit=unit, better="lower")


def window_and_stride(cfg: PerplexityConfig, context: int) -> tuple[int, int]:
    """Return the window and the stride in tokens; raises `ConfigError` where they do not fit the model's context."""
    window = cfg.window or context or 512
    if context and window > context:
        raise ConfigError(f"window: {window} tokens are more than the model's context of {context}")
    stride = cfg.stride or max(window // 2, 1)
    if stride > window - 1:
        raise ConfigError(f"stride: {stride} tokens must be less than the window of {window}")
    return window, stride


def windows(count: int, window: int, stride: int) -> list[Window]:
    """Cut `count` tokens into windows in which every token but the first is counted exactly once."""
    cuts = [Window(0, 1, min(window, count))]
    while cuts[-1].end < count:
        last = cuts[-1]
        start = last.start + stride
        cuts.append(Window(start, last.end, min(start + window, count)))
    return cuts


class Tokens(NamedTuple):
    """A document in tokens, with a token of its own in front where the model has one for that."""

    id: str
    ids: Sequence[int]
    bytes: int


def tokenized(folder: Path, samples: Sequence[Sample], limit: int | None, seed: int) -> list[Tokens]:
    """Return documents in tokens, at most `limit` tokens in all, in an order that depends on ids and seed only."""
    tokenizer = require("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # a control token that a document spells out is text
    start = start_token(folder)
    left = limit
    documents = []
    for sample in sorted(samples, key=lambda item: sample_id(seed, item.id)):
        encoded = tokenizer.encode(sample.text, add_special_tokens=False)
        ids, text = encoded.ids, sample.text
        if left is not None and len(ids) > left:
            ids = ids[:left]
            text = text[: encoded.offsets[left - 1][1]] if left else ""
        if left is not None:
            left -= len(ids)
        # Without a start token the first token is given and not foretold: one alone measures nothing.
        if len(ids) + len(start) > 1:
            documents.append(Tokens(sample.id, [*start, *ids], len(text.encode())))
    return documents


def start_token(folder: Path) -> list[int]:
    """Return the token that stands before a document: the one that begins texts, else the one that ends them.

    In training documents follow one another with it between them, so that the first token of a text is foretold too.
    """
    settings: dict[str, Any] = {}
    for name in ("generation_config.json", "config.json"):  # the second is read last: it is the model's own word
        if (folder / name).exists():
            found = json.loads((folder / name).read_text(encoding="utf-8"))
            settings.update({key: value for key, value in found.items() if value is not None})
    for key in ("bos_token_id", "eos_token_id"):
        value = settings.get(key)
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, int):
            return [first]
    return []


def score_documents(
    ctx: Context, generator: Generator, documents: Sequence[Tokens], shape: tuple[int, int]
) -> list[DocumentLoss]:
    """Ask the generator for every window; return the sums by document, in the order of the documents."""
    losses = [DocumentLoss(document.id, document.bytes) for document in documents]
    pieces = [(number, cut) for number, document in enumerate(documents) for cut in windows(len(document.ids), *shape)]
    requests = [
        Request(str(index), tuple(documents[number].ids[cut.start : cut.end]))
        for index, (number, cut) in enumerate(pieces)
    ]
    by_piece: dict[int, float] = {}
    progress = ctx.progress("perplexity", sum(cut.end - cut.first for _, cut in pieces), "tokens")
    for completion in generator.score(requests):
        index = int(completion.request_id)
        cut = pieces[index][1]
        # logprobs[k] is that of the window's token k + 1.
        by_piece[index] = -sum(completion.logprobs[cut.first - cut.start - 1 :])
        progress.advance(cut.end - cut.first)
    progress.finish()
    for index, (number, cut) in enumerate(pieces):
        losses[number].nats += by_piece[index]
        losses[number].tokens += cut.end - cut.first
    return losses
