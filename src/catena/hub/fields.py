"""Fields: what a sample of each shape must hold, and nothing else. What more is known of a sample is its metadata.

A field that no table has a column for would be lost without a word, and one that is missing would be stored as nothing
and stop a training hours later; both are refused by name where they come in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from catena.core.errors import DataError, UsageError, did_you_mean
from catena.core.types import DatasetVersion, Shape

FIELDS: dict[Shape, dict[str, type]] = {
    "document": {"text": str},
    "conversation": {"messages": list},
    "example": {"input": str, "output": str},
    "media": {"content": bytes, "media_type": str},
}
TURN = {"role": str, "content": str}
"""Fields of one message of a conversation."""
MADE_BY: dict[Shape, str] = {
    "document": "Documents come from data.extract, data.ingest, or `catena data commit` of rows with a text.",
    "conversation": "Conversations come from data.converse, or `catena data commit` of rows with messages.",
    "example": "Examples come from data.definitions, or `catena data commit` of rows with input and output.",
    "media": "Pages come from data.crawl and the other collectors.",
}
"""What to do for a dataset of a shape."""
WORDS = {str: "text", list: "a list", bytes: "bytes", type(None): "nothing", dict: "an object"}


def check_fields(shape: Shape, data: Mapping[str, Any], who: str) -> None:
    """Raise `DataError` that names the first field of `data` that is unknown, missing, or of another type.

    `who` begins the sentence: the sample's id, or the row's number.
    """
    _check(FIELDS[shape], data, who, f"{'An' if shape == 'example' else 'A'} {shape} has")
    if shape == "conversation":
        for number, turn in enumerate(data["messages"], 1):
            here = f"message {number} of {who}"
            if not isinstance(turn, Mapping):
                raise DataError(f"{here} is {_kind(turn)}, not role and content")
            _check(TURN, turn, here, "A message has")


def need_shape(data: DatasetVersion, *shapes: Shape, what: str = "source") -> None:
    """Raise `UsageError` for a dataset that is of none of some shapes; `what` is the stage's input."""
    if data.shape not in shapes:
        wanted = " or ".join(f"{shape}s" if shape != "media" else "media" for shape in shapes)
        raise UsageError(
            f"{what} has to be a dataset of {wanted}; {data.digest[:12]} is of the shape {data.shape!r}",
            hint=f"`catena show {data.digest[:12]} --samples` shows what it holds. {MADE_BY[shapes[0]]}",
        )


def _check(fields: Mapping[str, type], data: Mapping[str, Any], who: str, has: str) -> None:
    if data.keys() != fields.keys():
        known = f"{has}: {', '.join(fields)}. Anything else belongs into the metadata."
        unknown = sorted(map(str, data.keys() - fields.keys()))
        if unknown:
            raise DataError(f"{who} has an unknown field {unknown[0]!r}", hint=f"{near(unknown[0], fields)}{known}")
        missing = next(name for name in fields if name not in data)
        raise DataError(f"{who} has no field {missing!r}", hint=known)
    for name, kind in fields.items():
        if not isinstance(data[name], kind):
            raise DataError(f"the field {name!r} of {who} is {_kind(data[name])}, not {WORDS[kind]}")


def near(word: str, known: Iterable[str]) -> str:
    """Return `Did you mean 'x'? ` where a known word is close, else nothing."""
    told = did_you_mean(word, known)
    return f"{told} " if told.startswith("Did") else ""


def _kind(value: Any) -> str:
    return WORDS.get(type(value), f"of the type {type(value).__name__}")
