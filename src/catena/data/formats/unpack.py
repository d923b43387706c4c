"""Unpacking with a measure: how many bytes come out, in all and for each byte that went in, and what names are safe."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import BinaryIO, Protocol

from catena.data.formats.pieces import Limits, Unreadable

CHUNK = 1 << 18
RATIO_FROM = 10_000_000
"""Members up to this size may have any ratio: a short text of blanks packs a thousandfold."""
ENCRYPTED = 0x1
DRIVE = re.compile(r"[A-Za-z]:")


class Readable(Protocol):
    """What bytes are taken from."""

    def read(self, size: int = ..., /) -> bytes:
        """Return up to `size` bytes."""
        ...


class Budget:
    """What is left of a file's `unpacked_bytes`, over all its members and the archives in them."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.unpacked = 0
        self.members = 0

    def member(self) -> None:
        """Count one more member."""
        self.members += 1
        if self.members > self.limits.members:
            raise Unreadable("archive_bomb", f"over {self.limits.members} members")

    def unpack(self, stream: Readable, out: BinaryIO | None, packed: int) -> int:
        """Unpack a member whose packed size is known (0: not); returns its size. Raises `Unreadable`: archive_bomb."""
        size = 0
        while chunk := stream.read(CHUNK):
            size += len(chunk)
            self.unpacked += len(chunk)
            if self.unpacked > self.limits.unpacked_bytes:
                raise Unreadable("archive_bomb", f"it unpacks to over {self.limits.unpacked_bytes} bytes")
            if packed and size > RATIO_FROM and size > self.limits.ratio * packed:
                raise Unreadable("archive_bomb", f"it unpacks to over {self.limits.ratio:g} times its size")
            if out is not None:
                out.write(chunk)
        return size


def weigh(path: Path, limits: Limits) -> None:
    """Unpack every member of a ZIP-based document to nowhere.

    Raises `Unreadable`: archive_bomb, encrypted, and xml_entities where one of its XML parts declares an entity.
    """
    budget = Budget(limits)
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            budget.member()
            if member.flag_bits & ENCRYPTED:
                raise Unreadable("encrypted", f"the part {member.filename[:100]!r} is encrypted")
            with archive.open(member) as stream:
                budget.unpack(_Watched(stream), None, max(member.compress_size, 1))


class _Watched:
    """A stream that refuses XML with entities on the way."""

    def __init__(self, stream: Readable) -> None:
        self._stream, self._tail = stream, b""

    def read(self, size: int = CHUNK, /) -> bytes:
        chunk = self._stream.read(size)
        if b"<!ENTITY" in self._tail + chunk:
            raise Unreadable("xml_entities", "one of its parts declares an entity")
        self._tail = chunk[-8:]
        return chunk


def unsafe(name: str) -> bool:
    """Whether a member's name would lead out of the folder that it is unpacked in."""
    parts = name.replace("\\", "/").split("/")
    return name.startswith(("/", "\\")) or bool(DRIVE.match(name)) or ".." in parts or "\0" in name
