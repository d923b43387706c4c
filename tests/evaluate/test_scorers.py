"""Scorers: what counts as the same answer."""

from __future__ import annotations

import unicodedata

from catena.core.generate import SCORERS
from catena.evaluate.scorers import contains, exact


def test_exact_passes_over_spaces_and_line_breaks_only() -> None:
    assert exact("Return  a\nstring. ", " Return a string.", {}) == 1.0
    assert exact("return a string.", "Return a string.", {}) == 0.0
    assert exact("Return a string", "Return a string.", {}) == 0.0


def test_exact_takes_two_spellings_of_one_character_as_equal() -> None:
    assert exact(unicodedata.normalize("NFD", "café"), "café", {}) == 1.0
    assert exact("返回 字符串。", "返回\u3000字符串。", {}) == 1.0


def test_contains_finds_the_reference_inside_the_answer() -> None:
    assert contains("It says: Return a\nstring. Good.", "Return a string.", {}) == 1.0
    assert contains("Return", "Return a string.", {}) == 0.0
    assert contains("anything", " ", {}) == 0.0


def test_both_are_found_by_name() -> None:
    assert SCORERS.load("exact") is exact
    assert SCORERS.load("contains") is contains
