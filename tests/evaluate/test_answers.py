"""Answers: every question asked, judged and kept; choices that depend on ids and seed alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from catena.core.errors import DataError, RemoteError, UsageError
from catena.core.events import read_events
from catena.core.generate import GENERATORS, Completion, Message, Request, SamplingParams
from catena.core.sample import Sample
from catena.core.stage import Context
from catena.core.types import ModelVersion
from catena.evaluate.answers import AnswersConfig, answers, question_of
from catena.evaluate.choice import chosen
from catena.evaluate.stats import wilson

from .conftest import conversations, documents

QUESTIONS = [f"What does function {letter} do?{letter}" for letter in "abcdefgh"]


@pytest.fixture
def said(context: Context, model: ModelVersion) -> dict[str, str]:
    """What the untrained model answers to each question: the right answers, as far as it goes."""
    generator = context.generator(model)
    params = SamplingParams(max_tokens=6)
    requests = [Request(question, (Message("user", question),), params) for question in QUESTIONS]
    found = {completion.request_id: completion.text for completion in generator.generate(requests)}
    generator.close()
    return found


CONFIG = AnswersConfig(splits=("one", "two"), max_tokens=6)


def test_accuracy_is_the_share_of_right_answers(context: Context, model: ModelVersion, said: dict[str, str]) -> None:
    right = [("one", question, said[question]) for question in QUESTIONS[:3]]
    wrong = [("one", QUESTIONS[3], "another answer")]
    other = [("two", question, "no") for question in QUESTIONS[4:]]
    data = conversations(context.store, [*right, *wrong, *other])
    report = answers(context, CONFIG, model=model, data=data)
    score = report.scores["accuracy/one"]
    assert (score.value, score.low, score.high) == pytest.approx(wilson(3, 4), abs=1e-6)
    assert score.n == 4
    assert report.scores["accuracy/two"].value == 0.0
    assert (report.subject, report.suite, report.details["data"]) == (model.digest, "answers", data.digest)


def test_every_question_is_in_the_report(context: Context, model: ModelVersion, said: dict[str, str]) -> None:
    data = conversations(context.store, [("one", question, said[question]) for question in QUESTIONS])
    report = answers(context, AnswersConfig(splits=("one",), max_tokens=6), model=model, data=data)
    text = (context.store.checkout(report) / "samples.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["question"] for line in lines] == QUESTIONS
    assert lines[0]["answer"] == said[QUESTIONS[0]]
    assert lines[0]["page"] == "page:a"
    assert {line["score"] for line in lines} == {1.0}
    assert {line["finish_reason"] for line in lines} <= {"stop", "length"}


def test_the_same_work_gives_the_same_report(context: Context, model: ModelVersion) -> None:
    data = conversations(context.store, [("one", question, "x") for question in QUESTIONS])
    cfg = AnswersConfig(splits=("one",), max_tokens=4, limit=3)
    first, second = (answers(context, cfg, model=model, data=data) for _ in range(2))
    assert first == second
    assert first.scores["accuracy/one"].n == 3


def test_a_report_says_how_it_was_measured(context: Context, model: ModelVersion) -> None:
    data = conversations(context.store, [("one", question, "x") for question in QUESTIONS])
    said = {"splits": ["one"], "scorer": "exact", "max_tokens": 4}
    few = answers(context, AnswersConfig(splits=("one",), max_tokens=4, limit=3), model=model, data=data)
    assert few.details["config"] == {**said, "limit": 3, "seed": context.seed}
    every = answers(context, AnswersConfig(splits=("one",), max_tokens=4), model=model, data=data)
    assert every.details["config"] == {**said, "limit": None, "seed": None}  # the seed chose nothing


def test_speed_and_progress_are_events_and_not_in_the_report(context: Context, model: ModelVersion) -> None:
    data = conversations(context.store, [("one", question, "x") for question in QUESTIONS])
    report = answers(context, AnswersConfig(splits=("one",), max_tokens=2), model=model, data=data)
    events = list(read_events(context.workdir.parent / "events.jsonl"))
    assert any(event.get("name") == "answers_per_second" for event in events)
    assert any(event["event"] == "progress" and event["done"] == len(QUESTIONS) for event in events)
    assert "second" not in report.model_dump_json(exclude={"files"})


def test_a_choice_keeps_the_order_and_does_not_depend_on_it() -> None:
    samples = [Sample(str(number), {"text": ""}) for number in range(50)]
    picked = [sample.id for sample in chosen(samples, 10, seed=1)]
    assert picked == sorted(picked, key=int)
    assert sorted(sample.id for sample in chosen(reversed(samples), 10, seed=1)) == sorted(picked)
    assert picked != [sample.id for sample in chosen(samples, 10, seed=2)]
    assert chosen(samples, None, seed=1) == samples


def test_all_turns_before_the_last_answer_are_asked() -> None:
    turns = [("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
    sample = Sample("x", {"messages": [{"role": role, "content": content} for role, content in turns]})
    question = question_of(sample, "test")
    assert [message.content for message in question.messages] == ["s", "q1", "a1", "q2"]
    assert question.reference == "a2"


def test_a_conversation_without_an_answer_is_refused() -> None:
    with pytest.raises(DataError, match="does not end with an answer"):
        question_of(Sample("x", {"messages": [{"role": "user", "content": "q"}]}), "test")


def test_a_score_that_is_no_number_is_named(
    context: Context, model: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = conversations(context.store, [("one", question, "x") for question in QUESTIONS])
    monkeypatch.setattr("catena.evaluate.scorers.exact", lambda answer, reference, metadata: float("nan"))
    with pytest.raises(DataError, match="'accuracy/one' of 'answers' is no finite number"):
        answers(context, AnswersConfig(splits=("one",), max_tokens=2), model=model, data=data)


def test_an_unknown_scorer_is_refused_when_the_recipe_is_checked() -> None:
    with pytest.raises(ValidationError, match="Did you mean 'exact'"):
        AnswersConfig(scorer="exakt")


def test_an_unknown_split_and_another_shape_are_refused(context: Context, model: ModelVersion) -> None:
    data = conversations(context.store, [("one", "q", "a")])
    with pytest.raises(UsageError, match="no split 'two'"):
        answers(context, CONFIG, model=model, data=data)
    with pytest.raises(UsageError, match="a dataset of conversations"):
        answers(context, CONFIG, model=model, data=documents(context.store, ["text"]))


def test_an_answer_that_failed_is_not_scored(
    context: Context, model: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = GENERATORS.load

    class Failing:
        def __init__(self, folder: Path) -> None:
            self.inner = load("native")(folder)

        def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
            for completion in self.inner.generate(requests):
                yield replace(completion, finish_reason="error")

        def close(self) -> None:
            self.inner.close()

    data = conversations(context.store, [("one", QUESTIONS[0], "a")])
    monkeypatch.setattr(GENERATORS, "load", lambda name: Failing)
    with pytest.raises(RemoteError, match="a request ended with the reason 'error'"):
        answers(context, AnswersConfig(splits=("one",), max_tokens=6), model=model, data=data)
