"""Configs: frozen, strict pydantic classes that stand directly above the stage they configure.

A config's attribute docstrings are its help. `parse` turns a person's mapping into a config, or into one `ConfigError`
that says where, what, and what was meant.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from catena.core.digest import digest_of
from catena.core.errors import ConfigError, UsageError, WrittenError, did_you_mean
from catena.core.source import parse_source


class Config(BaseModel):
    """Base of every config: immutable, refuses unknown keys, takes attribute docstrings as help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and "8" where a number is wanted: a recipe that says so means something else."""
        wanted = cls.model_fields[info.field_name].annotation if info.field_name else None
        if isinstance(value, bool | str) and _only_numbers(wanted):
            raise ValueError("a number is wanted")
        return value

    def digest(self) -> str:
        """Return the content address of all values, defaults included."""
        return digest_of(self.model_dump(mode="json"))

    def deciding(self) -> dict[str, Any]:
        """Return, as JSON, the values that decide what comes out; with the others changed, a step goes on."""
        return self.model_dump(mode="json")

    def after(self, stored: Callable[[], tuple[str, ...]]) -> Self:
        """Return these values with what was stored before under the output's name, if that decides what comes out.

        `stored` gives the digests, oldest first.
        """
        return self

    def modules(self) -> tuple[str, ...]:
        """Return the modules that these values choose (a filter by its name): their code is part of the step."""
        return ()

    def pinned(self, digest: Callable[[str], str], inputs: Collection[str]) -> Self:
        """Return these values with the digest of each stored thing that they name: it is part of the step.

        `digest` gives that of a name. `inputs` are those that the step is given.
        """
        return self


ConfigT = TypeVar("ConfigT", bound=Config)


def _only_numbers(annotation: Any) -> bool:
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return set(options) <= {int, float, type(None)}


class Problem(BaseModel):
    """One mistake in a config: the path of keys to it, a sentence, and a hint."""

    path: tuple[str | int, ...]
    message: str
    hint: str = ""

    def line(self) -> str:
        """Return the problem on one line."""
        where = ".".join(str(part) for part in self.path)
        return f"{where}: {self.message}".removeprefix(": ") + (f" {self.hint}" if self.hint else "")


def check(config: type[ConfigT], values: Mapping[str, Any]) -> tuple[ConfigT | None, list[Problem]]:
    """Validate `values`; return the config, or None and every problem found."""
    try:
        return config.model_validate(dict(values)), []
    except ValidationError as error:
        return None, [_problem(config, entry) for entry in error.errors(include_url=False)]


def parse(config: type[ConfigT], values: Mapping[str, Any], *, where: str = "") -> ConfigT:
    """Validate `values`, or raise one `ConfigError` that lists every problem."""
    result, problems = check(config, values)
    if result is not None:
        return result
    lines = "; ".join(problem.line() for problem in problems)
    raise ConfigError(f"{where + ': ' if where else ''}{lines}")


def _problem(config: type[BaseModel], entry: Any) -> Problem:
    path = tuple(entry["loc"])
    if entry["type"] == "extra_forbidden":
        known = _fields_at(config, path[:-1])
        return Problem(path=path, message=f"unknown key {path[-1]!r}.", hint=did_you_mean(str(path[-1]), known))
    if entry["type"] == "missing":
        return Problem(path=path, message="a value is required.")
    if entry["type"] == "too_short":
        return Problem(path=path, message=_too_few(entry["ctx"]["min_length"]))
    message = str(entry["msg"]).removeprefix("Value error, ")
    got = entry.get("input")
    shown = "" if isinstance(got, Mapping | list | tuple) else f" (got {got!r})"
    return Problem(path=path, message=f"{message}{shown}.")


def _too_few(least: int) -> str:
    return "it cannot be empty." if least == 1 else f"at least {least} values are needed."


def _fields_at(config: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """Return the names of the fields of the (nested) config class that `path` leads to."""
    current: Any = config
    for part in path:
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            continue  # an index of a list, or the tag of a union: the class is the same
        current = _config_class(field.annotation) or current
    return list(getattr(current, "model_fields", {}))


def _config_class(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) is None:
        return None
    return next((found for item in get_args(annotation) if (found := _config_class(item))), None)


def override(values: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return a copy of `values` with each `a.b=c` applied; `c` is read as YAML, so numbers and lists work.

    Raises `UsageError` when an assignment has no `=`, has a value that is no YAML, or leads through something that is
    not a mapping.
    """
    result: dict[str, Any] = _copy(values)
    for assignment in assignments:
        path, sign, text = assignment.partition("=")
        if not sign or not path.strip():
            raise UsageError(
                f"--set {assignment!r} is not of the form a.b=value", hint="For example: --set tune.epochs=2"
            )
        target = result
        *parents, last = path.strip().split(".")
        for part in parents:
            inner = target.setdefault(part, {})
            if not isinstance(inner, dict):
                raise UsageError(f"--set {assignment!r}: {part!r} is a value, not a section")
            target = inner
        target[last] = parse_source(text, f"--set {path}", WrittenError).values
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        # YAML 1.1 reads the key `on` as true.
        words = {True: "on", False: "off"}
        return {words[key] if isinstance(key, bool) else key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


class FieldHelp(BaseModel):
    """What `catena explain` and a form show of one field."""

    name: str
    type: str
    default: Any
    required: bool
    help: str


def describe(config: type[BaseModel], prefix: str = "") -> list[FieldHelp]:
    """List every field of a config, nested ones with dotted names, with type, default and help."""
    rows: list[FieldHelp] = []
    for name, field in config.model_fields.items():
        inner = (
            field.annotation if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel) else None
        )
        if inner is not None:
            rows.extend(describe(inner, f"{prefix}{name}."))
            continue
        required = field.is_required()
        default = None if required else field.get_default(call_default_factory=True, validated_data={})
        rows.append(
            FieldHelp(
                name=prefix + name,
                type=_type_name(field.annotation),
                default=_plain(default),
                required=required,
                help=field.description or "",
            )
        )
    return rows


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _type_name(annotation: Any) -> str:
    """Return a type as a person would write it: no `typing.`, and the bare type of an annotated one."""
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return " | ".join(_type_name(item) for item in get_args(annotation))
    if get_origin(annotation) is Literal:
        return " | ".join(repr(item) for item in get_args(annotation))
    if get_origin(annotation) is not None and annotation is not None:
        inner = ", ".join("..." if item is Ellipsis else _type_name(item) for item in get_args(annotation))
        return f"{_type_name(get_origin(annotation))}[{inner}]"
    if annotation is type(None):
        return "none"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
