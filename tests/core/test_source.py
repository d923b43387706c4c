"""YAML with line numbers, where it is too large: refused by its count of values, before it is read into nodes."""

from __future__ import annotations

import pytest

from catena.core.errors import RecipeError
from catena.core.source import MAX_VALUES, parse_source


def test_a_file_of_a_hundred_thousand_lines_is_refused_with_its_line() -> None:
    text = "name: big\nsteps:\n" + "".join(f"  s{number}: {{a: 1, b: 2}}\n" for number in range(100_000))
    with pytest.raises(RecipeError) as refused:
        parse_source(text, "big.yaml")
    assert f"more than {MAX_VALUES:,} values" in refused.value.message
    assert refused.value.message.startswith("big.yaml:")
    assert "file of their own" in refused.value.hint


def test_aliases_of_aliases_are_refused_too() -> None:
    text = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    text += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 7))
    with pytest.raises(RecipeError, match="more than 100,000 values"):
        parse_source(text, "bomb.yaml")


def test_a_large_file_that_is_within_bounds_is_read() -> None:
    text = "rows:\n" + "".join(f"- {number}\n" for number in range(60_000))
    source = parse_source(text, "rows.yaml")
    assert len(source.values["rows"]) == 60_000
    assert source.where(("rows", 41)) == "rows.yaml:43"
