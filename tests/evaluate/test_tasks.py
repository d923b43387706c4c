"""Tasks on a tiny model: scores are those of the arithmetic, answers are kept, comparisons pair questions."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import exp, log
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch

import catena as c
from catena.cli.main import run as run_line
from catena.core.config import check
from catena.core.errors import DataError, GateFailed, RemoteError, UsageError
from catena.core.events import Events
from catena.core.generate import GENERATORS, Completion, Request
from catena.core.stage import Context
from catena.core.types import ModelVersion, Report
from catena.evaluate.ask import Answers, cut_windows
from catena.evaluate.compare import CompareConfig, compare
from catena.evaluate.suite import TasksConfig, tasks
from catena.flow.evaluation import standings
from catena.hub.store import Store
from catena.models import checkpoint
from catena.models.presets import build
from tests.evaluate.conftest import conversations

CHOICE = """\
name: which
kind: choice
data: {rows: [{q: json.loads, c: [reads a, writes], r: 0}, {q: Return, c: [a string, or], r: 1}, {q: a b, c: [c, d e]}]}
prompt: "{{ q }}"
choices: "{{ c }}"
correct: "{{ r if r is defined else 'c' }}"
cluster: "{{ q }}"
"""
WRITE = """\
name: write
kind: generate
data: {made: addition, count: 12}
prompt: "{{ expression }} ="
answer: "{{ answer }}"
max_tokens: 4
extract: [{regex: '-?[0-9]+'}]
score: [numeric]
group: "{{ answer > 50 }}"
"""
TEXTS = """\
name: texts
kind: perplexity
data: {rows: [{text: json.loads reads a document. Return a string.}, {text: 读取一个文件，返回字符串。}]}
"""


def written(tmp_path: Path, **texts: str) -> list[str]:
    """Write task files; return their paths."""
    paths = []
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        paths.append(str(tmp_path / f"{name}.yaml"))
    return paths


def lines_of(store: Store, report: Report) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (store.checkout(report) / "samples.jsonl").read_bytes().splitlines()]


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


JUDGED = """\
name: judged
kind: judge
data: {rows: [{q: "What is it?", good: a string}, {q: "What else?", good: a document}]}
prompt: "{{ q }}"
max_tokens: 4
"""


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


@pytest.fixture
def two(store: Store, model: ModelVersion, model_folder: Path, tmp_path: Path) -> tuple[str, str]:
    """The names of two models in the store."""
    loaded, tokenizer = checkpoint.load(model_folder, torch.float32)
    with torch.no_grad():
        loaded.lm_head.weight.mul_(-1.0)
    checkpoint.save(loaded, tokenizer, tmp_path / "other")
    other = store.put_model(tmp_path / "other", **checkpoint.describe(tmp_path / "other"))
    for name, version in (("one", model), ("two", other)):
        store.index.add_artifact(version)
        store.index.add_name(name, version.digest)
    return "one", "two"


def test_two_models_are_compared_and_ranked(
    store: Store, two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = written(tmp_path, which=CHOICE, texts=TEXTS, write=WRITE)
    words = ["evaluate", "one", "--tasks", ",".join(paths), "--compare", "two", "--limit", "5"]
    page = tmp_path / "page.html"
    assert run_line([*words, "--report", str(page), "--json", "--workspace", str(store.root)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["compared"]) == {name for name in told["scores"] if name.count("/") == 1}
    gain = told["compared"]["texts/perplexity"]
    wanted = gain["other"] - told["scores"]["texts/perplexity"]["value"]
    assert gain["gain"]["value"] == pytest.approx(wanted, rel=1e-4)
    html = page.read_text()
    assert "<script" not in html
    assert html.count("<details") == told["tasks"]["write"]["rows"] + 3 + 2
    assert "two@1" in html
    assert [one.model for one in standings(store, "texts")] == (
        ["one@1", "two@1"] if wanted > 0 else ["two@1", "one@1"]
    )
    assert (
        run_line(["evaluate", "leaderboard", "--report", str(tmp_path / "b.html"), "--workspace", str(store.root)]) == 0
    )
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert run_line(["evaluate", "one", "--tasks", "list", "--workspace", str(store.root)]) == 0
    assert "gsm8k" in capsys.readouterr().out


def test_python_and_a_gate(store: Store, two: tuple[str, str], tmp_path: Path, context: Context) -> None:
    paths = written(tmp_path, texts=TEXTS, which=CHOICE)
    with c.open(store.root) as ws:
        found = ws.model("one").evaluate(paths, compare="two")
        assert found.scores["texts/perplexity"].n == 2
        again = ws.evaluate("one", paths, compare="two")
        assert {run.status for run in again.run.runs.values()} == {"cached"}
    assert found.other is not None
    assert found.comparison is not None
    better, worse = found.report, found.other
    if found.comparison.scores["gain/texts/perplexity"].value < 0:
        better, worse = worse, better
    config = CompareConfig(margin={"texts/perplexity": 0.0}, on_fail="stop")
    with pytest.raises(GateFailed, match="texts/perplexity: the difference may be as bad as"):
        compare(context, config, candidate=worse, baseline=better)
    assert compare(context, config, candidate=better, baseline=worse).details["verdict"] == "passed"
    with pytest.raises(UsageError, match="the reports have no score 'texts/perplexty'"):
        compare(context, CompareConfig(margin={"texts/perplexty": 0}), candidate=worse, baseline=better)


def test_reports_about_other_questions_are_not_compared(
    store: Store, context: Context, model: ModelVersion, tmp_path: Path
) -> None:
    (path,) = written(tmp_path, write=WRITE)
    few = tasks(context, TasksConfig(tasks=(path,), limit=3), model=model)
    many = tasks(context, TasksConfig(tasks=(path,)), model=model)
    with pytest.raises(UsageError, match="did not measure 'write' on the same questions"):
        compare(context, CompareConfig(), candidate=few, baseline=many)


@pytest.mark.parametrize(
    ("words", "code", "wanted"),
    [
        (["one"], 2, "--tasks is missing"),
        (["one", "--tasks", "bascs"], 3, "Did you mean 'basics'?"),
        (["one", "--tasks", "gsm8k"], 3, "Give its folder with --data"),
        (["one", "--tasks", ","], 2, "no task is named"),
        (["one", "--tasks", "addition", "--compare", "one"], 2, "are the same model"),
        (["none", "--tasks", "addition"], 3, "there is nothing named 'none'"),
        (["one", "--tasks", "addition", "--backend", "natve"], 2, "Did you mean 'native'?"),
    ],
)
def test_what_the_command_line_refuses(
    store: Store, two: tuple[str, str], capsys: pytest.CaptureFixture[str], words: list[str], code: int, wanted: str
) -> None:
    assert run_line(["evaluate", *words, "--workspace", str(store.root)]) == code
    assert wanted in capsys.readouterr().err


def test_what_the_harness_tells_becomes_lines_and_evidence() -> None:
    from catena.evaluate.harness import outcome_of, params_of
    from catena.evaluate.task import HarnessTask

    task = HarnessTask(name="some", kind="lm_eval", task="some")
    samples = {
        name: [
            {
                "doc_id": number,
                "filter": "none",
                "metrics": ["acc", "word_perplexity"],
                "acc": float(number),
                "word_perplexity": (-3.0, 2),
                "arguments": {"gen_args_0": {"arg_0": "Q", "arg_1": " a"}},
                "filtered_resps": [["a"]],
                "target": "b",
            }
            for number in range(2)
        ]
        for name in ("one", "two")
    }
    found = outcome_of(task, samples, {"one": {"acc,none": 0.5, "acc_stderr,none": 0.1}})
    assert found.evidence["acc"].tolist() == [[0, 1], [1, 1], [0, 1], [1, 1]]
    assert found.evidence["word_perplexity"].tolist() == [[3, 2]] * 4
    assert [line["group"] for line in found.lines] == ["one", "one", "two", "two"]
    assert len({line["id"] for line in found.lines}) == 4
    assert (found.lines[0]["question"], found.lines[0]["answer"]) == ("Q", "a")
    assert found.notes == {"as_the_harness_says": "one/acc,none 0.5"}
    params = params_of({"until": ["\n", ""], "max_gen_toks": 7, "do_sample": False, "temperature": 0.7})
    assert (params.stop, params.max_tokens, params.temperature) == (("\n",), 7, 0.0)


def test_a_task_of_the_harness_by_its_name() -> None:
    from catena.evaluate.taskfile import load_tasks

    (loaded,) = load_tasks(["lm_eval:arc/easy"])
    assert (loaded.task.name, loaded.task.kind) == ("arc-easy", "lm_eval")


def test_over_http_as_generator_and_as_judge(store: Store, two: tuple[str, str], tmp_path: Path) -> None:
    from catena.serve.app import build_app
    from catena.serve.server import background

    paths = written(tmp_path, which=CHOICE, judged=JUDGED + 'against: "{{ good }}"\njudge_tokens: 8\n')
    tokenizer = checkpoint.load(store.checkout(store.resolve("one", ModelVersion)), torch.float32)[1]
    wise = build("llama-nano", len(tokenizer), 5, context=2048, end_id=tokenizer.eos_token_id)
    checkpoint.save(wise, tokenizer, tmp_path / "wise")
    engine = GENERATORS.load("auto")(store.checkout(store.resolve("one", ModelVersion)))
    judge = GENERATORS.load("auto")(tmp_path / "wise")
    try:
        with background(build_app({"served": engine, "wise": judge})) as url, c.open(store.root) as ws:
            native = ws.evaluate("one", paths[:1])
            options = {"url": f"{url}/v1", "model": "served"}
            remote = ws.evaluate("one", paths[:1], generator="openai", engine=options)
            judged = ws.evaluate("two", paths[1:], judge=f"{url}/v1#wise")
    finally:
        engine.close()
        judge.close()
    assert remote.scores == native.scores
    assert judged.report.details["notes"]["judged"]["rulings_unread"] == 4
    assert judged.scores["judged/win_rate"].value == 0.5
