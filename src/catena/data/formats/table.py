"""Which format a file has: its first bytes decide, then what a ZIP archive holds, then the name's extension.

The formats stand in `formats.yaml`; readers are found by name, and another package may bring some by an entry point
`reader:<name>` in the group `catena.plugins`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from catena.core.registry import Registry

Kind = Literal["text", "record", "media", "container", "refused"]
HEAD_BYTES = 1024
"""How many first bytes `detect` wants."""

READERS = Registry(
    "reader",
    {
        "plain": "catena.data.formats.plain:read_plain",
        "html": "catena.data.formats.plain:read_html",
        "xml": "catena.data.formats.markup:read_xml",
        "pdf": "catena.data.formats.office:read_pdf",
        "office": "catena.data.formats.office:read_office",
        "ole": "catena.data.formats.office:read_ole",
        "delimited": "catena.data.formats.delimited:read_delimited",
        "json": "catena.data.formats.records:read_json",
        "jsonl": "catena.data.formats.records:read_jsonl",
        "parquet": "catena.data.formats.columnar:read_parquet",
        "picture": "catena.data.formats.pictures:read_picture",
        "dicom": "catena.data.formats.dicom:read_dicom",
        "recording": "catena.data.formats.recordings:read_recording",
        "zip": "catena.data.formats.containers:open_zip",
        "tar": "catena.data.formats.containers:open_tar",
        "packed": "catena.data.formats.containers:open_packed",
    },
)


@dataclass(frozen=True, slots=True)
class Format:
    """One row of `formats.yaml`."""

    name: str
    kind: Kind
    reader: str
    media_type: str
    extensions: tuple[str, ...]
    magic: tuple[Mapping[int, bytes], ...] = ()
    inside: str = ""
    begins: tuple[bytes, ...] = ()

    def matches(self, head: bytes) -> bool:
        """Whether the bytes that this format always has stand in the head of a file."""
        return any(all(head.startswith(mark, at) for at, mark in each.items()) for each in self.magic)


@cache
def formats() -> dict[str, Format]:
    """Return every format by name."""
    rows = yaml.safe_load((Path(__file__).parent / "formats.yaml").read_text(encoding="utf-8"))
    return {name: _format(name, row) for name, row in rows.items()}


def _format(name: str, row: Mapping[str, Any]) -> Format:
    magic = tuple({at: mark.encode("latin-1") for at, mark in each.items()} for each in row.get("magic", ()))
    begins = tuple(text.encode() for text in row.get("begins", ()))
    return Format(
        name=name,
        kind=row["kind"],
        reader=row["reader"],
        media_type=row["media_type"],
        extensions=tuple(row["extensions"]),
        magic=magic,
        inside=row.get("inside", ""),
        begins=begins,
    )


def detect(path: Path, name: str) -> Format | None:
    """Return the format of a file whose name (maybe of a member in an archive) is `name`; None for an unknown one."""
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    found = by_magic(head)
    if found is not None and found.name == "zip":
        return _by_members(path) or by_extension(name) or found
    return found or by_extension(name) or by_beginning(head)


def by_magic(head: bytes) -> Format | None:
    """Return the format that the first bytes show."""
    return next((each for each in formats().values() if each.matches(head)), None)


def by_extension(name: str) -> Format | None:
    """Return the format that the name's extension stands for."""
    extension = name.rsplit("/", 1)[-1].rpartition(".")[2].lower()
    return next((each for each in formats().values() if extension in each.extensions), None)


def by_beginning(head: bytes) -> Format | None:
    """Return the text format that begins so."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((each for each in formats().values() if each.begins and text.startswith(each.begins)), None)


def _by_members(path: Path) -> Format | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.NameToInfo)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None  # its reader will say what is wrong with it
    return next((each for each in formats().values() if each.inside and each.inside in names), None)
