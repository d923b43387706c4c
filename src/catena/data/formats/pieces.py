"""What readers are given and what they return: a source with limits in, pieces (rows and rejects) out.

A reader is a generator `(source: Source) -> Iterator[Row | Reject]` over one file on this machine. What it cannot read
it raises as `Unreadable` with a reason code; it runs in a child process and need not defend itself against hanging.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from catena.core.config import Config
from catena.core.errors import did_you_mean
from catena.data.extract import Extractor
from catena.data.formats.table import Format, formats

EXCERPT = 500
"""Characters of a refused row that its reject keeps."""


class Limits(Config):
    """What one file may cost; whatever goes beyond becomes a reject with the reason."""

    seconds: float = Field(60.0, gt=0)
    """Longest time that a document may take without giving a row, in seconds (`timeout`)."""
    memory_bytes: int = Field(2 << 30, ge=512 << 20)
    """Most address space of the process that reads (`out_of_memory`); Linux and macOS only."""
    file_bytes: int = Field(16 << 30, ge=1)
    """Largest file (`too_large`)."""
    document_bytes: int = Field(256 << 20, ge=1)
    """Largest file of a format that is read as a whole: all but JSON lines, CSV, Parquet and archives (`too_large`)."""
    row_bytes: int = Field(10_000_000, ge=1)
    """Largest row of text, in UTF-8 (`too_large`)."""
    pages: int = Field(5000, ge=1)
    """Most pages, slides or sheets of a document (`too_many_pages`)."""
    pixels: int = Field(200_000_000, ge=1)
    """Most pixels of a picture, over all its frames (`too_large`)."""
    unpacked_bytes: int = Field(4 << 30, ge=1)
    """Most bytes that one file may unpack to, archives within archives included (`archive_bomb`)."""
    ratio: float = Field(250.0, gt=1)
    """Most bytes that one packed byte may unpack to, for members of over 10 MB (`archive_bomb`)."""
    members: int = Field(100_000, ge=1)
    """Most members of one archive (`archive_bomb`)."""
    depth: int = Field(3, ge=1, le=10)
    """How deep archives may stand within archives (`archive_bomb`)."""


class Reading(Config):
    """All that decides what the rows of a file are."""

    shape: Literal["document", "media"] = "document"
    """`document`: texts. `media`: the bytes of every file as they are, pictures, sound and video looked into."""
    formats: tuple[str, ...] = ()
    """Only files of these formats, for example [pdf, docx]; all if empty. Archives are always opened."""
    text_field: str = ""
    """Field of a record that is the text; without it `text`, or else all fields as lines `name: value`."""
    per: Literal["file", "page"] = "file"
    """One row for each file, or for each page, slide or sheet."""
    extractor: Extractor = "union"
    """How the main text of HTML is taken."""
    normalise: bool = True
    """Bring texts to one normal form."""
    limits: Limits = Field(default_factory=lambda: Limits.model_validate({}))
    """What one file may cost."""

    @field_validator("formats")
    @classmethod
    def _formats_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in formats():
                raise ValueError(f"{name!r} is not a format. {did_you_mean(name, formats())}")
        return names


@dataclass(frozen=True, slots=True)
class Source:
    """One file to read."""

    path: Path
    name: str
    """What it is called: for the extension, and in messages."""
    format: Format
    reading: Reading

    @property
    def limits(self) -> Limits:
        """What it may cost."""
        return self.reading.limits

    def read_bytes(self) -> bytes:
        """Return the whole file; raises `Unreadable` where it is larger than a document may be."""
        size = self.path.stat().st_size
        if size > self.limits.document_bytes:
            raise Unreadable("too_large", f"{size} bytes; limits.document_bytes is {self.limits.document_bytes}")
        return self.path.read_bytes()


@dataclass(frozen=True, slots=True)
class Row:
    """One row: a text, or the bytes of media. `metadata` says where in the file it stands and what it is."""

    body: str | bytes
    metadata: Mapping[str, Any] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    """What was done to the text, for the funnel."""


@dataclass(frozen=True, slots=True)
class Reject:
    """One row that is not fit, with the beginning of what stood there."""

    reason: str
    detail: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    excerpt: str = ""


Piece = Row | Reject


class Unreadable(Exception):
    """A document cannot be read, or not further; `reason` is a reason code."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail
