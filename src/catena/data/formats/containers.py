"""Archives: ZIP, tar, gzip, bzip2 and xz, opened member by member.

A member is unpacked to a file with a name of our own, whatever it calls itself; one at a time, deleted once it is read.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from catena.data.formats.pieces import Unreadable
from catena.data.formats.unpack import ENCRYPTED, Budget, Readable, unsafe

BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, NotImplementedError)
INNER = {"tgz": ".tar", "tbz2": ".tar", "txz": ".tar"}


@dataclass(frozen=True, slots=True)
class Member:
    """One file in an archive; `unpack(target)` writes it."""

    name: str
    unpack: Callable[[Path], None]
    problem: tuple[str, str] | None = None
    """Reason and detail why it will not be unpacked."""


@contextmanager
def _damage(what: str) -> Iterator[None]:
    try:
        yield
    except BROKEN as error:
        raise Unreadable("damaged", f"{what}: {type(error).__name__}: {error}"[:300]) from error


def _unpacker(opened: Callable[[], Readable], packed: int, budget: Budget, name: str) -> Callable[[Path], None]:
    def unpack(target: Path) -> None:
        with _damage(name), target.open("wb") as out:
            budget.unpack(opened(), out, packed)

    return unpack


def open_zip(path: Path, name: str, budget: Budget) -> Iterator[Member]:
    """Yield the files of a ZIP archive in the order of its directory."""
    with _damage(name):
        archive = zipfile.ZipFile(path)
    with archive:
        for entry in archive.infolist():
            budget.member()
            if entry.is_dir():
                continue
            problem = _name_problem(entry.filename)
            if entry.flag_bits & ENCRYPTED:
                problem = ("encrypted", "the member is behind a password")
            packed = max(entry.compress_size, 1)
            yield Member(
                entry.filename, _unpacker(partial(archive.open, entry), packed, budget, entry.filename), problem
            )


def open_tar(path: Path, name: str, budget: Budget) -> Iterator[Member]:
    """Yield the files of a tar archive; links and devices are refused."""
    with _damage(name):
        archive = tarfile.open(path, "r:")  # noqa: SIM115
    with archive:
        while True:
            with _damage(name):
                entry = archive.next()
            if entry is None:
                return
            archive.members = []  # type: ignore[attr-defined]  # or it would keep every header
            budget.member()
            if entry.isdir():
                continue
            problem = _name_problem(entry.name)
            if not entry.isfile():
                problem = ("unsafe_path", "the member is a link or a device")
            opened = cast("Callable[[], Readable]", partial(archive.extractfile, entry))
            yield Member(entry.name, _unpacker(opened, 0, budget, entry.name), problem)


def open_packed(path: Path, name: str, budget: Budget) -> Iterator[Member]:
    """Yield the one file in a gzip, bzip2 or xz file, under the archive's name without the extension."""
    with path.open("rb") as stream:
        magic = stream.read(3)
    openers: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open}
    opener = openers.get(magic[:2], lzma.open)
    inner = name.rsplit("/", 1)[-1]
    stem, dot, extension = inner.rpartition(".")
    inside = (stem + INNER.get(extension.lower(), "")) if dot else inner
    with _damage(name), opener(path, "rb") as unpacked:
        yield Member(inside, _unpacker(lambda: unpacked, path.stat().st_size, budget, name))


def _name_problem(name: str) -> tuple[str, str] | None:
    return ("unsafe_path", "the name leads out of the archive") if unsafe(name) else None
