"""The frame: signing in, what a role sees, language, dark, phone, and that everything has words in both languages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from catena.console.language import LANGUAGES, preferred, say, words
from catena.console.page import pages
from tests.console.conftest import PHONE, Visit

SOURCES = Path(__file__).parent.parent.parent / "src" / "catena" / "console"
USED = re.compile(r"""\bsay\(\s*(?:language,\s*)?(f?)["']([a-z_]+\.[A-Za-z0-9_{}.]+)["']""")
pytestmark = pytest.mark.xdist_group("console")


def test_every_word_is_there_in_both_languages() -> None:
    assert not [key for key, texts in words().items() if set(texts) != set(LANGUAGES) or not all(texts.values())]


def test_every_word_that_is_used_exists() -> None:
    known = set(words())
    missing = set()
    for file in [*SOURCES.rglob("*.py"), *SOURCES.rglob("*.jinja")]:
        for computed, key in USED.findall(file.read_text(encoding="utf-8")):
            plain = re.escape(key.partition("{")[0]) + ".+" if key.count("{") != key.count("}") else re.escape(key)
            pattern = plain if not computed else re.sub(r"\\\{.*?\\\}", ".+", plain)
            if not any(re.fullmatch(pattern, one) for one in known):
                missing.add(f"{file.name}: {key}")
    missing |= {f"{page.path}: {page.name}.title" for page in pages() if f"{page.name}.title" not in known}
    assert not missing


def test_placeholders_are_the_same_in_both_languages() -> None:
    found = {key: [set(re.findall(r"{(\w+)}", str(text))) for text in texts.values()] for key, texts in words().items()}
    assert not [key for key, (one, other) in found.items() if one != other]


def test_a_language_is_chosen_by_cookie_then_by_the_browser() -> None:
    assert preferred("zh", "en-GB,en;q=0.9") == "zh"
    assert preferred("", "fr, zh-TW;q=0.8, en;q=0.5") == "zh"
    assert preferred("xx", "fr") == "en"
    assert say("zh", "parts.minutes", {"n": 3}) == "3 分钟前"


def test_a_wrong_key_stays_outside_and_a_right_one_comes_in(visit: Visit, console: str) -> None:
    visitor = visit("")
    visitor.page.goto(f"{console}/?x=1")
    assert "/login?next=" in visitor.page.url
    visitor.page.fill("#key", "ctn_0123456789ab_" + "x" * 43)
    visitor.page.click("button[type=submit]")
    assert "not valid" in visitor.page.inner_text("[role=alert]")
    visitor.page.goto(f"{console}/login?language=zh")
    assert visitor.page.inner_text("h1") == "登录"


@pytest.mark.parametrize("role", ["admin", "developer", "user"])
def test_a_role_sees_its_pages_and_no_others(visit: Visit, role: str) -> None:
    from catena.govern.roles import GRANTED

    visitor = visit(role)
    visitor.go("/")
    shown = {
        link.split("/", 3)[-1] for link in visitor.page.eval_on_selector_all(".c-menu a", "all => all.map(a => a.href)")
    }
    menu = [page for page in pages() if page.menu]
    assert shown == {page.path.strip("/") for page in menu if page.action in GRANTED[role]}
    for page in menu:
        answer = visitor.go(page.path)
        if page.action in GRANTED[role]:
            assert answer.status == 200, page.path
        else:
            assert answer.status == 403, page.path
            assert page.action in visitor.text
    assert not visitor.errors


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_page_fits_a_phone_and_the_dark(visit: Visit, language: str) -> None:
    visitor = visit(language=language, size=PHONE, dark="dark")
    for page in pages():
        if page.menu:
            visitor.go(page.path)
            assert not visitor.too_wide(), page.path
            assert visitor.page.inner_text("h1") if page.name != "audit" else True
            assert "body--dark" in visitor.page.get_attribute("body", "class")
    assert visitor.page.get_attribute("html", "lang") == ("zh-CN" if language == "zh" else "en-US")
    assert not visitor.errors


def test_the_menu_opens_on_a_phone(visit: Visit) -> None:
    visitor = visit(size=PHONE)
    visitor.go("/")
    assert not visitor.page.is_visible(".c-menu a")
    visitor.page.click(".c-burger")
    visitor.page.wait_for_selector(".c-menu a", state="visible")


def test_a_path_that_is_none_says_so(visit: Visit) -> None:
    visitor = visit()
    assert visitor.go("/no/such").status == 404
    assert "no such page" in visitor.text


def test_signing_out_ends_the_session(visit: Visit, console: str) -> None:
    visitor = visit("user")
    before = visitor.page.context.cookies()
    (session,) = [one for one in before if one["name"].startswith("catena_console_")]
    assert session["httpOnly"]
    assert session["sameSite"] == "Strict"
    visitor.page.click("form button")
    visitor.page.wait_for_url("**/login")
    visitor.page.context.add_cookies([session])  # who kept the cookie has nothing
    visitor.page.goto(console)
    assert "/login" in visitor.page.url
