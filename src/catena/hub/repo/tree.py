"""The tree of a commit: which paths may be in it, what operations make of it, how a folder of it is listed. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from catena.core.errors import NotFound, UsageError
from catena.hub.repo.records import Folder, RepoFile

LONGEST_PATH = 1000
LONGEST_PART = 255


@dataclass(frozen=True, slots=True)
class Add:
    """Put a file at its path."""

    file: RepoFile


@dataclass(frozen=True, slots=True)
class Delete:
    """Take a file away, or with `folder` everything below a path."""

    path: str
    folder: bool = False


@dataclass(frozen=True, slots=True)
class Copy:
    """Put the file that `source` holds at another path."""

    source: RepoFile
    path: str


Operation = Add | Delete | Copy


def checked_path(path: str) -> str:
    """Return a path that may stand in a repository; raises `UsageError` for any that leads elsewhere."""
    parts = path.split("/")
    bad = (
        not path
        or len(path.encode("utf-8", "replace")) > LONGEST_PATH
        or "\\" in path
        or any(part in ("", ".", "..") or len(part.encode("utf-8", "replace")) > LONGEST_PART for part in parts)
        or any(ord(letter) < 32 or ord(letter) == 127 or 0xD800 <= ord(letter) < 0xE000 for letter in path)
    )
    if bad or parts[0].lower() == ".git":
        raise UsageError(
            f"{path[:200]!r} is not a path inside a repository",
            hint="Paths are relative, with '/', without '..', '.git' and control characters.",
        )
    return path


def applied(files: Iterable[RepoFile], operations: Iterable[Operation]) -> tuple[RepoFile, ...]:
    """Return the files after the operations, by path. Raises `NotFound` for what is not there to be deleted."""
    tree = {file.path: file for file in files}
    for one in operations:
        if isinstance(one, Add):
            tree[checked_path(one.file.path)] = one.file
        elif isinstance(one, Copy):
            tree[checked_path(one.path)] = one.source.model_copy(update={"path": one.path})
        else:
            below = [path for path in tree if path.startswith(one.path.rstrip("/") + "/")] if one.folder else []
            gone = below if one.folder else [one.path] if one.path in tree else []
            if not gone:
                raise NotFound(f"there is no {'folder' if one.folder else 'file'} {one.path!r} to delete")
            for path in gone:
                del tree[path]
    folders = {path for file in tree for path in _folders_of(file)}
    clash = sorted(folders & tree.keys())
    if clash:
        raise UsageError(f"{clash[0]!r} would be a file and a folder at once")
    return tuple(tree[path] for path in sorted(tree))


def listing(tree: Iterable[RepoFile | Folder], path: str, *, recursive: bool) -> list[RepoFile | Folder]:
    """Return what of a commit's tree is in a folder (with `recursive`, below it); nothing for no such folder."""
    start = f"{path.strip('/')}/" if path.strip("/") else ""
    below = [item for item in tree if item.path.startswith(start)]
    return below if recursive else [item for item in below if "/" not in item.path[len(start) :]]


def _folders_of(path: str) -> Iterator[str]:
    parts = path.split("/")
    yield from ("/".join(parts[:depth]) for depth in range(1, len(parts)))
