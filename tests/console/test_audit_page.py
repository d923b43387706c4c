"""The audit in a real browser: search page by page, a verification that shows the first break, only for admins."""

from __future__ import annotations

from pathlib import Path

import pytest

from catena.govern.audit.log import Log
from catena.govern.config import AuditConfig
from tests.console.conftest import EVIL, PHONE, Small, Visit, Visitor

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


def test_a_search_goes_page_by_page(visit: Visit, filled: Path) -> None:
    visitor = visit("admin")
    visitor.go("/audit?subject=lovelace")
    has(visitor, "question 119")
    visitor.page.get_by_role("button", name="Older").click()
    has(visitor, "question 60")
    assert "question 119" not in visitor.text
    visitor.page.get_by_role("button", name="Newest").click()
    has(visitor, "question 119")
    visitor.page.get_by_label("Words anywhere").fill("question 7 ")
    visitor.page.get_by_label("Words anywhere").press("Enter")
    has(visitor, "question 7 <script>")
    visitor.page.locator("details.c-entry summary").first.click()
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
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[len(changed) // 2] ^= 1
    try:
        path.write_bytes(bytes(changed))
        visitor.page.get_by_role("button", name="Verify").click()
        has(visitor, "The audit was changed.")
        has(visitor, "The first break is at")
    finally:
        path.write_bytes(whole)
    other = visit("admin", language="zh")
    other.go("/audit")
    has(other, "审计记录被改动")
    assert not visitor.errors


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
