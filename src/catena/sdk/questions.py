"""Questions for `decisions`, in the form in which they are sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def predicate(statement: str, *, name: str | None = None) -> dict[str, Any]:
    """Ask whether a statement is true; the answer is its probability."""
    return {"type": "predicate", "instructions": statement, **_named(name)}


def choice(question: str, values: Sequence[str] | Mapping[str, str], *, name: str | None = None) -> dict[str, Any]:
    """Ask which of several values; a mapping gives a description to each."""
    return {"type": "choice", "instructions": question, "choices": _options("value", values), **_named(name)}


def score(question: str, levels: Sequence[str] | Mapping[str, str], *, name: str | None = None) -> dict[str, Any]:
    """Ask how much, on levels from the least to the most."""
    return {"type": "score", "instructions": question, "levels": _options("label", levels), **_named(name)}


def _options(key: str, values: Sequence[str] | Mapping[str, str]) -> list[dict[str, Any]]:
    if isinstance(values, Mapping):
        return [{key: value, "description": told} for value, told in values.items()]
    return [{key: value} for value in values]


def _named(name: str | None) -> dict[str, Any]:
    return {} if name is None else {"name": name}
