"""Vectors of texts: what pooling by hand gives, in any batch; from an encoder, and from the model of an engine."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from catena.core.errors import UsageError
from catena.core.generate import GENERATORS, Embedder, Labeller, Request, SamplingParams
from catena.infer.embed import EmbedConfig, TextEmbedder
from catena.models.checkpoint import save

TEXTS = ["the fox", "你好世界, the quick brown fox", "quick", "brown brown fox 世界 the"]


def bert_config(tokenizer: Any) -> BertConfig:
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=0,
    )


@pytest.fixture
def bert(tokenizer: Any) -> Any:
    torch.manual_seed(2)
    return BertForMaskedLM(bert_config(tokenizer)).eval()


def hidden(model: Any, tokenizer: Any, text: str) -> torch.Tensor:
    with torch.inference_mode():
        states: torch.Tensor = model.base_model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0]
    return states


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("budget", [1, 40, 8192])
def test_vectors_are_pooled_states_in_any_batch(bert: Any, tokenizer: Any, pooling: Any, budget: int) -> None:
    config = EmbedConfig(pooling=pooling, token_budget=budget, normalise=False)
    found = TextEmbedder(bert, tokenizer, config).embed(TEXTS)
    for text, one in zip(TEXTS, found, strict=True):
        states = hidden(bert, tokenizer, text)
        wanted = {"mean": states.mean(dim=0), "cls": states[0], "last": states[-1]}[pooling]
        np.testing.assert_allclose(one.vector, wanted.numpy(), atol=1e-5)
        assert one.tokens == len(tokenizer(text)["input_ids"])


def test_vectors_are_as_long_as_one(bert: Any, tokenizer: Any) -> None:
    for one in TextEmbedder(bert, tokenizer).embed([*TEXTS, [5, 6, 7]]):
        assert abs(sum(value**2 for value in one.vector) - 1) < 1e-5


@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_an_engine_gives_the_state_of_the_last_token(
    engine_of: Any, model_of: Any, tokenizer: Any, family: str
) -> None:
    engine = engine_of(family)
    asked = [Request("0", "the fox", SamplingParams(max_tokens=9))]
    before = next(engine.generate(asked)).token_ids
    assert isinstance(engine, Embedder)
    for text, one in zip(TEXTS, engine.embed(TEXTS), strict=True):
        states = hidden(model_of(family), tokenizer, text)[-1]
        np.testing.assert_allclose(one.vector, (states / states.norm()).numpy(), atol=1e-5)
    assert next(engine.generate(asked)).token_ids == before


def test_an_engine_embeds_while_it_answers(engine_of: Any) -> None:
    engine = engine_of()
    done = threading.Event()
    params = SamplingParams(max_tokens=200, ignore_end=True)
    engine.submit(Request("0", "the fox", params), lambda delta: done.set() if delta.completion else None)
    vectors = [engine.embed(TEXTS)[0].vector for _ in range(3)]
    assert vectors[0] == vectors[1] == vectors[2]
    assert done.wait(30)


@pytest.mark.parametrize(("text", "says"), [("", "empty"), ("x " * 100, "the context is 64"), ("\ud800", "half")])
def test_a_bad_text_is_refused(bert: Any, tokenizer: Any, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        TextEmbedder(bert, tokenizer).embed([text])


def test_a_folder_says_how_it_pools(bert: Any, tokenizer: Any, tmp_path: Path) -> None:
    save(bert, tokenizer, tmp_path)
    assert GENERATORS.load("auto")(tmp_path).pooling == "mean"
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert GENERATORS.load("auto")(tmp_path).pooling == "cls"
    embedder = GENERATORS.load("embed")(tmp_path, pooling="last")
    assert embedder.pooling == "last"
    with pytest.raises(UsageError, match="does not generate"):
        embedder.submit(Request("0", "x"), print)


def test_a_classifier_is_opened_as_one(tokenizer: Any, tmp_path: Path) -> None:
    torch.manual_seed(2)
    config = bert_config(tokenizer)
    config.id2label, config.label2id = {0: "bad", 1: "好"}, {"bad": 0, "好": 1}
    model = BertForSequenceClassification(config).eval()
    save(model, tokenizer, tmp_path)
    labeller = GENERATORS.load("auto")(tmp_path)
    assert isinstance(labeller, Labeller)
    for text, one in zip(TEXTS, labeller.classify(TEXTS), strict=True):
        with torch.inference_mode():
            wanted = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0].softmax(dim=-1)
        np.testing.assert_allclose(list(one.probabilities.values()), wanted.numpy(), atol=1e-5)
        assert one.label == max(one.probabilities, key=lambda name: one.probabilities[name])
        assert set(one.probabilities) == {"bad", "好"}
    with pytest.raises(UsageError, match="context is 64"):
        labeller.classify(["x " * 100])
    with pytest.raises(UsageError, match="empty"):
        labeller.classify([" "])
