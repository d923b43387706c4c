"""Two models, one beside the other: comparisons, the leaderboard, gates, the command line, and over HTTP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import catena as c
from catena.cli.main import run as run_line
from catena.core.errors import GateFailed, UsageError
from catena.core.generate import GENERATORS
from catena.core.stage import Context
from catena.core.types import ModelVersion
from catena.evaluate.compare import CompareConfig, compare
from catena.evaluate.suite import TasksConfig, tasks
from catena.flow.evaluation import standings
from catena.hub.store import Store
from catena.models import checkpoint
from catena.models.presets import build

from .written import CHOICE, JUDGED, TEXTS, WRITE, written


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
