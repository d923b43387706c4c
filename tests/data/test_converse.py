from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from catena.core.config import parse
from catena.core.errors import ConfigError, DataError
from catena.core.sample import Sample, sample_id
from catena.core.stage import Context
from catena.core.types import DatasetVersion
from catena.data.converse import SHIPPED, ConverseConfig
from catena.data.questions import Deck, check_templates, every_template, plain, vocabulary
from tests.data.stores import documents, put, run, samples

SMALL: dict[str, Any] = {
    "fixed": ["{name}", "What does {name} do?", "{name} 是什么？"],
    "grammar": {
        "en": {
            "share": 0.8,
            "openings": ["", "Please,"],
            "cores": ["explain {name}.", "what is {name} for?"],
            "endings": ["", "Thanks."],
        },
        "zh": {
            "share": 0.2,
            "spaces": False,
            "openings": ["请问"],
            "cores": ["{name} 有什么用？"],
            "endings": ["谢谢。"],
        },
    },
    "held_out": ["Please, what is {name}?", "Thanks, explain {name} please."],
    "unseen_words": ["Enlighten me about {name}!"],
}
QUIET = {"probability": 0, "around": 0}


def examples(context: Context, count: int = 30) -> DatasetVersion:
    rows = [
        Sample(
            sample_id(number),
            {
                "input": f"mod.func_{chr(97 + number % 26)}{number}",
                "output": f"Return the number {number} of the list.",
            },
            {"page": f"pydoc:/{number}.html"},
            f"pydoc:/{number}.html",
            "PSF-2.0",
            (f"page{number}",),
        )
        for number in range(count)
    ]
    return put(context.store, rows, "example")


def question_of(sample: Sample) -> str:
    return str(sample.data["messages"][0]["content"])


def small(**changes: Any) -> dict[str, Any]:
    return {"phrasings": {**SMALL, **changes}, "per_level": {0: 2, 1: 5}, "noise": QUIET}


def test_a_deck_deals_everything_before_anything_comes_again() -> None:
    deck = Deck("abcd", random.Random(0))
    assert sorted(deck.deal() for _ in range(4)) == list("abcd")
    assert sorted(deck.deal() for _ in range(4)) == list("abcd")


def test_the_shipped_phrasings_hold_what_they_promise(context: Context) -> None:
    made = run(context, "data.converse", {}, source=examples(context, 40))
    rows = samples(context.store, made)
    trained = [question_of(row) for row in rows if row.split == "train"]
    seen, words = set(map(plain, trained)), set[str]().union(*map(vocabulary, trained))
    templates = parse(ConverseConfig, {}).templates
    assert {name: split.rows for name, split in made.splits.items()} == {
        "train": 40 * 30,
        "held_out_phrasings": 80,
        "unseen_words": 80,
    }
    assert not [row for row in rows if row.split != "train" and plain(question_of(row)) in seen]
    assert all(vocabulary(template) <= words for template in templates.held_out)
    assert all(vocabulary(template) - words for template in templates.unseen_words)
    assert made.profile["training_questions"] == len(seen)


def test_levels_are_fixed_templates_first_and_the_grammar_after(context: Context) -> None:
    made = run(context, "data.converse", small(), source=examples(context, 10))
    rows = samples(context.store, made, "train")
    assert Counter(row.metadata["level"] for row in rows) == {0: 20, 1: 50}
    assert [question_of(row) for row in rows[:2]] == ["mod.func_a0", "What does mod.func_a0 do?"]
    assert {row.metadata["template"] for row in rows if row.metadata["level"] == 0} == {"fixed/0", "fixed/1"}
    possible = {plain(template) for template in every_template(parse(ConverseConfig, small()).templates)}
    for row in rows:
        assert plain(question_of(row).replace(row.metadata["name"], " {name} ").replace("{name}", " ")) in {
            template.replace("name", "", 1) for template in possible
        }


def test_a_question_leads_back_to_its_page(context: Context) -> None:
    source = examples(context, 3)
    definitions = {row.data["input"]: row for row in samples(context.store, source)}
    config = small(held_out=[], unseen_words=[])
    for row in samples(context.store, run(context, "data.converse", config, source=source)):
        definition = definitions[row.metadata["name"]]
        assert row.parents == (definition.id,)
        assert (row.metadata["page"], row.metadata["page_id"]) == (definition.metadata["page"], definition.parents[0])
        assert row.data["messages"][1] == {"role": "assistant", "content": definition.data["output"]}
        assert (row.source, row.license) == (definition.source, "PSF-2.0")


def test_the_same_seed_asks_the_same_and_ids_are_unique(context: Context) -> None:
    source = examples(context)
    made = run(context, "data.converse", {}, source=source)
    assert run(context, "data.converse", {}, source=source).digest == made.digest
    assert run(replace(context, seed=8), "data.converse", {}, source=source).digest != made.digest
    ids = [row.id for row in samples(context.store, made)]
    assert len(set(ids)) == len(ids)


def test_languages_come_up_as_often_as_they_should(context: Context) -> None:
    rows = samples(context.store, run(context, "data.converse", small(), source=examples(context, 20)), "train")
    counts = Counter(row.metadata["template"].split("/")[0] for row in rows if row.metadata["level"] == 1)
    assert counts["zh"] == pytest.approx(20, abs=1)


def test_a_name_has_a_blank_or_nothing_before_it(context: Context) -> None:
    made = run(context, "data.converse", {"noise": QUIET}, source=examples(context))
    for row in samples(context.store, made):
        before = question_of(row).partition(row.metadata["name"])[0]
        assert before == "" or before.endswith(" "), question_of(row)


def test_noise_never_touches_the_name_and_takes_words_from_the_corpus(context: Context) -> None:
    corpus = documents(context.store, "zebra quagga okapi enlighten os.path.join call() Capital")
    config = {**small(), "noise": {"probability": 0.5, "around": 0.5, "han": 0}}
    made = run(context, "data.converse", config, source=examples(context), corpus=corpus)
    rows = samples(context.store, made, "train")
    assert all(row.metadata["name"] in question_of(row) for row in rows)
    words = set[str]().union(*(vocabulary(question_of(row)) for row in rows))
    assert {"zebra", "quagga", "okapi"} <= words
    assert not words & {"enlighten", "path", "call", "capital"}  # kept for evaluation, parts of names, not lower case


def test_noise_is_only_in_the_levels_that_have_it(context: Context) -> None:
    config = {**small(), "per_level": {0: 1, 1: 4, 2: 4}, "noise": {"levels": [2], "probability": 1, "around": 0}}
    rows = samples(context.store, run(context, "data.converse", config, source=examples(context)), "train")
    noisy = {row.metadata["level"] for row in rows if row.metadata["template"].endswith("+noise")}
    assert noisy == {2}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"held_out": ["What does {name} do"]}, "'What does {name} do' is kept for evaluation, and training has it"),
        ({"held_out": ["please explain {name}, THANKS"]}, "kept for evaluation, and training has it too"),
        ({"held_out": ["Kindly explain {name}."]}, "has words that no training question has: kindly"),
        ({"unseen_words": ["Thanks, {name} please"]}, "every word of the phrasing 'Thanks, {name} please' occurs"),
    ],
)
def test_a_false_claim_is_an_error_that_names_the_phrasing(
    context: Context, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError) as caught:
        run(context, "data.converse", small(**changes), source=examples(context))
    assert said in str(caught.value)


def test_leaving_out_words_never_makes_a_held_out_question(context: Context) -> None:
    config = {**small(), "per_level": {1: 12}, "noise": {"probability": 1, "around": 0, "insert": 0, "drop": 0.5}}
    config["phrasings"] = {**SMALL, "held_out": ["What {name} for?"], "unseen_words": []}
    rows = samples(context.store, run(context, "data.converse", config, source=examples(context)))
    kept = {plain(question_of(row)) for row in rows if row.split != "train"}
    assert kept
    assert not kept & {plain(question_of(row)) for row in rows if row.split == "train"}


def test_a_file_of_ones_own_is_read_and_checked_with_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SMALL, allow_unicode=True))
    config = parse(ConverseConfig, {"phrasings": str(path)})
    assert config.templates.held_out == SMALL["held_out"]
    assert parse(ConverseConfig, config.model_dump(mode="json")) == config
    path.write_text(yaml.safe_dump({**SMALL, "held_out": ["Another {name} here"]}, allow_unicode=True))
    assert parse(ConverseConfig, {"phrasings": str(path)}).digest() != config.digest()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({**SMALL, "fixd": []}, "unknown key 'fixd'. Did you mean 'fixed'?"),
        ({**SMALL, "fixed": ["no name"]}, "must have {name} in it, once"),
        ({**SMALL, "grammar": {"en": {**SMALL["grammar"]["en"], "share": 0.5}}}, "must add up to 1"),
        ("fixed: [", "expected"),
        ("- a", "mine.yaml"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, content: Any, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught:
        parse(ConverseConfig, {"phrasings": str(path)})
    assert said in str(caught.value)


def test_an_unknown_name_is_refused_with_the_closest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'definitions'"):
        parse(ConverseConfig, {"phrasings": "definitons"})


def test_every_shipped_file_is_sound() -> None:
    for path in SHIPPED.glob("*.yaml"):
        check_templates(parse(ConverseConfig, {"phrasings": path.stem}).templates)


def test_without_examples_there_is_nothing_to_ask(context: Context) -> None:
    with pytest.raises(DataError, match="no example"):
        run(context, "data.converse", {}, source=put(context.store, [], "example"))
