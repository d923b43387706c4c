"""Tasks on a tiny model: scores are those of the arithmetic, answers are kept."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch

from catena.core.config import check
from catena.core.errors import DataError, RemoteError
from catena.core.events import Events
from catena.core.generate import GENERATORS, Completion, Request
from catena.core.stage import Context
from catena.core.types import ModelVersion
from catena.evaluate.ask import Answers, cut_windows
from catena.evaluate.suite import TasksConfig, tasks
from catena.hub.store import Store
from catena.models import checkpoint

from .written import CHOICE, TEXTS, WRITE, lines_of, written


def logprob(model_folder: Path, before: str, after: str) -> tuple[float, int]:
    """Return the log-likelihood of a text behind another, by transformers."""
    model, tokenizer = checkpoint.load(model_folder, torch.float32)
    first = len(tokenizer(before)["input_ids"])
    ids = tokenizer(before + after)["input_ids"]
    with torch.inference_mode():
        told = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return sum(float(told[at - 1, ids[at]]) for at in range(first, len(ids))), len(ids) - first


def test_choices_are_the_likeliest(
    context: Context, store: Store, model: ModelVersion, model_folder: Path, tmp_path: Path
) -> None:
    report = tasks(context, TasksConfig(tasks=written(tmp_path, which=CHOICE)), model=model)
    lines = lines_of(store, report)
    right = 0
    for line, (before, options, place) in zip(
        lines,
        [("json.loads", ["reads a", "writes"], 0), ("Return", ["a string", "or"], 1), ("a b", ["c", "d e"], 0)],
        strict=True,
    ):
        sums = [logprob(model_folder, before, " " + option)[0] for option in options]
        assert [told for _, told in line["choices"]] == pytest.approx(sums, abs=1e-3)
        assert line["answer"] == options[sums.index(max(sums))]
        right += line["score"] == 1
        assert line["reference"] == options[place]
    assert report.scores["which/acc"].value == pytest.approx(right / 3, abs=1e-6)
    assert report.details["tasks"]["which"]["clusters"] == 3


def test_perplexity_by_token_word_and_byte(
    context: Context, store: Store, model: ModelVersion, model_folder: Path, tmp_path: Path
) -> None:
    report = tasks(context, TasksConfig(tasks=written(tmp_path, texts=TEXTS)), model=model)
    loaded, tokenizer = checkpoint.load(model_folder, torch.float32)
    texts = ["json.loads reads a document. Return a string.", "读取一个文件，返回字符串。"]
    nats, tokens = 0.0, 0
    for text in texts:
        ids = [tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]
        with torch.inference_mode():
            told = loaded(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        nats -= sum(float(told[at - 1, ids[at]]) for at in range(1, len(ids)))
        tokens += len(ids) - 1
    size = sum(len(text.encode()) for text in texts)
    scores = {name.partition("/")[2]: score.value for name, score in report.scores.items()}
    assert scores["perplexity"] == pytest.approx(exp(nats / tokens), rel=1e-4)
    assert scores["bits_per_byte"] == pytest.approx(nats / size / log(2), rel=1e-4)
    assert scores["word_perplexity"] == pytest.approx(exp(nats / 8), rel=1e-3)
    assert report.scores["texts/perplexity"].better == "lower"


@pytest.mark.parametrize(
    ("count", "window", "before"), [(10, 4, 1), (3, 8, 1), (9, 4, 0), (7, 3, 1), (1, 4, 1), (0, 4, 1)]
)
def test_windows_count_each_token_once(count: int, window: int, before: int) -> None:
    cuts = cut_windows(count, window, before)
    counted = [at for _, first, end in cuts for at in range(first, end)]
    assert counted == list(range(1, count + before))
    assert all(end - start <= window and start < first for start, first, end in cuts)
    assert all(end - start == min(window, count + before) for start, _, end in cuts)


def test_answers_groups_and_what_could_not_be_read(
    context: Context, store: Store, model: ModelVersion, tmp_path: Path
) -> None:
    report = tasks(context, TasksConfig(tasks=written(tmp_path, write=WRITE), limit=9), model=model)
    assert report.scores["write/numeric"].n == 9
    assert {"write/numeric/True", "write/numeric/False"} <= set(report.scores)
    lines = lines_of(store, report)
    assert len(lines) == 9
    missing = sum(line["extracted"] is None for line in lines)
    assert report.details["notes"]["write"].get("not_extracted", 0) == missing
    assert all(line["score"] == 0 for line in lines if line["extracted"] is None)


def test_chat_goes_through_the_template(context: Context, store: Store, model: ModelVersion, tmp_path: Path) -> None:
    config = TasksConfig(tasks=written(tmp_path, write=WRITE, which=CHOICE), limit=3, chat=True)
    lines = lines_of(store, tasks(context, config, model=model))
    assert all(line["question"].startswith("[user] ") for line in lines)


def test_a_larger_limit_asks_only_what_is_new(
    context: Context, store: Store, model: ModelVersion, tmp_path: Path
) -> None:
    paths = written(tmp_path, write=WRITE, which=CHOICE, texts=TEXTS)
    first = tasks(context, TasksConfig(tasks=paths, limit=4), model=model)
    told: list[dict[str, Any]] = []
    again = replace(context, events=Events(listeners=[told.append]))
    second = tasks(again, TasksConfig(tasks=paths), model=model)
    metrics = {event["name"]: event["value"] for event in told if event["event"] == "metric"}
    assert metrics["requests"] == 8
    assert metrics["answers_known_before"] > 0
    before = {line["id"]: line for line in lines_of(store, first)}
    assert all(before.get(line["id"], line) == line for line in lines_of(store, second))


class Dying:
    """A generator that dies after some answers."""

    left = 5

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.codec = inner.codec

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for number, completion in enumerate(self.inner.generate(requests)):
            if number >= Dying.left:
                raise RemoteError("the engine is gone")
            yield completion

    def close(self) -> None:
        self.inner.close()


def test_a_run_that_died_goes_on(
    context: Context, store: Store, model: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TasksConfig(tasks=written(tmp_path, write=WRITE))
    load = GENERATORS.load
    with monkeypatch.context() as patch:
        patch.setattr(GENERATORS, "load", lambda name: lambda folder: Dying(load(name)(folder)))
        with pytest.raises(RemoteError):
            tasks(context, config, model=model)
    told: list[dict[str, Any]] = []
    tasks(replace(context, events=Events(listeners=[told.append])), config, model=model)
    metrics = {event["name"]: event["value"] for event in told if event["event"] == "metric"}
    assert metrics["requests"] == 12 - Dying.left
    assert metrics["answers_known_before"] == Dying.left


def test_a_line_that_a_kill_cut_short_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'["a",["x","stop",1]]\n["b",["y","st')
    answers = Answers(path)
    assert answers.get("a") == ["x", "stop", 1]
    assert answers.get("b") is None
    answers.put("c", ("z", "stop", 1))
    answers.flush()
    assert Answers(path).get("c") == ["z", "stop", 1]


def test_code_is_run_and_judged(context: Context, store: Store, model: ModelVersion, tmp_path: Path) -> None:
    from catena.evaluate.sandbox import cannot_contain

    if cannot_contain() and not os.environ.get("CI"):
        pytest.skip(cannot_contain())
    code = """\
name: code
kind: code
data: {rows: [{p: "x = 1", t: "assert x == 1"}, {p: "x = 1", t: "assert x == 2"}]}
prompt: "{{ p }}"
program: "{{ p }}\\n{% if completion == '' %}{% endif %}{{ t }}"
max_tokens: 2
temperature: 1.0
samples: 2
k: [1, 2]
"""
    report = tasks(context, TasksConfig(tasks=written(tmp_path, code=code)), model=model)
    assert {name: score.value for name, score in report.scores.items()} == {"code/pass@1": 0.5, "code/pass@2": 0.5}
    lines = lines_of(store, report)
    assert [line["outcome"] for line in lines] == ["passed", "failed"]
    assert "AssertionError" in lines[1]["output"]


def test_a_wrong_task_is_told_when_the_config_is_checked(tmp_path: Path) -> None:
    (path,) = written(tmp_path, which=CHOICE.replace("choices", "choises"))
    _, problems = check(TasksConfig, {"tasks": [path]})
    assert any("Did you mean 'choices'?" in problem.message for problem in problems)
    config, problems = check(TasksConfig, {"tasks": ["addition", "bascs"]})
    assert config is None
    assert "there is no task 'bascs'" in problems[0].message


def test_a_template_that_names_no_field_asks_nothing(context: Context, model: ModelVersion, tmp_path: Path) -> None:
    config = TasksConfig(tasks=written(tmp_path, write=WRITE.replace("expression", "expresion")))
    with pytest.raises(DataError, match="names 'expresion', which the rows do not have") as caught:
        tasks(context, config, model=model)
    assert "Did you mean 'expression'?" in caught.value.hint


def test_texts_without_a_token_have_no_perplexity(context: Context, model: ModelVersion, tmp_path: Path) -> None:
    empty = "name: texts\nkind: perplexity\ndata: {rows: [{text: ''}]}\n"
    with pytest.raises(DataError, match="texts: there is no token to foretell"):
        tasks(context, TasksConfig(tasks=written(tmp_path, texts=empty)), model=model)
