"""Sample: one record of a dataset, `(data, metadata)`, with its identity, source, licence and parents.

Shapes and the fields of `data` (the columns of the table):

    document       text: str
    conversation   messages: [{role, content}]
    example        input: str, output: str
    media          content: bytes, media_type: str
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from catena.core.digest import digest_of, sha256


@dataclass(frozen=True, slots=True)
class Sample:
    """One record. `parents` are ids of the samples it was made from, so that an answer leads back to its page."""

    id: str
    data: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    license: str | None = None
    parents: tuple[str, ...] = ()
    split: str | None = None

    @property
    def text(self) -> str:
        """The text of a document, or all messages of a conversation, or input and output of an example."""
        if "text" in self.data:
            return str(self.data["text"])
        if "messages" in self.data:
            return "\n".join(str(message["content"]) for message in self.data["messages"])
        return "\n".join(str(self.data[key]) for key in ("input", "output") if key in self.data)

    def value(self, path: str) -> Any:
        """Return a field of the data, or what a dotted path leads to in the metadata (`url`, `fields.author`), or None.

        `metadata.url` is the same as `url`: so a field is named where whole rows are compared.
        """
        if path in self.data:
            return self.data[path]
        return dig(self.metadata, path.removeprefix("metadata."))

    def derive(self, data: Mapping[str, Any], *, key: str = "", metadata: Mapping[str, Any] | None = None) -> Sample:
        """Make a new sample from this one: same source and licence, this one as parent, an id of its own.

        `key` tells several children of one parent apart when their data may be equal.
        """
        return Sample(
            id=sample_id(self.id, key, data),
            data=data,
            metadata=self.metadata if metadata is None else metadata,
            source=self.source,
            license=self.license,
            parents=(self.id,),
            split=self.split,
        )

    def with_text(self, text: str) -> Sample:
        """Return a document with another text, the same identity and the same parents (an edit, not a new record)."""
        return replace(self, data={**self.data, "text": text})


def dig(value: Any, path: str) -> Any:
    """Return what a dotted path (`data.items.0.name`) leads to, the value itself for an empty one, or None.

    A name that has a dot in it wins over a way through two names.
    """
    if not path or (isinstance(value, Mapping) and path in value):
        return value[path] if path else value
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def sample_id(*parts: Any) -> str:
    """Return a stable id of 24 hexadecimal digits (96 bits) for the given parts; bytes count by their SHA-256."""
    plain = [_plain(part) for part in parts]
    return digest_of(plain)[:24]


def _plain(part: Any) -> Any:
    if isinstance(part, bytes):
        return sha256(part)
    if isinstance(part, Mapping):
        return {str(key): _plain(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [_plain(item) for item in part]
    return part
