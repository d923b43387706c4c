"""Cards in both languages: the same facts in other words, and the same metadata."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from catena.core.language import LANGUAGES
from catena.core.types import Artifact, Run, Score
from catena.hub.repo.card import FRONT, WORDS, card, front_matter
from catena.hub.store import Store

from .conftest import PutDocuments, PutModel

WHEN = datetime(2020, 1, 1, tzinfo=UTC)
FACT = re.compile(r"`[^`]*`|[0-9][0-9,.:-]*")
ENGLISH = re.compile(r"[A-Za-z]{3,}")


@pytest.fixture
def measured(
    store: Store, put_documents: PutDocuments, put_model: PutModel, monkeypatch: pytest.MonkeyPatch
) -> Artifact:
    """A model that a run made of pages, measured and in production."""
    pages, model = put_documents(store, "a page", "another page"), put_model(store, name="other")
    told: dict[str, Any] = {"group": "g", "step": "base", "recipe": "r", "status": "done", "key": "k" * 64}
    run = Run(id="run1", stage="train.sft", inputs={"data": pages.digest}, output=model.digest, started=WHEN, **told)
    run = run.model_copy(update={"config": {"learning_rate": 0.001}, "ended": WHEN})
    with monkeypatch.context() as patch:
        patch.setattr("catena.hub.index.now", lambda: WHEN)  # at one and the same moment
        store.index.finish(run, model, "team/helper", ("production",))
    report = store.put_report(model, "words", {"acc": Score(value=0.5, low=0.25, high=0.75, n=20)})
    store.index.add_artifact(report)
    store.untag("team/helper", "production")
    return model


def test_a_card_in_chinese_has_the_facts_of_the_english_one(store: Store, measured: Artifact) -> None:
    english, chinese = (card(store, measured, "team/helper", language=one) for one in LANGUAGES)
    assert front_matter(english) == front_matter(chinese) != {}
    bodies = [FRONT.sub("", text, count=1).splitlines() for text in (english, chinese)]
    assert [sorted(FACT.findall(line)) for line in bodies[0]] == [sorted(FACT.findall(line)) for line in bodies[1]]
    told = "\n".join(bodies[1])
    assert "0.25 至 0.75" in told
    names = {
        "team",
        "helper",
        "train",
        "sft",
        "data",
        "pages",
        "learning",
        "rate",
        "words",
        "acc",
        "production",
        "full",
    }
    digests = {word for fact in re.findall(r"`[^`]*`", told) for word in ENGLISH.findall(fact)}
    assert {*ENGLISH.findall(told)} <= names | digests, "nothing is left in English but names"


def test_a_version_stands_before_the_tag_that_came_with_it(store: Store, measured: Artifact) -> None:
    log = card(store, measured, "team/helper").partition("## Change log")[2]
    assert re.findall(r"version \d|production on|taken away", log) == ["version 1", "production on", "taken away"]


def test_a_long_readme_without_metadata_is_read_at_once() -> None:
    assert front_matter("---" + "\n" * 300_000) == {}
    assert front_matter("---\n" + "\n---" * 100_000 + "x") == {}
    assert front_matter("---\r\nlicense: mit\r\n---\r\n# me\r\n") == {"license": "mit"}


def test_every_word_is_there_in_both_languages() -> None:
    words = yaml.safe_load(WORDS.read_text(encoding="utf-8"))
    for key, texts in words.items():
        assert set(texts) == set(LANGUAGES), key
        places = [sorted(re.findall(r"\{\w+\}", text)) for text in texts.values()]
        assert places[0] == places[1], key
