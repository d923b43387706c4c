"""The walk: every registered page as each role, generated from the register, in both languages and on a phone.

What a role may not see is not in its menu and is refused when it is opened directly; nothing goes wrong in the browser;
nothing is wider than a phone; a connection that drops loses nothing that was typed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

import catena
from catena.console import jobs
from catena.console.language import LANGUAGES, words
from catena.console.page import pages
from catena.govern.roles import GRANTED, ROLES
from tests.console.conftest import HERE, PHONE, Small, Visit, Visitor

pytestmark = pytest.mark.xdist_group("console")


ONE_STEP = "name: walked\nsteps:\n  docs:\n    stage: data.ingest\n    with: {paths: [texts]}\n"
ABSENT = "nothing-of-this-name"


def told(small: Small) -> dict[str, str]:
    """Make what pages below others show, and return it by their path: two runs to compare, a recipe, one that ran."""
    folder = small.root.parent / "recipes"
    folder.mkdir(exist_ok=True)
    (folder / "walked.yaml").write_text(ONE_STEP)
    with catena.open(small.root) as workspace:
        texts = f"documents.paths=[{json.dumps(str(small.root.parent / 'texts'))}]"
        other = workspace.recipe(HERE / "small.yaml", [texts, "model.steps=3", "name=other"])
        workspace.run(other)
        measured = workspace.store.index.find_runs(stage="evaluate.perplexity", status="done")
        job = jobs.start(workspace.store, "walked", ONE_STEP, "admin-key")
        jobs._CHILDREN[job.id].wait(90)
    groups = [measured[0].group, measured[-1].group]
    first, second = measured[0].output, measured[-1].output
    return {
        "/datasets/{ref:path}": "/datasets/small/corpus",
        "/recipes/{name}": "/recipes/walked",
        "/recipes/jobs/{id}": f"/recipes/jobs/{job.id}",
        "/runs/{id}": f"/runs/{groups[0]}",
        "/runs/compare": f"/runs/compare?runs={','.join(groups)}",
        "/models/{ref:path}": "/models/small/model",
        "/evaluation/{ref:path}": f"/evaluation/{first}",
        "/evaluation/compare": f"/evaluation/compare?first={first}&second={second}",
    }


@pytest.fixture(scope="module")
def places(small: Small) -> dict[str, str]:
    """A real path for each registered page; a page that is new has to be thought of here."""
    below = told(small)
    assert set(below) == {page.path for page in pages() if not page.menu}
    return {page.path: page.path for page in pages()} | below


class Walker:
    """A visitor whose browser's log is kept."""

    def __init__(self, visitor: Visitor) -> None:
        self.visitor, self.said = visitor, visitor.errors
        visitor.page.on("console", self._heard)

    def _heard(self, message: Any) -> None:
        # That a page was refused is in the browser's log, too, and is what is wanted then.
        if message.type == "error" and "the server responded with a status of 4" not in message.text:
            self.said.append(message.text)

    def menu(self) -> set[str]:
        """Return the paths in the menu."""
        links = self.visitor.page.eval_on_selector_all(".c-menu a", "all => all.map(one => one.pathname)")
        return {link.rstrip("/") or "/" for link in links}


@pytest.fixture
def walk(visit: Visit) -> Iterator[Any]:
    """Return a function that opens a window; at the end nothing may have gone wrong in any of them."""
    opened: list[Walker] = []

    def begin(role: str, **options: Any) -> Walker:
        opened.append(Walker(visit(role, **options)))
        return opened[-1]

    yield begin
    for one in opened:
        assert not one.said


@pytest.mark.parametrize("role", ROLES)
def test_every_page_as_each_role(walk: Any, places: dict[str, str], role: str) -> None:
    walker = walk(role)
    visitor = walker.visitor
    visitor.go("/")
    may = {page.path for page in pages() if page.action in GRANTED[role]}
    assert walker.menu() == {page.path for page in pages() if page.menu and page.path in may}
    for page in pages():
        answer = visitor.go(places[page.path])
        if page.path not in may:
            assert answer.status == 403, page.path
            assert page.action in visitor.text, page.path
            assert visitor.page.locator("main.c-main :is(.c-table, .c-figure, form)").count() == 0, page.path
        else:
            assert answer.status == 200, f"{page.path}: {visitor.text[:200]}"
            assert visitor.page.locator("main .c-trouble").count() == 0, f"{page.path}: {visitor.text[:200]}"
            assert visitor.page.inner_text("main h1"), page.path


@pytest.mark.parametrize("role", ROLES)
def test_what_is_not_there_is_said(walk: Any, role: str) -> None:
    visitor = walk(role).visitor
    paths = {page.path.partition("{")[0] + ABSENT: page.action for page in pages() if "{" in page.path}
    for path, action in paths.items():
        answer = visitor.go(path)
        assert answer.status == (404 if action in GRANTED[role] else 403), path
        assert visitor.page.locator("main .c-trouble").count(), path


def test_who_has_not_signed_in_sees_the_door_and_nothing_else(walk: Any, places: dict[str, str], console: str) -> None:
    visitor = walk("").visitor
    for path in places.values():
        visitor.page.goto(console + path)
        assert "/login?next=" in visitor.page.url, path
        assert visitor.page.locator(".c-menu").count() == 0
    answer = visitor.page.request.get(console + "/audit", headers={"accept": "application/json"}, max_redirects=0)
    assert answer.status == 401


ACTS = {"audit.search", "audit.verify"}
"""Names that the audit's own rows have, where somebody looked at it before."""


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_page_in_both_languages_on_a_phone(walk: Any, places: dict[str, str], language: str) -> None:
    walker = walk("admin", language=language, size=PHONE, dark="dark" if language == "zh" else "light")
    visitor = walker.visitor
    for page in pages():
        visitor.go(places[page.path])
        assert not visitor.too_wide(), page.path
        unsaid = {key.partition(".")[0] for key in words()}
        shown = set(re.findall(r"(?<![\w/])([a-z]+\.[a-z_]+)", visitor.text)) - ACTS
        unsaid &= {key.partition(".")[0] for key in shown}
        assert not unsaid, f"words that are missing on {page.path}"
        title = visitor.page.inner_text("main h1")
        if page.menu and language == "zh":
            assert any("\u4e00" <= letter <= "\u9fff" for letter in title), f"{page.path}: {title}"
        assert visitor.page.get_attribute("html", "lang") == ("zh-CN" if language == "zh" else "en-US")


def test_every_page_and_tab_is_one_landmark_whose_fields_and_buttons_have_names(
    walk: Any, places: dict[str, str], console: str
) -> None:
    visitor = walk("admin").visitor
    wrong: dict[str, list[str]] = {}
    for path in [*places.values(), "/" + ABSENT, "/runs/" + ABSENT]:
        visitor.go(path)
        tabs = visitor.page.eval_on_selector_all(
            ".c-tabs a:not([aria-current])", "all => all.map(one => one.pathname + one.search)"
        )
        wrong[path] = visitor.unfit()
        for tab in tabs:
            visitor.go(tab)
            wrong[tab] = visitor.unfit()
    visitor = walk("").visitor
    visitor.page.goto(f"{console}/login?language=zh")
    wrong["login"] = visitor.unfit()
    assert len(wrong) > len(places) + 10, "tabs are looked at too"
    assert {path: found for path, found in wrong.items() if found} == {}


def test_every_page_of_the_menu_is_reached_by_keyboard(walk: Any) -> None:
    visitor = walk("admin").visitor
    visitor.go("/")
    wanted = {page.path for page in pages() if page.menu}
    seen: set[str] = set()
    for _ in range(4 * len(wanted) + 20):
        visitor.page.keyboard.press("Tab")
        here = visitor.page.evaluate("document.activeElement.closest('.c-menu a')?.pathname || ''")
        seen.add(here)
        if wanted <= seen:
            break
    assert wanted <= seen
    visitor.page.focus('.c-menu a[href$="/audit"]')
    visitor.page.keyboard.press("Enter")
    visitor.page.wait_for_url("**/audit")


def test_a_dropped_connection_keeps_what_was_typed(walk: Any) -> None:
    visitor = walk("admin").visitor
    visitor.go("/audit")
    field = visitor.page.locator("main input.q-field__native").first
    field.fill("half a thought")
    for _ in range(2):
        visitor.drop()
    assert field.input_value() == "half a thought"
    assert visitor.page.inner_text("main h1") == "Audit"
