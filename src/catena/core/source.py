"""YAML with line numbers: the text of a recipe or a task as plain values, and where each of them stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from catena.core.errors import DataError, NotFound, RecipeError, WrittenError

Path_ = tuple[str | int, ...]
MAX_BYTES = 4 << 20
MAX_VALUES = 100_000
NOTHING_RAN = "Nothing was run."
UNREADABLE = (ValueError, LookupError, AttributeError)
"""What PyYAML raises for a date, a number or a truth value that is none: `2024-02-30`, `0x_`, `!!bool x`."""
TOO_MANY = "Put rows into a file of their own, and name it."


@dataclass(frozen=True)
class Source:
    """A YAML file: its values, and the line of each key."""

    name: str
    text: str
    values: Any
    lines: dict[Path_, int] = field(default_factory=dict)

    def where(self, path: Sequence[str | int] = ()) -> str:
        """Return `file:line` of the deepest part of `path` that stands in the file."""
        parts = tuple(path)
        while parts and parts not in self.lines:
            parts = parts[:-1]
        line = self.lines.get(parts)
        return f"{self.name}:{line}" if line else self.name


def read_source(path: Path, *, noun: str = "recipe", wrong: type[WrittenError] = RecipeError) -> Source:
    """Read a YAML file; raises `NotFound`, or `wrong` with the line of a syntax error or a key given twice.

    `noun` is what messages call the file.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise wrong(f"{path} has {size:,} bytes; a {noun} has at most {MAX_BYTES:,}")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        hint = "Shipped recipes are in the folder recipes/." if noun == "recipe" else ""
        raise NotFound(f"there is no {noun} file {path}", hint=hint) from None
    except IsADirectoryError:
        raise NotFound(f"{path} is a folder, not a {noun} file", hint="Name a YAML file in it.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start})", hint=f"A {noun} is a YAML file.") from error
    return parse_source(text, str(path), wrong)


def parse_source(text: str, name: str, wrong: type[WrittenError] = RecipeError) -> Source:
    """Parse YAML text; see `read_source`."""
    try:
        _bound(text, name, wrong)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[Path_, int] = {}
        values = None if node is None else _build(node, (), lines, (name, wrong))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or error
        raise wrong(f"{where}: not valid YAML: {problem}", hint=NOTHING_RAN) from error
    except RecursionError:
        raise wrong(f"{name}: nested too deeply", hint=NOTHING_RAN) from None
    return Source(name, text, values, lines)


def _bound(text: str, name: str, wrong: type[WrittenError]) -> None:
    """Refuse a file of too many values before it is read into nodes, which takes ten times as long."""
    if text.count("\n") * 2 < MAX_VALUES and len(text) < MAX_BYTES // 8:
        return
    scalars = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        scalars += isinstance(event, yaml.ScalarEvent)
        if scalars > 2 * MAX_VALUES:  # a key and its value are two
            line = event.start_mark.line + 1 if event.start_mark else 0
            raise wrong(f"{name}:{line}: more than {MAX_VALUES:,} values", hint=f"{TOO_MANY} {NOTHING_RAN}")


def _build(node: yaml.Node, path: Path_, lines: dict[Path_, int], about: tuple[str, type[WrittenError]]) -> Any:
    name, wrong = about
    lines[path] = node.start_mark.line + 1
    if len(path) > 40:
        raise wrong(f"{name}:{lines[path]}: nested too deeply", hint=NOTHING_RAN)
    if len(lines) > MAX_VALUES:  # aliases of aliases can make a small file enormous
        raise wrong(f"{name}:{lines[path]}: more than {MAX_VALUES:,} values", hint=f"{TOO_MANY} {NOTHING_RAN}")
    if isinstance(node, yaml.MappingNode):
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = _value(key_node, about)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str | int):
                raise wrong(f"{name}:{line}: {key!r} cannot be a key", hint=NOTHING_RAN)
            if key in result:
                raise wrong(f"{name}:{line}: the key {key!r} is given twice", hint=NOTHING_RAN)
            result[key] = _build(value_node, (*path, key), lines, about)
            lines[(*path, key)] = line
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, index), lines, about) for index, item in enumerate(node.value)]
    return _value(node, about)


def _value(node: yaml.Node, about: tuple[str, type[WrittenError]]) -> Any:
    try:
        value = yaml.SafeLoader("").construct_object(node)
        finite = not isinstance(value, float) or isfinite(value)
    except UNREADABLE:
        finite = False
    if finite:
        return value
    name, wrong = about
    written, kind = str(node.value), node.tag.rpartition(":")[2]
    shown = written if len(written) <= 40 else f"{written[:40]}..."
    where = f"{name}:{node.start_mark.line + 1}"
    raise wrong(f"{where}: {shown!r} cannot be read as {kind}", hint=f"Put a text in quotes. {NOTHING_RAN}")
