"""A judge: one that grades, one that chooses, a model of the store, and none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from catena.core.errors import UsageError
from catena.core.generate import GENERATORS, Completion, Request
from catena.core.stage import Context
from catena.core.types import ModelVersion
from catena.evaluate.suite import TasksConfig, tasks
from catena.hub.store import Store
from tests.evaluate.conftest import conversations

from .written import JUDGED, lines_of, written


class Judge:
    """Says what it is told to say of each prompt."""

    def __init__(self, say: Any) -> None:
        self.say = say

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in requests:
            (message,) = request.prompt
            assert not isinstance(message, str | int)
            yield Completion(request.id, self.say(message.content), (), "stop", 1)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("line", "say", "score"),
    [
        ('against: "{{ good }}"', lambda text: "[[A]]", 0.5),  # likes what stands first
        (
            'against: "{{ good }}"',
            lambda text: "[[A]]" if text.index("a string") > text.index("[Answer B]") else "[[B]]",
            1.0,
        ),
        ('against: "{{ good }}"', lambda text: "I cannot say", 0.5),
        ('reference: "{{ good }}"', lambda text: "Between [[1]] and [[10]] I say [[7]]", 6 / 9),
        ("top: 5", lambda text: "Fine.", 0.0),
    ],
)
def test_a_judge_grades_or_chooses(
    context: Context,
    store: Store,
    model: ModelVersion,
    tmp_path: Path,
    line: str,
    say: Any,
    score: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = JUDGED.replace(', {q: "What else?", good: a document}', "")
    config = TasksConfig(tasks=written(tmp_path, judged=rows + line + "\n"), judge={"engine": {"url": "http://x"}})
    load = GENERATORS.load
    monkeypatch.setattr(
        GENERATORS, "load", lambda name: (lambda folder, **options: Judge(say)) if name == "openai" else load(name)
    )
    report = tasks(context, config, model=model)
    (value,) = report.scores.values()
    assert value.value == pytest.approx(score, abs=1e-6)
    unread = report.details["notes"].get("judged", {}).get("rulings_unread", 0)
    assert bool(unread) == (say("[Answer B] a string").startswith(("I cannot", "Fine")))


def test_a_judge_that_nobody_named(context: Context, model: ModelVersion, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a task needs a judge"):
        tasks(context, TasksConfig(tasks=written(tmp_path, judged=JUDGED)), model=model)


def test_a_stored_model_judges_and_a_stored_dataset_is_asked(
    context: Context, store: Store, model: ModelVersion, tmp_path: Path
) -> None:
    stored = """\
name: stored
kind: judge
data: {dataset: questions, split: test}
prompt: "{{ messages[0].content }}"
reference: "{{ messages[1].content }}"
max_tokens: 2
"""
    data = conversations(store, [("test", "what", "that"), ("train", "who", "she")])
    config = TasksConfig(tasks=written(tmp_path, stored=stored))
    report = tasks(context, config, model=model, data=data, judge=model)
    assert report.scores["stored/grade"].n == 1
    assert lines_of(store, report)[0]["reference"] == "that"
