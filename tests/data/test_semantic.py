from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from catena.core.config import parse
from catena.core.stage import Context, stage_of
from catena.core.types import DatasetVersion
from catena.data.embed import model_vectors, tfidf_vectors
from catena.data.semantic import SemanticConfig, dedup_semantic, near_pairs, neighbour_pairs
from catena.models.checkpoint import save
from catena.models.tokenizer import train_tokenizer
from tests.data.stores import documents, rejects, run, samples

TEXTS = (
    "The quick brown fox jumps over the lazy dog near the river bank",
    "Near the river bank the quick brown fox jumps over the lazy dog, again",
    "A recipe for bread asks for flour, water, salt and some yeast",
    "今天天气很好，我们去公园散步吧",
    "我们去公园散步吧，今天天气很好",
    "",
    "...",
)


def test_the_same_in_another_order_is_found_in_english_and_chinese(context: Context) -> None:
    source = documents(context.store, *TEXTS)
    made = run(context, "data.dedup_semantic", {"threshold": 0.75}, source=source)
    ids = [sample.id for sample in samples(context.store, source)]
    assert {sample.id: detail.split()[1] for sample, _, detail in rejects(context.store, made)} == {
        ids[0]: f"{ids[1]},",
        max(ids[3], ids[4]): f"{min(ids[3], ids[4])},",
    }
    assert {reason for _, reason, _ in rejects(context.store, made)} == {"semantic_duplicate"}
    assert run(context, "data.dedup_semantic", {"threshold": 0.75}, source=source).digest == made.digest


def test_texts_without_a_word_stay(context: Context) -> None:
    assert run(context, "data.dedup_semantic", {}, source=documents(context.store, "", " ", "!!!")).rows == 3
    assert run(context, "data.dedup_semantic", {}, source=documents(context.store)).rows == 0


def test_fewer_dimensions_keep_what_is_alike_alike() -> None:
    texts = [f"{TEXTS[0]} number{row % 40} and word{row % 40} besides" for row in range(80)]
    vectors = tfidf_vectors(texts, 20, 0)
    assert vectors.shape == (80, 20)
    assert float(vectors[0] @ vectors[40]) == pytest.approx(1, abs=1e-4)
    assert np.array_equal(vectors, tfidf_vectors(texts, 20, 0))


def test_the_index_finds_the_pairs_that_all_comparisons_find() -> None:
    chance = np.random.default_rng(0)
    base = chance.normal(size=(600, 32))
    vectors = np.concatenate((base, base[:200] + 0.05 * chance.normal(size=(200, 32)))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    exact = {tuple(pair) for pairs in near_pairs(vectors, 0.9) for pair in pairs.tolist()}
    found = {tuple(sorted(pair)) for pairs in neighbour_pairs(vectors, 0.9, 8) for pair in pairs.tolist()}
    assert len(exact) == 200
    assert found == exact


def test_any_model_of_the_store_gives_the_vectors(context: Context, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(list(TEXTS) * 3, 300)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    save(LlamaForCausalLM(config), tokenizer, tmp_path / "model")
    model = context.store.put_model(tmp_path / "model", architecture="LlamaForCausalLM")
    alone, together = (list(model_vectors(tmp_path / "model", TEXTS, 64, size)) for size in (1, 7))
    assert np.allclose(np.concatenate(alone), together[0], atol=1e-5)  # padding is not part of the mean
    assert not together[0][5:].any()
    source = documents(context.store, *TEXTS[:3], TEXTS[0])
    config_of = parse(stage_of(dedup_semantic).config, {"threshold": 0.999})
    assert isinstance(config_of, SemanticConfig)
    made = dedup_semantic(context, config_of, source=source, model=model)
    assert isinstance(made, DatasetVersion)
    assert (made.rows, made.rejects) == (3, 1)
