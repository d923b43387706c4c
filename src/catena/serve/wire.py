"""What all requests and answers have in common: strict bodies, errors in OpenAI's form. No I/O.

Every field of OpenAI's schemas either works or is refused by name, so that nobody believes that something was done
which was not. `null` counts as absent, as it does at OpenAI.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from catena.core.errors import UsageError, did_you_mean
from catena.core.generate import Completion


class WireError(UsageError):
    """A request that is refused, with the field's name and OpenAI's code for it."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code = param, code
        self.http_status = status


class Part(BaseModel):
    """A piece of a body: unknown keys and other types than those asked for are refused, null is absent."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _absent(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        return {key: inner for key, inner in value.items() if inner is not None or key not in known}


class Given(Part):
    """A whole body."""

    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Fields that the schema has and we do not: the values that ask for nothing, so that clients which send defaults
    are not refused."""


class Body(Given):
    """The body of a request to a model."""

    model: str


BodyT = TypeVar("BodyT", bound=Body)
GivenT = TypeVar("GivenT", bound=Given)


def parse(kind: type[GivenT], body: Any) -> GivenT:
    """Check a decoded body; raises `WireError` for the first mistake, with the field's path."""
    if not isinstance(body, dict):
        raise WireError("the body must be a JSON object")
    given = dict(body)
    for key in kind.NEUTRAL:
        value = given.pop(key, None)
        if value is not None:
            _refuse_unless_neutral(kind, key, value)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _mistake(kind, _first(error.errors(include_url=False), given), given) from error


def _refuse_unless_neutral(kind: type[Given], key: str, value: Any) -> None:
    # `1 == True` in Python, and `0 == False`: the types must agree as well, but 0 and 0.0 are one number in JSON.
    for neutral in kind.NEUTRAL[key]:
        if value == neutral and isinstance(value, bool) == isinstance(neutral, bool):
            return
    raise WireError(f"{key} is not supported by this server", param=key, code="unsupported_parameter")


def _first(entries: list[Any], body: Any) -> Any:
    """Choose the mistake to tell: the first; where a field may be of several types, that of the type that got furthest
    into it, and of that what is said about its type."""
    field = _field(entries[0]["loc"])
    same = [entry for entry in entries if _field(entry["loc"]) == field]
    return max(same, key=lambda entry: (len(_path(entry, body)), entry["loc"][-1] == "type"))


def _field(loc: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a field's name, with the number of the item where it is a list."""
    return loc[:2] if len(loc) > 1 and isinstance(loc[1], int) else loc[:1]


def _mistake(kind: type[Given], entry: Any, body: Any) -> WireError:
    path = _path(entry, body)
    name = ".".join(path)
    if entry["type"] == "extra_forbidden":
        known = [*kind.model_fields, *kind.NEUTRAL] if len(path) == 1 else []
        hint = did_you_mean(path[-1], known) if known else ""
        told = f" {hint}" if hint.startswith("Did") else ""
        return WireError(f"unknown parameter: {name}.{told}", param=name, code="unknown_parameter")
    if entry["type"] in ("missing", "union_tag_not_found"):
        return WireError(f"{name} is required", param=name, code="missing_required_parameter")
    if entry["type"] == "none_required":
        return WireError(f"{name} is not supported by this server", param=name, code="unsupported_parameter")
    code = "invalid_type" if entry["type"].endswith("_type") else "invalid_value"
    message = str(entry["msg"]).removeprefix("Value error, ")
    return WireError(f"{name}: {message[:1].lower()}{message[1:]}", param=name or None, code=code)


def _path(entry: Any, body: Any) -> list[str]:
    """Return where in the body a mistake is: its keys and numbers, without pydantic's words for the types it tried."""
    path: list[str] = []
    missing = entry["type"] == "missing"
    for part in entry["loc"][:-1] if missing else entry["loc"]:
        if isinstance(body, list) and isinstance(part, int) and part < len(body):
            body = body[part]
        elif isinstance(body, dict) and str(part) in body:
            body = body[str(part)]
        else:
            continue
        path.append(str(part))
    if missing:
        path.append(str(entry["loc"][-1]))
    if entry["type"].startswith("union_tag"):
        path.append(str(entry["ctx"]["discriminator"]).strip("'"))
    return path


def usage(completions: list[Completion], choices: int = 1) -> dict[str, Any]:
    """Count tokens: each prompt once, with what of it was in the prefix cache, and the answers of all choices."""
    prompts = completions[::choices]
    prompt = sum(completion.prompt_tokens for completion in prompts)
    answered = sum(completion.generated for completion in completions)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answered,
        "total_tokens": prompt + answered,
        "prompt_tokens_details": {"cached_tokens": sum(completion.cached_tokens for completion in prompts)},
    }


def error_body(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return an error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


MOST_DEEP = 64


def too_deep(data: bytes, value: Any) -> bool:
    """Tell whether JSON (as bytes, and read) is nested deeper than anything here needs: who walks it may recurse."""
    if data.count(b"[") + data.count(b"{") <= MOST_DEEP:
        return False
    level = [value]
    for _ in range(MOST_DEEP):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
