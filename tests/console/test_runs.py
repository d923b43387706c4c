"""Runs in the browser: the list, one run with curves, steps, log and recipe, a run that goes on, two side by side."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import catena
from catena.core.types import Run
from catena.hub.index import now
from catena.hub.store import Store
from tests.console.conftest import EVIL, PHONE, Small, Visit
from tests.console.read.conftest import put_run, write_events

pytestmark = pytest.mark.xdist_group("console")
LONG = "20200101-000000-long01"
LIVE = "20200101-000000-live01"
WAITS = "20200101-000000-wait01"


def metric(name: str, value: float, at: int) -> dict[str, Any]:
    return {"at": 1577836800.0 + at, "event": "metric", "step": "base", "name": name, "value": value, "at_step": at}


@pytest.fixture(scope="module")
def store(small: Small) -> Iterator[Store]:
    """The workspace's store, with a run of 4,000 points that failed; its error is hostile."""
    with catena.open(small.root) as workspace:
        put_run(workspace.store, LONG, "base", status="failed", error=EVIL, config={"rate": 0.5}, recipe="long")
        points = [metric("loss", 9.0 if at == 3210 else 1.0 + at % 3, at) for at in range(4000)]
        log = [{"at": 1577836800.0, "event": "log", "step": "base", "message": f"{EVIL} line {at}"} for at in range(50)]
        write_events(workspace.store, LONG, [*points, *log])
        yield workspace.store


def trained(store: Store) -> Run:
    """Return the run of the small recipe that trained the model."""
    return next(run for run in store.index.find_runs() if run.stage == "train.pretrain" and run.recipe == "small")


def drawn_points(page: Any) -> list[list[Any]]:
    """Return the points of the first series of the first chart, as the browser has them."""
    page.wait_for_function("document.querySelector('.c-curves canvas') !== null")
    script = "getElement(+document.querySelector('.c-curves').id.slice(1)).chart.getOption().series[0].data"
    return list(page.evaluate(script))


def test_the_list_shows_every_run_and_finds_one(visit: Visit, store: Store) -> None:
    visitor = visit("developer")
    visitor.go("/runs")
    assert trained(store).group in visitor.text
    assert "failed" in visitor.text
    visitor.page.fill(".c-search input", "long")
    visitor.page.wait_for_function("document.querySelectorAll('.c-table tbody tr').length === 1")
    assert LONG in visitor.text
    assert visitor.page.title().startswith("Runs"), "the error's text is text"
    assert not visitor.errors


def test_a_run_shows_curves_steps_log_and_recipe(visit: Visit, store: Store) -> None:
    run = trained(store)
    visitor = visit("developer")
    visitor.go(f"/runs/{run.group}")
    assert "Learning rate" in visitor.text
    assert len(drawn_points(visitor.page)) == 12
    visitor.go(f"/runs/{run.group}?tab=steps&step=model")
    assert "train.pretrain" in visitor.text
    assert "llama-nano" in visitor.text
    assert visitor.page.get_attribute("a:text-is('small/model@1')", "href") == "/models/small/model%401" or (
        visitor.page.locator("a:text-is('small/model@1')").count() >= 1
    )
    visitor.go(f"/runs/{run.group}?tab=recipe")
    assert "stage: train.pretrain" in visitor.text
    assert not visitor.errors


def test_the_log_is_searched_and_shows_hostile_text_as_text(visit: Visit, store: Store) -> None:
    visitor = visit("developer", language="zh")
    visitor.go(f"/runs/{LONG}?tab=log")
    assert "<script>" in visitor.text
    visitor.page.fill(".c-search input", "line 42")
    visitor.page.wait_for_function("document.querySelectorAll('.c-logline').length === 1")
    assert visitor.page.title().startswith("运行")
    assert not visitor.errors


def test_a_long_curve_keeps_its_peak_and_is_sampled_again_where_one_looks(visit: Visit, store: Store) -> None:
    visitor = visit("developer")
    visitor.go(f"/runs/{LONG}")
    whole = drawn_points(visitor.page)
    assert len(whole) <= 1000
    assert [3210, 9] in whole
    chart = "getElement(+document.querySelector('.c-curves').id.slice(1)).chart"
    visitor.page.evaluate(f"{chart}.dispatchAction({{type: 'dataZoom', start: 80, end: 81}})")
    inside = f"{chart}.getOption().series[0].data.filter(point => point[0] >= 3200 && point[0] <= 3238).length"
    visitor.page.wait_for_function(f"{inside} === 39")
    assert not visitor.errors


def test_a_run_that_goes_on_is_followed_and_its_end_seen(visit: Visit, store: Store) -> None:
    run = put_run(store, LIVE, "base", status="running", recipe="live")
    write_events(store, LIVE, [metric("loss", 5.0 - at, at) for at in range(3)])
    visitor = visit("developer")
    with store.lock(f"step-{run.key[:32]}"):
        visitor.go(f"/runs/{LIVE}")
        assert "running" in visitor.text
        assert len(drawn_points(visitor.page)) == 3
        told = {"at": 1577836803.0, "event": "progress", "step": "base", "label": "train", "done": 3, "total": 12}
        write_events(store, LIVE, [metric("loss", 1.0, 3), {**told, "unit": "steps", "rate": 2.0, "seconds_left": 4.5}])
        chart = "getElement(+document.querySelector('.c-curves').id.slice(1)).chart"
        visitor.page.wait_for_function(f"{chart}.getOption().series[0].data.length === 4")
        visitor.page.wait_for_selector("text=3 / 12 steps")
    store.index.put_run(run.model_copy(update={"status": "done", "ended": now()}))
    visitor.page.wait_for_selector(".c-figure .c-good")
    assert not visitor.errors


def test_a_run_that_waits_to_begin_is_followed(visit: Visit, store: Store) -> None:
    start = {"at": time.time(), "event": "start", "recipe": "waits", "steps": ["base"], "pid": os.getpid()}
    write_events(store, WAITS, [start])
    visitor = visit("developer")
    visitor.go(f"/runs/{WAITS}")
    visitor.page.wait_for_selector(".c-figure:has-text('running')")
    put_run(store, WAITS, "base", recipe="waits")
    visitor.page.wait_for_selector(".c-figure .c-good")
    visitor.page.wait_for_selector(".c-table:has-text('train.pretrain')")
    assert not visitor.errors


def test_two_runs_are_picked_and_stand_side_by_side(visit: Visit, store: Store) -> None:
    visitor = visit("developer")
    visitor.go("/runs")
    for group in (LONG, trained(store).group):
        visitor.page.check(f".c-pick[value='{group}']")
    visitor.page.click("button:has-text('Compare (2)')")
    visitor.page.wait_for_url("**/runs/compare?**")
    visitor.page.wait_for_selector("text=Settings that differ")
    assert "rate" in visitor.text
    assert not visitor.errors


def test_a_run_that_is_not_there_says_so(visit: Visit, store: Store) -> None:
    visitor = visit("developer")
    assert visitor.go("/runs/20200101-none").status == 404
    assert "there is no run" in visitor.text
    assert visitor.go("/runs/compare?runs=one").status == 400


@pytest.mark.parametrize("tab", ["curves", "steps", "log", "recipe"])
def test_every_tab_fits_a_phone(visit: Visit, store: Store, tab: str) -> None:
    visitor = visit("developer", size=PHONE, dark="dark")
    visitor.go(f"/runs/{trained(store).group}?tab={tab}")
    assert not visitor.too_wide()
    assert not visitor.errors


def test_a_user_sees_no_runs(visit: Visit, store: Store, tmp_path: Path) -> None:
    visitor = visit("user")
    assert visitor.go(f"/runs/{LONG}").status == 403
    assert "script" not in visitor.text
