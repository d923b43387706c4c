"""Perplexity: the same number as `transformers` gives, whatever the windows; each token counted once."""

from __future__ import annotations

from math import exp, log
from pathlib import Path

import pytest
import torch

from catena.core.config import Config
from catena.core.errors import ConfigError, DataError, UsageError
from catena.core.stage import Context
from catena.core.types import ModelVersion
from catena.evaluate.perplexity import PerplexityConfig, Window, perplexity, tokenized, windows
from catena.models import checkpoint

from .conftest import TEXTS, documents


def reference(folder: Path, texts: list[str]) -> tuple[float, float]:
    """Return perplexity and bits per byte by `transformers`, each document in one piece after the end token."""
    model, tokenizer = checkpoint.load(folder)
    nats, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1].log_softmax(-1)
        nats -= float(logits.gather(1, ids[0, 1:, None]).sum())
        tokens += ids.shape[1] - 1
    return exp(nats / tokens), nats / log(2) / sum(len(text.encode()) for text in texts)


def test_it_is_what_transformers_says(context: Context, model: ModelVersion, model_folder: Path) -> None:
    data = documents(context.store, TEXTS)
    report = perplexity(context, PerplexityConfig(), model=model, data=data)
    by_token, by_byte = reference(model_folder, TEXTS)
    assert report.scores["perplexity"].value == pytest.approx(by_token, rel=1e-4)
    assert report.scores["bits_per_byte"].value == pytest.approx(by_byte, rel=1e-4)
    score = report.scores["perplexity"]
    assert score.low is not None
    assert score.high is not None
    assert score.low <= score.value <= score.high
    assert score.better == "lower"
    assert (report.subject, report.details["documents"]) == (model.digest, len(TEXTS))


def test_the_same_work_gives_the_same_report(context: Context, model: ModelVersion) -> None:
    data = documents(context.store, TEXTS)
    cfg = PerplexityConfig(max_tokens=30, window=16)
    first, second = (perplexity(context, cfg, model=model, data=data) for _ in range(2))
    assert first.digest == second.digest
    assert first.details["tokens"] == 30


def test_a_report_says_how_it_was_measured(context: Context, model: ModelVersion) -> None:
    data = documents(context.store, TEXTS)
    report = perplexity(context, PerplexityConfig(max_tokens=30), model=model, data=data)
    said = {"split": "test", "max_tokens": 30, "window": 64, "stride": 32, "seed": context.seed}
    assert report.details["config"] == said
    whole = perplexity(context, PerplexityConfig(max_tokens=None), model=model, data=data)
    assert whole.details["config"] == {**said, "max_tokens": None, "seed": None}


def test_long_documents_are_read_in_windows(context: Context, model: ModelVersion) -> None:
    data = documents(context.store, [" ".join(TEXTS) * 4])
    report = perplexity(context, PerplexityConfig(max_tokens=None, window=32, stride=8), model=model, data=data)
    assert report.details["tokens"] > 200
    assert report.scores["perplexity"].n == report.details["tokens"]


@pytest.mark.parametrize(("count", "window", "stride"), [(2, 8, 4), (8, 8, 4), (9, 8, 4), (100, 8, 7), (31, 8, 1)])
def test_each_token_but_the_first_is_counted_once(count: int, window: int, stride: int) -> None:
    cuts = windows(count, window, stride)
    counted = [token for cut in cuts for token in range(cut.first, cut.end)]
    assert counted == list(range(1, count))
    assert all(cut.end - cut.start <= window and cut.first > cut.start for cut in cuts)
    assert all(cut.first - cut.start >= window - stride for cut in cuts[1:])


def test_windows_by_hand() -> None:
    assert windows(10, 6, 3) == [Window(0, 1, 6), Window(3, 6, 9), Window(6, 9, 10)]


def test_a_cut_document_counts_the_bytes_of_what_is_left(model_folder: Path, context: Context) -> None:
    data = documents(context.store, ["读取一个文件，返回字符串。"])
    (sample,) = context.store.open_dataset(data).samples()
    (cut,) = tokenized(model_folder, [sample], 5, 0)
    (whole,) = tokenized(model_folder, [sample], None, 0)
    assert len(cut.ids) == 6
    assert cut.bytes < whole.bytes == len(sample.text.encode())


def test_a_control_token_that_a_document_spells_out_is_text(model_folder: Path, context: Context) -> None:
    data = documents(context.store, ["x<|end|>y"])
    (sample,) = context.store.open_dataset(data).samples()
    (tokens,) = tokenized(model_folder, [sample], None, 0)
    assert list(tokens.ids).count(tokens.ids[0]) == 1  # only the one that stands before the document


@pytest.mark.parametrize(
    ("cfg", "error", "message"),
    [
        (PerplexityConfig(split="tset"), UsageError, "no split 'tset'"),
        (PerplexityConfig(window=65), ConfigError, "window: 65 tokens are more than the model's context of 64"),
        (PerplexityConfig(window=16, stride=16), ConfigError, "stride: 16 tokens must be less"),
    ],
)
def test_what_does_not_fit_is_refused(
    context: Context, model: ModelVersion, cfg: Config, error: type[Exception], message: str
) -> None:
    data = documents(context.store, TEXTS)
    with pytest.raises(error, match=message):
        perplexity(context, PerplexityConfig.model_validate(cfg.model_dump()), model=model, data=data)


@pytest.mark.parametrize("texts", [[], [""]])
def test_nothing_to_read_is_said(context: Context, model: ModelVersion, texts: list[str]) -> None:
    data = documents(context.store, texts)
    with pytest.raises(DataError, match=r"no samples|no text"):
        perplexity(context, PerplexityConfig(), model=model, data=data)
