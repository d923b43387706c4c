"""Evaluations in the browser: the leaderboard, samples that are filtered, two models side by side."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import catena
from catena.core.types import Report
from tests.console.conftest import PHONE, Small, Visit
from tests.console.read.conftest import RIGHT, put_model, put_tasks

pytestmark = pytest.mark.xdist_group("console")
Two = tuple[Report, Report]


@pytest.fixture(scope="module")
def reports(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """Two models that answered the same ten questions."""
    folder = tmp_path_factory.mktemp("reports")
    with catena.open(small.root) as workspace:
        found = []
        for at, name in enumerate(("small/one", "small/two")):
            model = put_model(workspace.store, folder / f"m{at}", name)
            found.append(put_tasks(workspace.store, folder / f"r{at}", model, RIGHT[at], f"{name}-tasks"))
        yield found[0], found[1]


def test_the_leaderboard_ranks_every_task(visit: Visit, reports: Two) -> None:
    visitor = visit("developer")
    visitor.go("/evaluation")
    visitor.page.wait_for_selector("text=sums · exact")
    rows = visitor.page.locator(".c-card:has-text('sums · exact') tbody tr").all_inner_texts()
    assert [("small/two@1" in rows[0]), ("small/one@1" in rows[1])] == [True, True]
    visitor.go("/evaluation?tab=reports")
    assert "perplexity" in visitor.text
    assert not visitor.errors


def test_samples_are_filtered_and_searched(visit: Visit, reports: Two) -> None:
    visitor = visit("developer", language="zh")
    visitor.go(f"/evaluation/{reports[0].digest}")
    visitor.page.wait_for_function("document.querySelectorAll('.c-sample').length === 10")
    visitor.page.click(".c-chip:has-text('错误')")
    visitor.page.wait_for_function("document.querySelectorAll('.c-sample').length === 7")
    visitor.page.fill("input[aria-label='搜索']", "q8")
    visitor.page.wait_for_function("document.querySelectorAll('.c-sample').length === 1")
    assert "It is 8" in visitor.text
    assert not visitor.errors


def test_two_models_side_by_side_with_the_statistic_of_pairs(visit: Visit, reports: Two) -> None:
    first, second = (report.digest for report in reports)
    visitor = visit("developer")
    visitor.go(f"/evaluation/compare?first={first}&second={second}")
    visitor.page.wait_for_function("document.querySelectorAll('.c-sample').length === 1")
    assert "+0.1" in visitor.text
    assert "may be chance" in visitor.text
    sides = visitor.page.locator(".c-side header").all_inner_texts()
    assert ["Right" in sides[0], "Wrong" in sides[1]] == [True, True]
    visitor.page.click(".c-chip:has-text('Only the second right 2')")
    visitor.page.wait_for_function("document.querySelectorAll('.c-sample').length === 2")
    assert visitor.go(f"/evaluation/compare?first={first}&second={first}").status == 400
    assert not visitor.errors


@pytest.mark.parametrize("path", ["/evaluation", "/evaluation/{0}", "/evaluation/compare?first={0}&second={1}"])
def test_every_page_fits_a_phone_in_the_dark(visit: Visit, reports: Two, path: str) -> None:
    visitor = visit("developer", size=PHONE, dark="dark", language="zh")
    visitor.go(path.format(*(report.digest for report in reports)))
    assert not visitor.too_wide()
    assert not visitor.errors
