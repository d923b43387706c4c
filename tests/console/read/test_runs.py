"""Runs: their states, their settings side by side, their curves and log."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from catena.console.read.curves import CurveBook
from catena.console.read.logs import log_of
from catena.console.read.runs import ABSENT, RunBook, differences
from catena.core.errors import NotFound
from catena.flow.plan import step_key
from catena.hub.store import Store
from catena.workspace import Workspace
from tests.console.read.conftest import put_run, write_events


def metric(step: str, name: str, value: float, at: int) -> dict[str, object]:
    return {"at": 1.0, "event": "metric", "step": step, "name": name, "value": value, "at_step": at}


def test_runs_are_told_by_state_and_found_by_words(store: Store) -> None:
    for number in range(3):
        put_run(store, f"2026-good{number}", "base")
    put_run(store, "2026-bad", "base", status="failed", error="the disk is full", recipe="other")
    book = RunBook(store)
    assert book.counts() == {"done": 3, "failed": 1}
    assert book.find(limit=2).total == 4
    assert len(book.find(limit=2).rows) == 2
    assert [run.group for run in book.find(state="failed").rows] == ["2026-bad"]
    assert [run.group for run in book.find(search="OTHER pretrain").rows] == ["2026-bad"]
    assert book.find(search="nothing of the kind").rows == ()
    failed = book.one("2026-bad")
    assert failed.at is not None
    assert (failed.seconds, failed.at.error) == (2.0, "the disk is full")


def test_a_change_is_seen_at_the_next_look(store: Store) -> None:
    book = RunBook(store)
    assert book.find().total == 0
    run = put_run(store, "2026-one", "base", status="failed")
    assert book.find().rows[0].state == "failed"
    store.index.put_run(run.model_copy(update={"status": "done"}))
    assert book.find().rows[0].state == "done"


def test_a_run_whose_process_died_is_interrupted(store: Store) -> None:
    run = put_run(store, "2026-dead", "base", status="running")
    book = RunBook(store)
    assert book.one("2026-dead").state == "interrupted"
    with store.lock(f"step-{run.key[:32]}"):
        assert book.one("2026-dead").state == "running"
    assert book.find().rows[0].state == "interrupted"


def test_between_two_steps_a_run_runs_as_long_as_its_process_lives(store: Store) -> None:
    start = {"at": time.time(), "event": "start", "group": "2026-a", "recipe": "small", "steps": ["base", "tuned"]}
    write_events(store, "2026-a", [start])
    put_run(store, "2026-a", "base", machine={"pid": os.getpid()})
    run = RunBook(store).one("2026-a")
    assert (run.state, [step.state for step in run.steps], run.finished) == ("running", ["done", "waiting"], 1)
    put_run(store, "2026-a", "base", machine={"pid": 2**22 + 1})
    assert RunBook(store).one("2026-a").state == "interrupted"


def test_a_run_that_waits_for_its_first_step_runs(store: Store, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("one text of some words")
    steps = f"docs: {{stage: data.ingest, with: {{paths: [{tmp_path / 'one.txt'}]}}}}"
    (tmp_path / "waits.yaml").write_text(f"name: waits\nsteps:\n  {steps}\n")
    workspace, begun = Workspace(store), Queue[dict[str, Any]]()
    recipe = workspace.recipe(tmp_path / "waits.yaml")
    with ThreadPoolExecutor(1) as pool:
        with store.lock(f"step-{step_key(recipe.steps['docs'], {})[:32]}"):
            ends = pool.submit(workspace.run, recipe, listeners=[begun.put])
            group = begun.get(timeout=60)["group"]
            run = RunBook(store).one(group)
            assert (run.state, run.recipe, [step.state for step in run.steps]) == ("running", "waits", ["waiting"])
        ends.result(60)
    assert RunBook(store).one(group).state == "done"


@pytest.mark.parametrize("process", [{}, {"pid": 2**22 + 1}])
def test_a_run_that_died_before_its_first_step_is_interrupted(store: Store, process: dict[str, int]) -> None:
    write_events(store, "2026-a", [{"at": time.time(), "event": "start", "steps": ["base"], **process}])
    assert RunBook(store).one("2026-a").state == "interrupted"


def test_a_run_that_is_not_there_is_named_with_the_nearest(store: Store) -> None:
    put_run(store, "20261130-aaaa", "base")
    with pytest.raises(NotFound, match="20261130-aaab") as raised:
        RunBook(store).one("20261130-aaab")
    assert "20261130-aaaa" in raised.value.hint
    with pytest.raises(NotFound):
        RunBook(store).one("../../etc")


def test_settings_that_differ_are_told_and_equal_ones_are_not(store: Store) -> None:
    put_run(store, "2026-a", "base", config={"rate": 0.1, "optimizer": {"name": "adamw", "beta": 0.9}}, seed=7)
    put_run(store, "2026-b", "base", config={"rate": 0.2, "optimizer": {"name": "adamw"}}, seed=7)
    put_run(store, "2026-b", "tuned", config={"epochs": 2})
    book = RunBook(store)
    found = {(one.step, one.field): one.values for one in differences([book.one("2026-a"), book.one("2026-b")])}
    assert found[("base", "rate")] == (0.1, 0.2)
    assert found[("base", "optimizer.beta")] == (0.9, ABSENT)
    assert found[("tuned", "epochs")] == (ABSENT, 2)
    assert ("base", "optimizer.name") not in found
    assert ("base", "seed") not in found


def test_the_curve_of_a_step_goes_on_where_a_killed_attempt_ended(store: Store) -> None:
    key = "k" * 64
    put_run(store, "2026-a", "base", key=key, status="interrupted")
    put_run(store, "2026-b", "base", key=key)
    write_events(store, "2026-a", [metric("base", "loss", 5.0 - at, at) for at in range(4)])
    write_events(store, "2026-b", [metric("base", "loss", 50.0 - at, at) for at in range(3, 6)])
    book = RunBook(store)
    curves = CurveBook(book)
    first, second = book.one("2026-a"), book.one("2026-b")
    assert curves.metrics(second) == {"base": ["loss"]}
    assert curves.curve(first, first.steps[0], "loss")[1].tolist() == [5.0, 4.0, 3.0, 2.0]
    assert curves.curve(second, second.steps[0], "loss")[1].tolist() == [5.0, 4.0, 3.0, 47.0, 46.0, 45.0]


def test_a_step_from_the_store_has_the_curves_of_who_made_it(store: Store) -> None:
    key = "k" * 64
    made = put_run(store, "2026-a", "base", key=key)
    put_run(store, "2026-b", "first", key=key, status="cached", metrics={"origin": made.id})
    write_events(store, "2026-a", [metric("base", "loss", 1.0, 0)])
    book = RunBook(store)
    taken = book.one("2026-b")
    assert CurveBook(book).metrics(taken) == {"first": ["loss"]}


def test_a_long_curve_is_thinned_and_a_part_of_it_is_sampled_again(store: Store) -> None:
    put_run(store, "2026-a", "base")
    events = [metric("base", "loss", 1000.0 if at == 7777 else float(at % 7), at) for at in range(20_000)]
    write_events(store, "2026-a", events)
    book = RunBook(store)
    curves, run = CurveBook(book), book.one("2026-a")
    whole = curves.drawn(run, run.steps[0], "loss", most=500)
    assert len(whole.x) <= 500
    assert whole.y.max() == 1000.0
    assert (whole.x[0], whole.x[-1], whole.total, whole.ends) == (0, 19_999, 20_000, (0, 19_999))
    assert len(whole.level[0]) == 160
    part = curves.drawn(run, run.steps[0], "loss", low=100, high=200, most=500)
    assert part.x.tolist() == list(range(99, 202))
    assert part.level[0].tolist() == []
    assert curves.drawn(run, run.steps[0], "nothing").total == 0


def test_the_log_is_searched_and_cut_to_its_end(store: Store) -> None:
    put_run(store, "2026-a", "base")
    events = [{"at": float(at), "event": "log", "step": "base", "message": f"line {at}"} for at in range(100)]
    bad = {
        "at": 100.0,
        "event": "step",
        "step": "tuned",
        "status": "failed",
        "stage": "train.sft",
        "message": "no room",
    }
    write_events(store, "2026-a", [*events, bad])
    followed = CurveBook(RunBook(store)).follow("2026-a")
    log = log_of(followed, most=3)
    assert [line.text for line in log.lines] == ["line 98", "line 99", "train.sft: failed  no room"]
    assert (log.total, log.lines[-1].level) == (101, "error")
    assert [line.text for line in log_of(followed, search="LINE 42").lines] == ["line 42"]
    assert log_of(followed, step="tuned").total == 1
