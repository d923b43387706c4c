"""YAML with line numbers: what is too large, too deep, or no value of its kind is refused before anything uses it."""

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


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("2024-02-30", "'2024-02-30' cannot be read as timestamp"),
        ("9" * 5000, f"'{'9' * 40}...' cannot be read as int"),
        ("0x_", "'0x_' cannot be read as int"),
        ("!!int ''", "'' cannot be read as int"),
        ("!!bool perhaps", "'perhaps' cannot be read as bool"),
        ("!!timestamp soon", "'soon' cannot be read as timestamp"),
        (".nan", "'.nan' cannot be read as float"),
        ("{2024-02-30: 1}", "'2024-02-30' cannot be read as timestamp"),
    ],
)
def test_a_value_that_is_none_is_told_with_its_line(written: str, wanted: str) -> None:
    with pytest.raises(RecipeError) as refused:
        parse_source(f"name: r\nday: {written}\n", "r.yaml")
    assert refused.value.message == f"r.yaml:2: {wanted}"
    assert "quotes" in refused.value.hint
    assert parse_source(f'day: "{written}"', "r.yaml").values == {"day": written}


def test_three_thousand_brackets_are_refused() -> None:
    with pytest.raises(RecipeError, match="nested too deeply"):
        parse_source("[" * 3000 + "]" * 3000, "deep.yaml")
