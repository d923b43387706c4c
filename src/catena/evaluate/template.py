"""Templates of tasks: Jinja in a sandbox, from a row of data to a text, or to a value.

A template sees the fields of one row and nothing else. One that is a single expression (`{{ choices }}`) can give its
value as it is: a list, a number. What would take the machine's memory or time (`'a' * 10**9`) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from catena.core.errors import DataError, did_you_mean
from catena.evaluate.words import detokenized

EXPRESSION = re.compile(r"\s*\{\{-?(.*?)-?\}\}\s*", re.DOTALL)
MOST_CHARACTERS = 1 << 20
SHOWN = 160


class _Environment(ImmutableSandboxedEnvironment):
    """No attribute that leads out of the data, and no product that is larger than a text of a task may be."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Multiply, within bounds."""
        sizes = [len(one) if isinstance(one, str | list | tuple) else None for one in (left, right)]
        if operator == "**" and (abs(left) > 1e6 or abs(right) > 64):
            raise SecurityError("a power that is too large")
        for size, times in ((sizes[0], right), (sizes[1], left)):
            if size is not None and isinstance(times, int) and size * times > MOST_CHARACTERS:
                raise SecurityError("a text that is too long")
        return super().call_binop(context, operator, left, right)


def _environment() -> _Environment:
    environment = _Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters.update(
        regex_replace=lambda text, pattern, by="": re.sub(pattern, by, str(text)),
        regex_search=_search,
        detokenized=detokenized,
        letter=lambda number: chr(ord("A") + int(number)),
    )
    environment.globals.clear()
    environment.globals.update(range=environment_range, zip=zip, enumerate=enumerate, len=len)
    return environment


def environment_range(*bounds: int) -> range:
    """Return a range of at most 10,000 numbers."""
    found = range(*bounds)
    if len(found) > 10_000:
        raise SecurityError("a range that is too long")
    return found


def _search(text: Any, pattern: str) -> str:
    found = re.search(pattern, str(text))
    return "" if found is None else found.group(found.lastindex or 0)


ENVIRONMENT = _environment()


class Template:
    """A text with holes, checked when it is made; raises `ValueError` where it does not parse."""

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            tree = ENVIRONMENT.parse(text)
            self._render = ENVIRONMENT.from_string(text).render
            match = EXPRESSION.fullmatch(text)
            self._value: Callable[..., Any] | None = None
            if match is not None and "{{" not in match[1] and "}}" not in match[1]:
                self._value = ENVIRONMENT.compile_expression(match[1], undefined_to_none=False)
        except TemplateSyntaxError as error:
            line = f" (line {error.lineno} of the template)" if "\n" in text else ""
            raise ValueError(f"the template does not parse: {error.message}{line}") from error
        self.names = frozenset(meta.find_undeclared_variables(tree) - ENVIRONMENT.globals.keys())

    def check(self, known: Iterable[str], where: str) -> None:
        """Raise `DataError` where the template names a field that no row has."""
        fields = set(known)
        for name in sorted(self.names - fields):
            raise DataError(
                f"{where}: the template {shortened(self.text)!r} names {name!r}, which the rows do not have",
                hint=did_you_mean(name, fields),
            )

    def text_of(self, row: Mapping[str, Any], where: str) -> str:
        """Return the text for a row; raises `DataError` with the row's place."""
        return str(self._run(self._render, row, where))

    def value_of(self, row: Mapping[str, Any], where: str) -> Any:
        """Return the value of a single expression, or else the text."""
        if self._value is None:
            return self.text_of(row, where)
        value = self._run(self._value, row, where)
        if isinstance(value, StrictUndefined):
            raise DataError(f"{where}: the template {shortened(self.text)!r} gives nothing for this row")
        return value

    def _run(self, function: Callable[..., Any], row: Mapping[str, Any], where: str) -> Any:
        try:
            return function(dict(row))
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError, re.error) as error:
            raise DataError(f"{where}: the template {shortened(self.text)!r} cannot be filled in: {error}") from error


def shortened(text: str) -> str:
    """Return a text on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 3] + "..."
