"""The editor of a recipe in the browser: nothing that was typed is lost, whatever comes in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import catena
from catena.console.read.audit import config_of
from catena.govern.audit.reading import Query, entries
from tests.console.conftest import Small, Visit, Visitor, wait

pytestmark = pytest.mark.xdist_group("console")
GOOD = "name: edited\nsteps:\n  docs:\n    stage: data.ingest\n    with: {paths: [texts]}\n"
WRONG = "wrong: 1"
KEPT = "Object.keys(localStorage).some(key => key.startsWith('catena-'))"
SAID = "document.querySelector('.cm-content').innerText"


class Wire:
    """What goes between a window and the console; either way can be held up, as a slow line does."""

    def __init__(self, page: Any) -> None:
        self.held: dict[str, list[Callable[[], None]]] = {}
        self.heard = ""
        page.route_web_socket("**/socket.io/**", self._connected)

    def _connected(self, page: Any) -> None:
        server = page.connect_to_server()
        page.on_message(lambda message: self._pass("up", lambda: server.send(message)))
        server.on_message(lambda message: self._pass("down", lambda: page.send(message), str(message)))

    def _pass(self, way: str, send: Callable[[], None], message: str = "") -> None:
        self.heard += message
        if way in self.held:
            self.held[way].append(send)
        else:
            send()

    def hold(self, way: str) -> None:
        """Keep what goes this way from now on."""
        self.held[way] = []

    def let(self, way: str) -> None:
        """Send on what was kept."""
        for send in self.held.pop(way):
            send()


@pytest.fixture
def recipe(small: Small) -> Path:
    """A recipe to be edited."""
    file = small.root.parent / "recipes" / "edited.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(GOOD)
    return file


def edit(visitor: Visitor, text: str) -> None:
    """Open the recipe and write to its end."""
    visitor.go("/recipes/edited")
    visitor.page.wait_for_function("window.catenaDraft")
    write(visitor, text)


def write(visitor: Visitor, text: str) -> None:
    """Write to the end of what stands in the editor."""
    visitor.page.locator(".cm-content").click()
    visitor.page.keyboard.press("Control+End")
    visitor.page.keyboard.type(text)


def test_what_is_typed_while_a_check_is_on_its_way_stays(visit: Visit, recipe: Path) -> None:
    visitor = visit("developer")
    wire = Wire(visitor.page)
    edit(visitor, "")
    wire.hold("down")
    wire.heard = ""
    visitor.page.keyboard.type(WRONG)
    while "c-problem" not in wire.heard:
        visitor.page.wait_for_timeout(50)
    wire.hold("up")
    visitor.page.keyboard.type("23")
    wire.let("down")
    visitor.page.wait_for_selector(".c-problem")
    visitor.page.wait_for_selector(".c-wrongline")
    visitor.page.keyboard.type("4")
    wire.let("up")
    visitor.page.wait_for_function(f"{SAID}.includes('wrong: 1234')")
    visitor.page.click("button:has-text('Save')")
    visitor.page.wait_for_selector(".q-notification")
    assert recipe.read_text() == f"{GOOD}{WRONG}234"


def test_lines_that_are_wrong_are_marked_until_they_are_right(visit: Visit, recipe: Path) -> None:
    recipe.write_text(GOOD + WRONG)
    visitor = visit("developer")
    edit(visitor, "")
    marked = visitor.page.locator(".c-wrongline")
    marked.wait_for()
    assert marked.inner_text() == WRONG
    marked.hover(position={"x": 20, "y": 8})
    visitor.page.wait_for_selector(".cm-tooltip:has-text('wrong')")
    for _ in WRONG:
        visitor.page.keyboard.press("Backspace")
    marked.wait_for(state="detached")


def saves(root: Path) -> int:
    """Return how often the audit trail says that the recipe was saved."""
    with catena.open(root) as workspace:
        acts = list(entries(workspace.store.root, config_of(workspace), Query(kind="act", text="recipe.save")))
    return sum(act.get("recipe") == "edited" for act in acts)


def conflict(visitor: Visitor, recipe: Path) -> None:
    """Write to the recipe, and save it after somebody else did."""
    edit(visitor, "# mine")
    visitor.page.wait_for_function(KEPT)
    recipe.write_text(f"{GOOD}# theirs")
    visitor.page.click("button:has-text('Save')")
    visitor.page.wait_for_selector(".c-conflict")


def test_mine_over_theirs_is_saved_and_noted(visit: Visit, recipe: Path, small: Small) -> None:
    before = saves(small.root)
    visitor = visit("developer")
    conflict(visitor, recipe)
    visitor.page.click("text=Save mine over theirs")
    visitor.page.wait_for_selector(".q-notification:has-text('is saved')")
    visitor.page.wait_for_function(f"!({KEPT})")
    assert recipe.read_text() == f"{GOOD}# mine"
    wait(lambda: saves(small.root) == before + 1, 10)


def test_theirs_instead_of_mine_leaves_no_draft(visit: Visit, recipe: Path) -> None:
    visitor = visit("developer")
    conflict(visitor, recipe)
    visitor.page.click("text=Discard mine and load theirs")
    visitor.page.wait_for_function(f"{SAID}.includes('# theirs') && !({KEPT})")
    write(visitor, "# and mine")
    visitor.page.click("button:has-text('Save')")
    visitor.page.wait_for_selector(".q-notification:has-text('is saved')")
    assert "# and mine" in recipe.read_text()


def test_a_draft_that_is_discarded_does_not_come_again(visit: Visit, recipe: Path) -> None:
    visitor = visit("developer")
    edit(visitor, "# mine")
    visitor.page.wait_for_function(KEPT)
    visitor.page.on("dialog", lambda dialog: dialog.accept())
    visitor.go("/recipes/edited")
    visitor.page.click(".c-conflict button:has-text('Discard')")
    visitor.page.wait_for_function(f"!({KEPT}) && !{SAID}.includes('# mine')")
    assert not visitor.errors


def test_a_draft_writes_over_nothing_newer(visit: Visit, recipe: Path) -> None:
    visitor = visit("developer")
    edit(visitor, "# mine")
    visitor.page.wait_for_function(KEPT)
    recipe.write_text(f"{GOOD}# theirs")
    visitor.page.on("dialog", lambda dialog: dialog.accept())
    for more in (" and more", " and yet more"):  # the second time a draft of a draft
        visitor.go("/recipes/edited")
        visitor.page.click("text=Restore them")
        visitor.page.wait_for_function(f"{SAID}.includes('# mine')")
        visitor.page.click("button:has-text('Save')")
        visitor.page.wait_for_selector(".c-conflict:has-text('+# theirs')")
        assert recipe.read_text() == f"{GOOD}# theirs"
        write(visitor, more)
        visitor.page.wait_for_function(f"Object.values(localStorage).some(text => text.includes('{more}'))")
    visitor.page.click("text=Save mine over theirs")
    visitor.page.wait_for_function(f"!({KEPT})")
    assert recipe.read_text() == f"{GOOD}# mine and more and yet more"


def test_who_presses_save_twice_is_not_somebody_else(visit: Visit, recipe: Path, small: Small) -> None:
    before = saves(small.root)
    visitor = visit("developer")
    wire = Wire(visitor.page)
    edit(visitor, "# one")
    visitor.page.locator("button:has-text('Save')").dblclick()
    wait(lambda: saves(small.root) == before + 1, 10)
    edit(visitor, " and two")
    visitor.page.locator("button:has-text('Save')").dblclick()
    wait(lambda: recipe.read_text() == f"{GOOD}# one and two", 10)
    wait(lambda: saves(small.root) == before + 2, 10)
    assert "c-conflict" not in wire.heard


def test_who_presses_create_twice_is_not_somebody_else(visit: Visit, recipe: Path) -> None:
    made = recipe.with_name("twice.yaml")
    visitor = visit("developer")
    wire = Wire(visitor.page)
    visitor.go("/recipes")
    visitor.page.click("button:has-text('New recipe')")
    visitor.page.fill(".c-dialog input >> nth=0", made.stem)
    visitor.page.locator(".c-dialog").get_by_role("button", name="Create").dblclick()
    visitor.page.wait_for_url("**/recipes/twice")
    visitor.page.wait_for_selector(".cm-content:has-text('data.ingest')")
    assert "somebody else" not in wire.heard
    made.unlink()


def test_a_recipe_with_line_ends_of_another_system_is_edited_as_any_other(visit: Visit, recipe: Path) -> None:
    recipe.write_bytes(GOOD.replace("\n", "\r\n").encode())
    visitor = visit("developer")
    edit(visitor, "# mine")
    visitor.page.keyboard.press("ArrowUp")
    visitor.page.keyboard.press("End")
    visitor.page.keyboard.type(" # 和我的 😀")
    visitor.page.click("button:has-text('Save')")
    visitor.page.wait_for_selector(".q-notification:has-text('is saved')")
    assert recipe.read_bytes().decode() == GOOD.replace("[texts]}", "[texts]} # 和我的 😀") + "# mine"
