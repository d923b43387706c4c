"""Deployments in a real browser before a real gateway: what runs, two who promote at once, who may see it."""

from __future__ import annotations

from pathlib import Path

import pytest

import catena
from catena.sdk import Catena
from tests.console.conftest import PHONE, Small, Visit, Visitor, running as console_over

pytestmark = pytest.mark.xdist_group("console")
ASKED = [{"role": "user", "content": "hello there"}]


def has(visitor: Visitor, words: str) -> None:
    visitor.page.wait_for_function("words => document.body.innerText.includes(words)", arg=words)


def test_without_a_gateway_the_command_is_shown(visit: Visit, tmp_path: Path) -> None:
    with catena.open(tmp_path / ".catena"):
        pass
    with console_over(tmp_path / ".catena") as url:
        visitor = visit(at=url)
        visitor.go("/deployments")
        assert "catena up deploy.yaml" in visitor.text
        assert "catena tag MODEL@1 production" in visitor.text
        assert not visitor.errors
        visitor.page.close()


def test_what_runs_is_shown_as_it_changes(visit: Visit, gateway: str, small: Small) -> None:
    visitor = visit("developer")
    visitor.go("/deployments")
    has(visitor, "all models answer")
    assert gateway in visitor.text
    rows = visitor.page.locator(".c-card", has=visitor.page.get_by_role("heading", name="Replicas")).locator("tbody tr")
    assert rows.count() == 5
    assert all("ready" in text for text in rows.all_inner_texts())
    models = visitor.page.locator(".c-card", has=visitor.page.get_by_role("heading", name="Models", exact=True))
    assert "2/2" in models.locator("tr", has_text="echo").inner_text()
    with Catena(gateway, key=small.keys["user"]) as catena:
        for _ in range(12):
            list(catena.chat("other", ASKED))
    visitor.page.wait_for_function(
        """() => [...document.querySelectorAll('.c-figure')].some(
            one => one.innerText.includes('Requests per second') && !/\\n0$/.test(one.innerText.trim()))"""
    )
    assert not visitor.errors


def test_two_who_promote_at_once(visit: Visit, admin: Catena, gateway: str, small: Small) -> None:
    first, second = visit("admin"), visit("developer")
    with Catena(gateway, key=small.keys["developer"]) as developer:
        developer.start_release("echo", "echo-next", steps=[10, 50])
    for visitor in (first, second):
        visitor.go("/deployments")
        has(visitor, "Release of echo")
        visitor.page.get_by_role("button", name="Promote").wait_for(timeout=60_000)
        visitor.page.get_by_role("button", name="Promote").click()
        visitor.page.get_by_label("Why (for the change log)").fill(f"shown to be <b>good</b>, says {visitor.url}")
    admin.start_release("other", "echo-next")
    for visitor in (first, second):
        has(visitor, "Release of other")  # the cards are drawn anew, and the dialog stays with what was typed
    for visitor in (first, second):
        visitor.page.locator(".c-dialog").get_by_role("button", name="Promote").click()
    has(first, "echo-next is promoted")
    has(second, "somebody else was quicker")
    assert admin.release("echo").phase == "baking"
    admin.rollback("other", reason="it is in the way")
    for visitor in (first, second):
        has(visitor, "everybody has it")
        visitor.page.get_by_text("Release of other").wait_for(state="detached")
    second.page.get_by_role("button", name="Roll back").dblclick()
    second.press_in_dialog("Cancel")
    assert second.page.locator(".c-dialog").count() == 0, "a double click opens one dialog"
    assert admin.release("echo").phase == "baking", "nothing is done before it was said twice"
    second.page.get_by_role("button", name="Roll back").click()
    second.press_in_dialog("Roll back")
    has(second, "echo-next is rolled back")
    has(second, "No release is under way")
    mine = [one for one in admin.release_acts() if one.model == "echo"][-3:]
    assert [one.act for one in mine] == ["start", "promote", "rollback"]
    assert mine[1].by == "admin-key"
    assert "<b>good</b>" in mine[1].reason
    has(first, "No release is under way")
    assert "<b>good</b>" in first.text, "what people write is text"
    assert not first.errors
    assert not second.errors


def test_a_user_sees_nothing_of_it(visit: Visit, gateway: str) -> None:
    visitor = visit("user")
    assert visitor.go("/deployments").status == 403
    assert gateway not in visitor.text


def test_it_reads_well_in_chinese_on_a_phone(visit: Visit, gateway: str) -> None:
    visitor = visit("admin", language="zh", size=PHONE, dark="dark")
    visitor.go("/deployments")
    has(visitor, "所有模型均可用")
    assert not visitor.too_wide()
    assert not visitor.errors


def test_a_gateway_that_goes_away_is_said(visit: Visit, small: Small, gateway: str) -> None:
    visitor = visit("admin")
    visitor.go("/deployments")
    has(visitor, "all models answer")
    visitor.page.context.set_offline(True)
    visitor.page.wait_for_function("!window.socket.connected")
    visitor.page.context.set_offline(False)
    visitor.page.wait_for_function("window.socket.connected")
    has(visitor, "all models answer")
