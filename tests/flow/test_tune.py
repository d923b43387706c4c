"""Searches: trials are ordinary runs, a killed search goes on, and the same search has the same report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import catena as c
from catena.core.errors import ConfigError, DataError, RecipeError, UsageError
from catena.core.source import Source
from catena.core.types import DatasetVersion, Report
from catena.flow.recipe import check_recipe
from catena.flow.trial import Trial
from catena.flow.tune import Tuned, _Search

RECIPE = """\
name: demo
seed: 3
steps:
  small: {stage: example.numbers, with: {rows: 4}}
  base: {stage: example.descend, use: {source: small}, tags: [best]}
  loud: {stage: example.shout, use: {source: base}}
tune:
  step: base
  trials: 8
  space:
    rate: {kind: log, low: 1.0e-4, high: 0.4}
    width: {kind: int, low: 4, high: 32, step: 4}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "demo.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def ws(tmp_path: Path) -> c.Workspace:
    return c.open(tmp_path / ".catena")


def key_facts(trials: tuple[Trial, ...]) -> list[Any]:
    return [(trial.number, trial.phase, dict(trial.values), trial.scores, trial.digest) for trial in trials]


def test_each_trial_is_a_run_and_the_recipe_goes_on_with_the_best(ws: c.Workspace, recipe: Path) -> None:
    found = ws.tune(recipe, tag="tuned")
    assert len(found.trials) == 8
    assert found.best.scores[0] == min(trial.scores[0] for trial in found.trials)
    runs = ws.store.index.find_runs(stage="example.descend")
    assert [run.config["rate"] for run in runs] == [trial.values["rate"] for trial in found.trials]
    assert ws.resolve("demo/base/trial@tuned").digest == found.best.digest
    with pytest.raises(c.CatenaError):
        ws.resolve("demo/base@best")  # a trial moves no tag of the step
    run = ws.run(recipe)
    assert run.runs["base"].status == "cached"
    assert run.outputs["base"].digest == found.best.digest == ws.resolve("demo/base@best").digest
    assert run.runs["loud"].status == "done"


def test_the_report_holds_trials_plots_and_lineage(ws: c.Workspace, recipe: Path) -> None:
    found = ws.tune(recipe)
    report = ws.store.resolve(found.ref, Report)
    assert (report.suite, report.subject) == ("tune", found.best.digest)
    assert report.scores["val_loss"].value == found.best.scores[0]
    assert report.details["best"] == found.best.values
    text = found.page.read_text()
    assert text.count("<svg") == 3
    assert "<script" not in text
    assert f"--set base.rate={found.best.values['rate']}" in text
    lines = [json.loads(line) for line in found.page.with_name("trials.jsonl").read_text().splitlines()]
    assert [line["values"] for line in lines] == [trial.values for trial in found.trials]
    graph = ws.lineage(found.ref)
    assert {"tune", "example.descend", "example.numbers"} <= {node.label for node in graph.nodes}


def test_the_same_search_has_the_same_report_and_runs_once(ws: c.Workspace, recipe: Path, tmp_path: Path) -> None:
    first = ws.tune(recipe)
    runs = len(ws.store.index.find_runs(stage="example.descend"))
    second = ws.tune(recipe)
    assert len(ws.store.index.find_runs(stage="example.descend")) == runs
    assert (second.report, second.ref) == (first.report, first.ref)
    assert key_facts(second.trials) == key_facts(first.trials)
    assert second.best.ref == first.best.ref
    elsewhere = c.open(tmp_path / "elsewhere").tune(recipe)
    assert elsewhere.report.digest == first.report.digest


def start(ws: c.Workspace, recipe: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "catena", "-w", str(ws.store.root), "tune", str(recipe), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_trials(ws: c.Workspace, count: int) -> None:
    deadline = time.monotonic() + 300
    while len(ws.store.index.find_runs(stage="example.descend", status="done")) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_search_goes_on_and_runs_nothing_twice(ws: c.Workspace, recipe: Path, tmp_path: Path) -> None:
    process = start(ws, recipe, "--set", "base.seconds=0.2")
    wait_for_trials(ws, 3)
    time.sleep(0.1)
    process.kill()
    process.communicate()
    found = ws.tune(recipe, overrides=["base.seconds=0.2"])
    whole = c.open(tmp_path / "whole").tune(recipe, overrides=["base.seconds=0.2"])
    assert found.report.digest == whole.report.digest
    done = [run.key for run in ws.store.index.find_runs(stage="example.descend", status="done")]
    assert len(done) == len(set(done)) == 8
    assert not any(ws.store.root.glob("work/*"))


def test_a_signal_ends_a_search_as_cancelled(ws: c.Workspace, recipe: Path) -> None:
    process = start(ws, recipe, "--jobs", "2", "--set", "base.seconds=20")
    deadline = time.monotonic() + 300
    while len(ws.store.index.find_runs(stage="example.descend", status="running")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    assert {run.status for run in ws.store.index.find_runs(stage="example.descend")} == {"cancelled"}


def test_two_processes_find_the_same_as_two_others_even_if_one_dies(
    ws: c.Workspace, recipe: Path, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_one(event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event.get("step") == "trial 2" and not killed:
            run = ws.store.index.find_runs(status="running")[-1]
            killed.append(int(run.machine["pid"]))
            os.kill(killed[0], signal.SIGKILL)

    found = ws.tune(recipe, jobs=2, overrides=["base.seconds=0.1"], listeners=[kill_one])
    assert killed
    assert killed[0] != os.getpid()
    other = c.open(tmp_path / "other").tune(recipe, jobs=2, overrides=["base.seconds=0.1"])
    assert key_facts(found.trials) == key_facts(other.trials)
    assert found.report.digest == other.report.digest


def test_a_training_that_diverges_is_a_failed_trial(ws: c.Workspace, recipe: Path) -> None:
    wide = {"rate": {"kind": "log", "low": 0.3, "high": 1.0}}
    found = ws.tune(recipe, space=wide)
    failed = [trial for trial in found.trials if trial.status == "failed"]
    assert failed
    assert all("diverged" in trial.error and float(trial.values["rate"]) > 0.5 for trial in failed)
    assert "diverged" in found.page.read_text()
    with pytest.raises(DataError, match="none of 8 trials"):
        ws.tune(recipe, space={"rate": {"kind": "log", "low": 0.6, "high": 1.0}})


def test_trials_below_the_median_are_given_up_and_leave_no_folder(ws: c.Workspace, recipe: Path) -> None:
    found = ws.tune(recipe, prune=True, trials=10)
    pruned = [trial for trial in found.trials if trial.status == "pruned"]
    assert pruned
    assert "worse than the median" in pruned[0].error
    assert not any(ws.store.root.glob("work/*"))


def test_objectives_may_be_several_and_measured_by_a_later_step(ws: c.Workspace, recipe: Path) -> None:
    objectives = [{"metric": "val_loss"}, {"metric": "rows", "goal": "lower"}]
    found = ws.tune(recipe, objectives=objectives, method="genetic", population=4)
    assert {trial.phase for trial in found.trials} == {"coarse"}
    for one in found.front:
        better = [t for t in found.trials if t.scores[0] <= one.scores[0] and t.scores[1] <= one.scores[1]]
        assert [t.scores for t in better] == [one.scores] * len(better)
    assert found.page.read_text().count("<svg") == 4
    later = ws.tune(recipe, measure="loud", objectives=[{"metric": "went_on"}], trials=2)
    assert [trial.scores for trial in later.trials] == [(0.0,), (0.0,)]
    outputs = ws.store.index.versions(name="demo/loud/trial")
    assert len(outputs) == 2
    assert isinstance(ws.resolve("demo/loud/trial@1"), DatasetVersion)


def test_a_search_is_another_when_what_it_is_measured_with_has_changed(ws: c.Workspace, tmp_path: Path) -> None:
    ws.do("example.numbers", {}, {"rows": 4}, name="given")
    measured = ws.do("example.numbers", {}, {"rows": 4}, name="evalset")
    recipe = tmp_path / "measured.yaml"
    recipe.write_text(
        """\
        name: measured
        steps:
          base: {stage: example.descend, use: {source: given}}
          checked: {stage: data.decontaminate, use: {source: base, against: evalset}}
        tune:
          {step: base, measure: checked, trials: 2, objectives: [{metric: seconds}], space: {rate: {low: 0.1, high: 1}}}
        """
    )
    first = ws.tune(recipe)
    assert ws.tune(recipe).ref == first.ref
    ws.do("example.numbers", {}, {"rows": 40}, name="evalset")
    ws.tune(recipe)
    runs = ws.store.index.find_runs(stage="data.decontaminate", status="done")
    assert [run.inputs["against"] == measured.digest for run in runs] == [True, True, False, False]
    assert {run.uses["against"] for run in runs} == {"evalset@1", "evalset@2"}


def test_a_search_is_another_when_a_dataset_that_a_task_names_has_changed(ws: c.Workspace, tmp_path: Path) -> None:
    (tmp_path / "pages.yaml").write_text("name: pages\nkind: perplexity\ndata: {dataset: given}\n")
    steps = {
        "base": {"stage": "train.pretrain", "use": {"tokenizer": "fixed", "data": "fixed"}},
        "scores": {"stage": "evaluate.tasks", "use": {"model": "base"}, "with": {"tasks": [f"{tmp_path}/pages.yaml"]}},
    }
    tune = {"step": "base", "measure": "scores", "space": {"learning_rate": {"low": 0.1, "high": 0.2}}}
    recipe = check_recipe(Source("r", "", {"name": "r", "steps": steps, "tune": tune}))
    assert recipe.tune is not None
    keys = []
    for rows in (4, 4, 6):
        ws.do("example.numbers", {}, {"rows": 4}, name="fixed")
        ws.do("example.numbers", {}, {"rows": rows}, name="given")
        keys.append(_Search(ws.store, recipe, recipe.tune, (), "local").key)
    assert keys[0] == keys[1] != keys[2]


def test_one_stage_is_searched_as_a_recipe_of_one_step(ws: c.Workspace, recipe: Path) -> None:
    from catena.flow.recipe import one_step

    ws.run(recipe, until="small")
    alone = one_step("example.descend", {"source": "demo/small"}, {"mark": "?"}, store=ws.store)
    found = ws.tune(alone, space={"rate": {"kind": "log", "low": 1e-4, "high": 0.1}}, trials=3)
    assert isinstance(found, Tuned)
    assert found.best.ref.startswith("do/descend/trial@")


def test_mistakes_are_said_before_anything_runs(ws: c.Workspace, recipe: Path) -> None:
    for old, new, said in (
        ("    rate:", "    rates:", r"demo.yaml:11: .*'rates'.*Did you mean 'rate'"),
        ("step: base", "step: bases", "the recipe has no step 'bases'"),
        ("kind: log, low: 1.0e-4", "kind: float, low: -1", "greater than 0"),
    ):
        recipe.write_text(RECIPE.replace(old, new))
        with pytest.raises(RecipeError, match=said):
            ws.tune(recipe)
    recipe.write_text(RECIPE)
    with pytest.raises(ConfigError, match="Did you mean 'trials'"):
        ws.tune(recipe, trial=3)
    with pytest.raises(ConfigError, match="none of the values that are searched by default"):
        ws.tune(recipe, space={})
    assert not ws.store.index.find_runs()
    with pytest.raises(UsageError, match="tells of no metric 'val_los'") as caught:
        ws.tune(recipe, objectives=[{"metric": "val_los"}])
    assert "val_loss" in caught.value.hint
