from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catena.core.errors import ConfigError, DataError, UsageError
from catena.core.stage import Context
from catena.core.types import DatasetVersion, ModelVersion
from catena.data.ngram import train
from catena.data.perplexity import PerplexityConfig, limits_of, perplexity_of
from catena.models import checkpoint
from catena.models.presets import build
from catena.models.tokenizer import train_tokenizer
from tests.data.stores import document, documents, put, rejects, run, samples

SUBJECTS = ("the harbour", "an old lighthouse", "the storm of that year", "every boat", "the mayor", "a small child")
VERBS = ("was built of", "looked at", "remembered", "came back from", "never spoke about", "stood beside")
OBJECTS = ("grey stone", "the sea", "a long winter", "the town", "their grandparents", "the church tower")


def prose(seed: int, sentences: int = 12) -> str:
    chooser = random.Random(seed)
    parts = [f"{chooser.choice(SUBJECTS)} {chooser.choice(VERBS)} {chooser.choice(OBJECTS)}." for _ in range(sentences)]
    return " ".join(parts).capitalize()


def noise(seed: int, length: int = 400) -> str:
    chooser = random.Random(seed)
    return "".join(chooser.choices("qxzjvkwpbygf 0123456789;:#@", k=length))


def test_probabilities_of_all_next_words_add_up_to_one() -> None:
    model = train(["a b a c a b d", "a c a b c"], unit="words", order=3)
    for before in ("a", "a b", "c a b", "d", "unseen"):
        nats, _ = model.nats([before, *(f"{before} {after}" for after in "abcd?")])
        assert np.exp(nats[0] - nats[1:]).sum() == pytest.approx(1.0)


def test_probabilities_of_all_next_characters_add_up_to_one() -> None:
    model = train(["abcabd", "abcc"], order=3)
    for before in ("ab", "bc", "zz", "a", ""):
        nats, _ = model.nats([before, *(before + after for after in "abcd?")])
        assert np.exp(nats[0] - nats[1:]).sum() == pytest.approx(1.0)


def test_a_hand_counted_bigram_has_its_kneser_ney_probability() -> None:
    # Bigrams: (start)a 1, ab 2, ba 1; D = n1/(n1+2 n2) = 2/(2+2) = 0.5 at order 2.
    # Order 1 counts predecessors: a 2 (start, b), b 1 (a); D = 1/(1+2) = 1/3; uniform is 1/3.
    model = train(["abab"], order=2)
    lower_b = (1 - 1 / 3) / 3 + (1 / 3) * 2 / 3 * (1 / 3)
    expected = (2 - 0.5) / 2 + 0.5 * 1 / 2 * lower_b
    nats, _ = model.nats(["a", "ab"])
    assert math.exp(nats[0] - nats[1]) == pytest.approx(expected)


def test_a_score_does_not_depend_on_the_batch() -> None:
    model = train([prose(seed) for seed in range(20)])
    texts = [prose(100), "", "短い", noise(1), "a"]
    together, counts = model.nats(texts)
    assert together.tolist() == pytest.approx([float(model.nats([text])[0][0]) for text in texts])
    assert counts.tolist() == [len(texts[0]), 0, 2, len(texts[3].strip()), 1]


def test_noise_is_less_probable_than_prose_in_english_and_chinese() -> None:
    model = train([prose(seed) for seed in range(50)] + ["这座小城在河的北岸，城里有两条主要的街道。" * 3])
    texts = [prose(999), noise(3), "城里的街道在河的北岸。", "锟斤拷烫烫屯屯葺鑫龘靐齉"]
    nats, counts = model.nats(texts)
    english, junk, chinese, mess = (nats / counts).tolist()
    assert english < junk - 1
    assert chinese < mess - 1


def test_only_the_first_tokens_of_a_reference_are_read() -> None:
    whole = train(["abcdef", "ghij"], order=3, max_tokens=8)
    assert len(whole.grams[0].keys) == 8
    with pytest.raises(ValueError, match="no text"):
        train([" ", ""])


def test_noise_is_found_by_a_limit_and_kept_with_its_value(context: Context) -> None:
    reference = documents(context.store, *(prose(seed) for seed in range(40)))
    good, bad = [prose(seed) for seed in range(100, 140)], [noise(seed) for seed in range(10)]
    source = documents(context.store, *good, *bad, "")
    made = run(context, "data.perplexity", {"max_perplexity": 20}, source=source, reference=reference)
    assert [sample.text for sample in samples(context.store, made)] == good
    told = rejects(context.store, made)
    assert [sample.text for sample, _, _ in told] == [*bad, ""]
    assert {reason for _, reason, _ in told} == {"perplexity"}
    assert told[0][2] == f"{told[0][0].metadata['perplexity']:.4g} is above 20"
    assert told[-1][2] == "too little text to measure"


def test_the_tail_of_each_language_is_cut_by_itself(context: Context) -> None:
    reference = documents(context.store, *(prose(seed) for seed in range(20)), "这座小城在河的北岸。" * 5)
    rows = [document(prose(seed), seed, metadata={"language": "en"}) for seed in range(30)]
    rows += [
        document(f"{chr(0x4E00 + 7 * seed)}座小城在河的南岸和北岸。" * (seed + 1), seed, metadata={"language": "zh"})
        for seed in range(30)
    ]
    made = run(context, "data.perplexity", {}, source=put(context.store, rows), reference=reference)
    kept = [sample.metadata["language"] for sample in samples(context.store, made)]
    assert (kept.count("en"), kept.count("zh")) == (20, 20)
    assert set(made.profile["perplexity"]) == {"en", "zh"}
    head = {"min_quantile": 0.5, "max_quantile": 1.0, "group_by": ""}
    assert run(context_of(context, "other"), "data.perplexity", head, source=made, reference=reference).rejects == 20


def context_of(context: Context, name: str) -> Context:
    workdir = context.workdir.parent / name
    workdir.mkdir()
    return Context(context.store, workdir, context.seed, context.events, name)


def test_a_killed_run_goes_on_behind_the_last_score(context: Context) -> None:
    reference = documents(context.store, *(prose(seed) for seed in range(10)))
    source = documents(context.store, *(prose(seed) for seed in range(50)))
    whole = run(context, "data.perplexity", {}, source=source, reference=reference)
    other = context_of(context, "killed")
    scores = (context.workdir / "scores.f64").read_bytes()
    (other.workdir / "scores.f64").write_bytes(scores[: 8 * 20 + 3])
    assert run(other, "data.perplexity", {}, source=source, reference=reference).digest == whole.digest
    assert (other.workdir / "scores.f64").read_bytes() == scores


@pytest.fixture
def model(context: Context, tmp_path: Path) -> ModelVersion:
    tokenizer = train_tokenizer([prose(seed) for seed in range(5)], 300)
    checkpoint.save(
        build("llama-nano", len(tokenizer), 3, context=64, end_id=tokenizer.eos_token_id), tokenizer, tmp_path / "m"
    )
    return context.store.put_model(tmp_path / "m", **checkpoint.describe(tmp_path / "m"))


def test_a_model_of_the_store_scores_too(context: Context, model: ModelVersion) -> None:
    source = documents(context.store, *(prose(seed) for seed in range(6)), "")
    made = run(context, "data.perplexity", {"model_tokens": 32, "max_quantile": 0.5}, source=source, model=model)  # type: ignore[arg-type]
    values = [sample.metadata["perplexity"] for sample in samples(context.store, made)]
    assert len(values) == 3
    assert all(1 < value < 10_000 for value in values)
    assert [detail for _, _, detail in rejects(context.store, made)][-1] == "too little text to measure"


def test_exactly_one_of_reference_and_model_is_needed(context: Context, model: ModelVersion) -> None:
    source = documents(context.store, "text")
    inputs: list[dict[str, Any]] = [{}, {"reference": source, "model": model}]
    for given in inputs:
        with pytest.raises(UsageError, match="exactly one"):
            run(context, "data.perplexity", {}, source=source, **given)
    with pytest.raises(DataError, match="no language model"):
        run(context, "data.perplexity", {}, source=source, reference=documents(context.store, " "))
    with pytest.raises(ConfigError, match="not below"):
        run(context, "data.perplexity", {"min_quantile": 0.9}, source=source, reference=source)


def test_limits_take_the_place_of_quantiles() -> None:
    scores = {"": [1.0, 2.0, 3.0, 4.0, math.nan]}
    assert limits_of(scores, PerplexityConfig(max_quantile=0.5)) == {"": (0.0, 2.5)}
    assert limits_of(scores, PerplexityConfig(max_perplexity=3, min_perplexity=1.5)) == {"": (1.5, 3)}
    assert limits_of({"": [math.nan]}, PerplexityConfig()) == {"": (0.0, math.inf)}
    assert perplexity_of(1e9, 1) < math.inf
    assert math.isnan(perplexity_of(0, 0))


def test_it_tells_planted_noise_from_real_text(context: Context) -> None:
    path = Path(__file__).parents[3] / "shared" / "data" / "wikitext2-valid.txt"
    if not path.exists():
        pytest.skip("the public text wikitext2-valid.txt is not in ../shared/data")
    articles = [part for part in path.read_text(encoding="utf-8").split("\n \n") if len(part) > 300]
    known, asked = articles[::2], articles[1::2][:300]
    chooser = random.Random(1)
    mixed = ["".join(chooser.sample(text, len(text))) for text in asked[:60]]
    source: DatasetVersion = documents(context.store, *asked, *mixed)
    made = run(
        context,
        "data.perplexity",
        {"max_quantile": len(asked) / (len(asked) + len(mixed))},
        source=source,
        reference=documents(context.store, *known),
    )
    found = {sample.text for sample, _, _ in rejects(context.store, made)}
    assert len(found & set(mixed)) / len(mixed) >= 0.99
    assert len(found & set(mixed)) / len(found) >= 0.95
    assert json.dumps(dict(made.profile))
