"""Configs refuse what they do not know, and say what was meant."""

from __future__ import annotations

import pytest
from pydantic import Field

from catena.core.config import Config, describe, override, parse
from catena.core.errors import ConfigError, UsageError


class Inner(Config):
    rate: float = Field(0.1, gt=0)
    """How fast."""


class Outer(Config):
    steps: int
    """How many."""
    inner: Inner = Inner()
    phases: list[Inner] = Field(default_factory=list)
    """One after the other."""


def test_equal_values_have_equal_digests_and_other_values_others() -> None:
    assert Outer(steps=1).digest() == Outer(steps=1, inner=Inner(rate=0.1)).digest()
    assert Outer(steps=1).digest() != Outer(steps=2).digest()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 1, "stps": 2}, "unknown key 'stps'. Did you mean 'steps'?"),
        ({"steps": 1, "inner": {"rte": 1}}, "inner.rte: unknown key 'rte'. Did you mean 'rate'?"),
        ({"steps": 1, "phases": [{"rat": 1}]}, "phases.0.rat: unknown key 'rat'. Did you mean 'rate'?"),
        ({}, "steps: a value is required"),
        ({"steps": "many"}, "steps: a number is wanted (got 'many')."),
        ({"steps": True}, "steps: a number is wanted (got True)."),
        ({"steps": 1, "inner": {"rate": "0.1"}}, "inner.rate: a number is wanted"),
        ({"steps": 1, "inner": {"rate": 0}}, "greater than 0"),
    ],
)
def test_a_mistake_is_said_with_its_place(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Outer, values, where="here")
    assert message in caught.value.message
    assert caught.value.exit_code == 2


def test_every_field_is_described_with_its_help() -> None:
    rows = {row.name: row for row in describe(Outer)}
    assert rows["steps"].required
    assert rows["inner.rate"].help == "How fast."
    assert rows["inner.rate"].default == 0.1
    assert rows["phases"].type == "list[Inner]" or "Inner" in rows["phases"].type


def test_overrides_read_yaml_and_leave_the_original_alone() -> None:
    values = {"a": {"b": 1}}
    assert override(values, ["a.b=2.5", "a.c=[x, y]", "d=true"]) == {"a": {"b": 2.5, "c": ["x", "y"]}, "d": True}
    assert values == {"a": {"b": 1}}


@pytest.mark.parametrize("assignment", ["a.b", "=1", "a.b.c=1", "a.b=[1", "a.b=2024-02-30"])
def test_a_wrong_override_is_refused(assignment: str) -> None:
    with pytest.raises(UsageError):
        override({"a": {"b": 1}}, [assignment])
