"""The audit in a real browser: search page by page, a verification that shows the first break, only for admins."""

from __future__ import annotations

from pathlib import Path

import pytest

import catena
from catena.govern.audit.log import Log
from catena.govern.config import AuditConfig
from tests.console.conftest import EVIL, PHONE, Small, Visit, Visitor, running

pytestmark = pytest.mark.xdist_group("console")


@pytest.fixture(scope="module")
def filled(small: Small) -> Path:
    with Log(small.root, AuditConfig()) as log:
        for number in range(120):
            body = {"messages": [{"role": "user", "content": f"question {number} {EVIL if number == 7 else ''}"}]}
            request = {"kind": "request", "subject": "lovelace", "method": "POST", "path": "/v1/chat/completions"}
            log.act({**request, "model": "m", "id": f"req-{number}", "body": body}, "lovelace")
    return small.root


def has(visitor: Visitor, words: str) -> None:
    visitor.page.wait_for_function("words => document.body.innerText.includes(words)", arg=words)


def turn(path: Path, at: int) -> None:
    """Change one bit of a file, or change it back."""
    with path.open("r+b") as file:
        file.seek(at)
        held = file.read(1)[0]
        file.seek(at)
        file.write(bytes([held ^ 1]))


def test_a_search_goes_page_by_page(visit: Visit, filled: Path) -> None:
    visitor = visit("admin")
    visitor.go("/audit?subject=lovelace")
    has(visitor, "question 119")
    visitor.page.get_by_role("button", name="Older").click()
    has(visitor, "question 60")
    assert "question 119" not in visitor.text
    visitor.page.get_by_role("button", name="Newest").click()
    has(visitor, "question 119")
    visitor.page.get_by_label("Words anywhere").fill("question 7")
    visitor.page.get_by_label("Words anywhere").press("Enter")
    has(visitor, "question 7 <script>")
    visitor.page.locator("details.c-entry summary").last.click()
    assert '"id": "req-7"' in visitor.text
    assert visitor.page.title().startswith("Audit"), "what was asked is text"
    visitor.page.get_by_label("From (UTC)").fill("yesterday")
    visitor.page.get_by_role("button", name="Search", exact=True).click()
    has(visitor, "yesterday is no time")
    assert not visitor.errors


def test_a_verification_says_that_all_is_well_then_where_the_first_break_is(visit: Visit, filled: Path) -> None:
    visitor = visit("admin")
    visitor.go("/audit")
    visitor.page.get_by_role("button", name="Verify").click()
    has(visitor, "Everything is as it was written.")
    [path] = (filled / "audit" / "segments").glob("*.log")
    at = path.stat().st_size // 2
    turn(path, at)
    try:
        visitor.page.get_by_role("button", name="Verify").click()
        has(visitor, "The audit was changed.")
        has(visitor, "The first break is at")
        other = visit("admin", language="zh")
        other.go("/audit")
        has(other, "审计记录被改动")
    finally:
        turn(path, at)  # that searches were written behind it stays
    assert not visitor.errors


def test_a_log_that_was_cut_is_said_and_hides_nothing_else(visit: Visit, tmp_path: Path) -> None:
    root = tmp_path / ".catena"
    with catena.open(root), Log(root, AuditConfig()) as log:
        for number in range(3):
            log.act({"act": f"act {number}"})
    [path] = (root / "audit" / "segments").glob("*.log")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with running(root) as url:
        visitor = visit(at=url)
        visitor.go("/audit")
        assert "catena audit verify" in visitor.page.inner_text("main .c-trouble")
        assert "Change log of models" in visitor.text
        visitor.page.get_by_role("button", name="Verify").click()
        has(visitor, "The audit was changed.")
        assert not visitor.errors
        visitor.page.close()


def test_the_change_log_is_searched(visit: Visit, filled: Path) -> None:
    visitor = visit("admin")
    visitor.go("/audit")
    has(visitor, "production:")
    visitor.page.get_by_label("Search", exact=True).last.fill("no such model")
    has(visitor, "Nothing found.")


@pytest.mark.parametrize("role", ["developer", "user"])
def test_it_is_for_admins(visit: Visit, filled: Path, role: str) -> None:
    visitor = visit(role)
    assert visitor.go("/audit").status == 403
    assert "lovelace" not in visitor.text
    assert not visitor.page.locator('.c-menu a[href$="/audit"]').count()


def test_it_fits_a_phone(visit: Visit, filled: Path) -> None:
    visitor = visit("admin", language="zh", size=PHONE, dark="dark")
    visitor.go("/audit")
    has(visitor, "请求")
    assert not visitor.too_wide()
    assert not visitor.errors
