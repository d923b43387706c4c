"""Which files are meant: folders, globs and single files, on this machine or behind any fsspec address.

A file on this machine is named relative to the folder that all given paths have in common, so that rows do not depend
on where that folder stands; any other file is named by its address.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catena.core.digest import CHUNK
from catena.core.errors import DataError, MissingExtra, NotFound, RemoteError
from catena.data.formats.wire import plain

MAGIC = frozenset("*?[")
STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "created")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, before it is opened."""

    name: str
    size: int | None
    """Bytes; None where the server does not say."""
    stamp: str
    """What changes when the file does: time of the last change, or a server's ETag; empty where there is none."""
    path: Path | None = None
    """On this machine."""
    address: str = ""
    """Elsewhere."""
    problem: tuple[str, str] | None = None
    """Reason and detail why it will not be opened."""


def list_files(paths: Iterable[str]) -> tuple[list[Entry], int]:
    """Return the files, sorted by name, each once, and how many hidden ones were passed over.

    Raises `NotFound` for a path without any file.
    """
    local: dict[Path, Path] = {}
    remote: list[Entry] = []
    hidden = 0
    for path in paths:
        if "://" in path and not path.startswith("file://"):
            remote += _remote(path)
            continue
        root, found, passed = _local(path.removeprefix("file://"))
        hidden += passed
        if not found and not passed:
            raise NotFound(f"there is no file at {path!r}", hint="Give a file, a folder, a glob or an fsspec address.")
        local.update(dict.fromkeys(found, root))
    common = Path(os.path.commonpath([str(root) for root in set(local.values())])) if local else Path()
    entries = [_entry(path, root, common) for path, root in local.items()] + remote
    return sorted({entry.name: entry for entry in entries}.values(), key=lambda entry: entry.name), hidden


def _local(text: str) -> tuple[Path, list[Path], int]:
    """Return root, files below it, and how many were hidden."""
    path = Path(text).expanduser().absolute()
    if path.is_dir():
        return (path, *_below(path))
    if path.exists() or not MAGIC & set(text):
        return path.parent, [path] if path.is_file() else [], 0
    first = next(place for place, part in enumerate(path.parts) if MAGIC & set(part))
    root = Path(*path.parts[:first])
    found = (Path(name) for name in glob.iglob(str(path), recursive=True))  # noqa: PTH207  Path.glob takes hidden files
    return root, sorted(name for name in found if not name.is_dir()), 0


def _below(folder: Path) -> tuple[list[Path], int]:
    found, hidden = [], 0
    for place, folders, names in os.walk(folder):
        hidden += sum(name.startswith(".") for name in (*folders, *names))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        # `walk` does not go into linked folders; each becomes a reject.
        found += [link for name in folders if (link := Path(place, name)).is_symlink()]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(found), hidden


def _entry(path: Path, root: Path, common: Path) -> Entry:
    name = plain(path.relative_to(common).as_posix())
    try:
        if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
            return Entry(name, 0, "", problem=("unsafe_path", "a link that leads out of the folder"))
        facts = path.stat()
    except OSError as error:
        return Entry(name, 0, "", problem=("unreadable", str(error.strerror)))
    if not stat.S_ISREG(facts.st_mode):
        return Entry(name, 0, "", problem=("not_a_file", "neither a file nor a folder"))
    return Entry(name, facts.st_size, str(facts.st_mtime_ns), path)


def _filesystem(address: str) -> tuple[Any, str]:
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise MissingExtra(str(error), hint="Install the package that it names, then run again.") from error
    except ValueError as error:
        raise DataError(f"{address!r} cannot be opened: {error}") from error
    return fs, str(path)


def _remote(address: str) -> Iterator[Entry]:
    fs, path = _filesystem(address)
    try:
        if MAGIC & set(path):
            found = fs.glob(path, detail=True)
        elif fs.isdir(path):
            found = fs.find(path, detail=True)
        else:
            found = {path: fs.info(path)}
    except FileNotFoundError as error:
        raise NotFound(f"there is no file at {address!r}") from error
    except OSError as error:
        raise RemoteError(f"{address!r} cannot be listed: {error}") from error
    files = [(name, facts) for name, facts in found.items() if facts.get("type") == "file"]
    if not files:
        raise NotFound(f"there is no file at {address!r}")
    for name, facts in files:
        stamp = next((str(facts[key]) for key in STAMPS if facts.get(key)), "")
        url = str(fs.unstrip_protocol(name))
        yield Entry(url, facts.get("size"), stamp, address=url)


def fetch(address: str, target: Path, most: int) -> bool:
    """Copy a file from elsewhere; returns False, with nothing kept, where it is larger than `most` bytes."""
    fs, path = _filesystem(address)
    size = 0
    try:
        with fs.open(path, "rb") as stream, target.open("wb") as out:
            while size <= most and (chunk := stream.read(CHUNK)):
                size += len(chunk)
                out.write(chunk)
    except OSError:
        raise
    except Exception as error:  # each file system raises what its client library raises
        raise OSError(f"{type(error).__name__}: {error}"[:300]) from error
    if size > most:
        target.unlink()
    return size <= most
