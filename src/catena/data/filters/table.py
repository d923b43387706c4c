"""Every filter's name and where it lives, and how a recipe's mapping of filters becomes rules.

A filter is a `Config` with a method `reason(sample) -> str | None`: the reason code for keeping a sample back, or None.
Another package adds one by an entry point `filter:<name>` in the group `catena.plugins`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from catena.core.config import Config, check
from catena.core.errors import NotFound
from catena.core.registry import Registry
from catena.core.sample import Sample

FILTERS = Registry(
    "filter",
    {
        "c4": "catena.data.filters.c4:C4",
        "fineweb": "catena.data.filters.fineweb:FineWeb",
        "languages": "catena.data.filters.languages:Languages",
        "length": "catena.data.filters.length:Length",
        "quality": "catena.data.filters.quality:Quality",
        "repetition": "catena.data.filters.repetition:Repetition",
    },
)


class Filter(Protocol):
    """The rule of a filter's config."""

    def reason(self, sample: Sample) -> str | None:
        """Return the reason code for keeping the sample back, or None to let it go on."""
        ...


def parse_filters(values: Mapping[str, Any]) -> dict[str, Config]:
    """Turn `{name: {field: value}}` into configs, ordered by name; raises `ValueError` that names every mistake."""
    if not isinstance(values, Mapping):
        raise ValueError("filters is a mapping of filter names to their fields")
    filters: dict[str, Config] = {}
    mistakes: list[str] = []
    for name in sorted(values):
        value = values[name]
        if isinstance(value, Config):
            filters[name] = value
            continue
        try:
            rule = FILTERS.load(name)
        except NotFound as error:
            mistakes.append(f"{error.message}. {error.hint}")
            continue
        if not isinstance(value, Mapping | None):
            mistakes.append(f"{name}: its fields are a mapping, for example {{}}")
            continue
        config, problems = check(rule, value or {})
        mistakes += [f"{name}.{problem.line()}" for problem in problems]
        if not hasattr(rule, "reason"):
            mistakes.append(f"{name}: {rule.__name__} has no method reason(sample)")
        elif config is not None:
            filters[name] = config
    if mistakes:
        raise ValueError("; ".join(mistake.rstrip(".") for mistake in mistakes))
    return filters
