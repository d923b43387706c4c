"""The playground in a real browser before a real gateway: streams, stop, opinions, and what is refused."""

from __future__ import annotations

import pytest

from catena.sdk import Catena
from tests.console.conftest import EVIL, PHONE, Small, Visit, Visitor

pytestmark = pytest.mark.xdist_group("console")


def opened(visit: Visit, role: str = "user", path: str = "/playground?model=echo", **options: object) -> Visitor:
    visitor = visit(role, **options)
    visitor.go(path)
    return visitor


def ask(visitor: Visitor, text: str) -> None:
    visitor.page.get_by_label("Your message").fill(text)
    visitor.page.get_by_label("Your message").press("Enter")


def has(visitor: Visitor, words: str, place: str = "body") -> None:
    visitor.page.wait_for_function(
        "([words, place]) => [...document.querySelectorAll(place)].some(one => one.innerText.includes(words))",
        arg=[words, place],
    )


def test_two_models_answer_side_by_side(visit: Visit, gateway: str) -> None:
    visitor = opened(visit, path="/playground?model=echo&second=other")
    ask(visitor, f"hello 你好 {EVIL[:60]}")
    has(visitor, "you said hello 你好", ".c-answer")
    has(visitor, "a quite other answer", ".c-answer")
    visitor.page.locator(".c-answeracts").nth(1).wait_for()
    assert visitor.page.title().startswith("Playground")
    ask(visitor, "and again")
    has(visitor, "you said and again", ".c-answer")
    visitor.page.wait_for_function("document.querySelectorAll('.c-asked').length === 4")
    assert not visitor.errors


def test_an_answer_is_stopped_where_the_person_says_so(visit: Visit, gateway: str) -> None:
    visitor = opened(visit, path="/playground?model=slow")
    ask(visitor, "count")
    has(visitor, "one two", ".c-answer")
    visitor.page.get_by_role("button", name="Stop").click()
    has(visitor, "stopped", ".c-answeracts")
    said = visitor.page.inner_text(".c-answer")
    assert len(said.split()) < 150
    visitor.page.get_by_role("button", name="Send").wait_for()


def test_an_answer_is_no_part_of_the_conversation_that_was_begun_meanwhile(visit: Visit, gateway: str) -> None:
    visitor = opened(visit, path="/playground?model=slow")
    ask(visitor, "count")
    has(visitor, "one two", ".c-answer")
    visitor.page.get_by_role("button", name="New conversation").click()
    visitor.page.get_by_role("button", name="Send").wait_for()
    assert visitor.page.locator(".c-asked, .c-answer, .c-answeracts").count() == 0
    assert not visitor.errors


def test_opinions_go_where_the_next_dataset_is_made(visit: Visit, gateway: str, small: Small) -> None:
    visitor = opened(visit)
    visitor.page.get_by_text("Settings").click()
    visitor.page.get_by_text("may be learnt from").click()
    ask(visitor, "rate me")
    visitor.page.get_by_role("button", name="Good answer").click()
    has(visitor, "Your opinion is kept")
    visitor.page.get_by_role("button", name="Correct it").click()
    visitor.page.get_by_label("What should the answer have been?").fill("better so")
    visitor.page.get_by_role("button", name="Save").click()
    visitor.page.wait_for_selector('[aria-label="Bad answer"][aria-pressed="true"]')
    with Catena(gateway, key=small.keys["admin"]) as catena:
        [told] = [one for one in catena.feedbacks() if one.model == "echo"]
    assert (told.rating, told.corrected, told.consent, told.revision) == ("down", True, True, 2)
    assert not visitor.errors


def test_what_is_refused_says_why_and_the_message_is_not_lost(visit: Visit, gateway: str) -> None:
    visitor = opened(visit)
    ask(visitor, "you f u c k i n g fool")
    has(visitor, "Moderation does not let this message through", ".c-trouble")
    # It is back once every side has said that it does not take it, a moment later.
    visitor.page.wait_for_function(
        """() => document.querySelector('[aria-label="Your message"]').value === 'you f u c k i n g fool'"""
    )
    limited = opened(visit, "developer", path="/playground?model=rare")
    ask(limited, "first")
    has(limited, "you said first", ".c-answer")
    limited.page.locator(".c-answeracts").wait_for()
    ask(limited, "second")
    has(limited, "too much in a short time", ".c-trouble")
    assert not visitor.errors


def test_a_stream_that_breaks_off_is_said_and_what_came_or_was_asked_is_kept(visit: Visit, gateway: str) -> None:
    visitor = opened(visit)
    ask(visitor, "please cut this answer in the middle")
    visitor.page.wait_for_selector(".c-answer .c-trouble")
    # Moderation holds back the last words of a stream until it has seen what follows: here that is all that came.
    visitor.page.wait_for_function(
        """() => document.querySelector('[aria-label="Your message"]').value.startsWith('please cut')
            || document.querySelector('.c-answeracts')?.innerText.includes('broke off')"""
    )
    visitor.page.get_by_role("button", name="Send").wait_for()
    assert not visitor.errors


def test_where_an_answer_comes_from_is_for_developers(visit: Visit, gateway: str) -> None:
    visitor = opened(visit, "developer", path="/playground?model=other")
    ask(visitor, "hello")
    visitor.page.get_by_role("button", name="Where does this come from?").click()
    has(visitor, "not stored in this workspace", ".c-dialog")
    user = opened(visit, path="/playground?model=other")
    ask(user, "hello")
    user.page.locator(".c-answeracts").wait_for()
    assert not user.page.get_by_role("button", name="Where does this come from?").count()


def test_a_dropped_connection_loses_neither_talk_nor_what_is_typed(visit: Visit, gateway: str) -> None:
    visitor = opened(visit)
    ask(visitor, "remember this")
    visitor.page.locator(".c-answeracts").wait_for()
    visitor.page.get_by_label("Your message").fill("half a thought")
    visitor.drop()
    assert visitor.page.get_by_label("Your message").input_value() == "half a thought"
    assert "you said remember this" in visitor.text
    visitor.page.get_by_label("Your message").press("Enter")
    has(visitor, "you said half a thought", ".c-answer")


def test_it_works_in_chinese_on_a_phone(visit: Visit, gateway: str) -> None:
    visitor = opened(visit, language="zh", size=PHONE, dark="dark")
    visitor.page.get_by_label("输入消息").fill("你好")
    visitor.page.get_by_role("button", name="发送").click()
    has(visitor, "you said 你好", ".c-answer")
    assert not visitor.too_wide()
    assert not visitor.errors
