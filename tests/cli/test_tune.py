"""`catena tune`: its JSON, a stage instead of a recipe, and mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Catena

RECIPE = """\
name: demo
steps:
  small: {stage: example.numbers, with: {rows: 4}}
  base: {stage: example.descend, use: {source: small}}
"""
SPACE = "rate: {kind: log, low: 1.0e-4, high: 0.4}\nmark: {kind: choice, choices: ['!', '?']}\n"


@pytest.fixture
def recipe(here: Path) -> str:
    (here / "demo.yaml").write_text(RECIPE)
    (here / "space.yaml").write_text(SPACE)
    return "demo.yaml"


def test_tune_prints_every_trial_and_the_best(catena: Catena, recipe: str) -> None:
    options = ["--step", "base", "--space", "space.yaml", "--trials", "4", "--tag", "best"]
    end = catena("tune", recipe, *options, "--json").lines[-1]
    assert set(end) == {"event", "status", "step", "best", "front", "trials", "ref", "digest", "report"}
    trial = {"trial", "stage", "status", "values", "scores", "ref", "digest", "error"}
    assert [set(row) for row in end["trials"]] == [trial] * 4
    assert end["best"]["scores"]["val_loss"] == min(row["scores"]["val_loss"] for row in end["trials"])
    assert Path(end["report"]).exists()
    assert catena("show", "demo/base/trial@best", "--json").json["artifact"]["digest"] == end["best"]["digest"]
    text = catena("tune", recipe, *options, "--quiet").out
    assert f"best: --set base.rate={end['best']['values']['rate']}" in text


def test_a_stage_is_searched_on_stored_things(catena: Catena, recipe: str, here: Path) -> None:
    catena("run", recipe, "--until", "small", "--quiet")
    (here / "space.yaml").write_text("width: {kind: int, low: 4, high: 16, step: 4}\n")
    options = ["--use", "source=demo/small", "--space", "space.yaml", "--metric", "rows:higher", "--trials", "3"]
    end = catena("tune", "example.descend", *options, "--set", "rate=0.02", "--json").lines[-1]
    assert end["best"]["ref"].startswith("do/descend/trial@")
    told = catena("tune", "example.descend", *options, "--set", "rate=0.02", "--quiet").out
    assert f"best: --set width={end['best']['values']['width']}" in told  # as `catena do` takes it
    assert end["best"]["scores"]["rows"] == max(row["scores"]["rows"] for row in end["trials"])


def test_mistakes_are_named_with_their_line_and_leave_no_workspace(catena: Catena, recipe: str, here: Path) -> None:
    (here / "space.yaml").write_text("rate: {kind: log, low: 0.1, hihg: 0.4}\n")
    failed = catena("tune", recipe, "--step", "base", "--space", "space.yaml")
    assert failed.code == 2
    assert "space.yaml:1: rate: hihg: unknown key 'hihg'. Did you mean 'high'?" in failed.err
    failed = catena("tune", recipe, "--step", "bases")
    assert "Did you mean 'base'?" in failed.err
    assert catena("tune", recipe, "--step", "base", "--metric", "a:b").code == 2
    assert catena("tune", "nothing.yaml").code == 3
    assert not (here / ".catena").exists()
