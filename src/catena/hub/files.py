"""Content-addressed files: each is stored once, under its SHA-256, through fsspec.

    objects/ab/abcdef...      the bytes, named by their digest
    checkouts/<artifact>/     a folder of hard links to them, for programs that want paths

A file appears under its name only when it is whole: written beside, synced, renamed. It is verified when it is read.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from catena.core.digest import CHUNK, sha256_of_file
from catena.core.errors import DataError, EnvironmentProblem, IntegrityError
from catena.core.types import File


def sync_folder(folder: Path) -> None:
    """Make a finished folder durable: every file in it, then every directory."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def rename_durably(source: Path, target: Path) -> None:
    """Rename, and sync the folder of the new name: after a power cut it is still there."""
    source.replace(target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a small file so that a reader sees the old bytes or the new, never a part. `mode` is under the umask."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        rename_durably(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


CLIENTS = frozenset({"aiohttp", "aiobotocore", "botocore", "s3fs", "gcsfs", "adlfs", "azure", "google"})
"""Packages whose errors say that a store on another machine cannot be used."""


class FileStore:
    """Files by digest, below `url` (a folder, or s3://bucket/prefix with the fsspec package for it)."""

    def __init__(self, url: str) -> None:
        # A listing that is remembered would hide what another process has stored or deleted since.
        self.fs, self.root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        self.local = isinstance(self.fs, LocalFileSystem)

    def away(self, error: BaseException) -> EnvironmentProblem | None:
        """Translate what the client of a store on another machine raises where that cannot be used, or return None."""
        if self.local or type(error).__module__.partition(".")[0] not in CLIENTS:
            return None
        return EnvironmentProblem(
            f"the store of files cannot be used: {type(error).__name__}", hint="Nothing was changed; try again."
        )

    def _path(self, sha256: str) -> str:
        return f"{self.root}/{sha256[:2]}/{sha256}"

    def put(self, source: Path, name: str) -> File:
        """Store a file's bytes; `name` is its path inside the artifact."""
        digest = sha256_of_file(source)
        target = self._path(digest)
        file = File(path=name, size=source.stat().st_size, sha256=digest)
        if self.damage(file) is not None:  # absent, or damaged: then sound bytes take the place of the damaged ones
            self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            temporary = f"{target}.{uuid.uuid4().hex[:8]}.part"
            try:
                self.fs.put_file(str(source), temporary)
                if self.local:
                    with Path(temporary).open("rb+") as stream:
                        os.fsync(stream.fileno())
                    os.chmod(temporary, 0o444)  # noqa: PTH101  hard links share this: nobody writes through a checkout
                    rename_durably(Path(temporary), Path(target))  # over what another process may have put there
                else:
                    self.fs.mv(temporary, target)
            finally:
                if self.fs.exists(temporary):
                    self.fs.rm_file(temporary)
        return file

    def take(self, source: Path, sha256: str) -> None:
        """Store a synced file whose digest the caller has computed, by moving it: no byte is read again."""
        target = self._path(sha256)
        self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        if self.local and os.stat(source).st_dev == os.stat(Path(target).parent).st_dev:  # noqa: PTH116
            os.chmod(source, 0o444)  # noqa: PTH101
            rename_durably(source, Path(target))
            return
        temporary = f"{target}.{uuid.uuid4().hex[:8]}.part"
        self.fs.put_file(str(source), temporary)
        self.fs.mv(temporary, target)
        source.unlink()

    def local_path(self, sha256: str) -> Path | None:
        """Return where the bytes are on this machine; None for a store that is elsewhere."""
        return Path(self._path(sha256)) if self.local else None

    def open(self, sha256: str) -> BinaryIO:
        """Open the bytes for reading, wherever they are."""
        opened: BinaryIO = self.fs.open(self._path(sha256), "rb")
        return opened

    def put_folder(self, folder: Path) -> tuple[File, ...]:
        """Store every file below `folder`, in the order of their names. Links are refused."""
        files = []
        for path in sorted(folder.rglob("*")):
            if path.is_symlink():
                raise DataError(
                    f"{path} is a link", hint="An artifact holds plain files only; copy the target in its place."
                )
            if path.is_file():
                files.append(self.put(path, path.relative_to(folder).as_posix()))
        return tuple(files)

    def has(self, sha256: str) -> bool:
        """Tell whether the bytes are there (not whether they are sound)."""
        return bool(self.fs.exists(self._path(sha256)))

    def size(self, sha256: str) -> int | None:
        """Return how many bytes are stored under a digest, or None for none at all."""
        try:
            return int(self.fs.size(self._path(sha256)))
        except FileNotFoundError:
            return None

    def damage(self, file: File) -> str | None:
        """Return what is wrong with a stored file, or None."""
        path, size = self._path(file.sha256), self.size(file.sha256)
        if size is None:
            return "is missing"
        if size != file.size:
            return f"has {size} bytes instead of {file.size}"
        return None if self._digest(path) == file.sha256 else "has other bytes than were stored"

    def _digest(self, path: str) -> str:
        import hashlib

        state = hashlib.sha256()
        with self.fs.open(path, "rb") as stream:
            while block := stream.read(CHUNK):
                state.update(block)
        return state.hexdigest()

    def checkout(self, files: tuple[File, ...], folder: Path) -> Path:
        """Lay `files` out in `folder`, verified; returns `folder`. A folder that is whole already is verified and used.

        Raises `IntegrityError`, which names the file, when bytes are not what was stored.
        """
        if not folder.exists() or _spoilt(files, folder):
            shutil.rmtree(folder, ignore_errors=True)  # somebody wrote into it, or it is a copy on a bad disk
            self._lay_out(files, folder)
        spoilt = _spoilt(files, folder)
        if spoilt is not None:
            shutil.rmtree(folder, ignore_errors=True)  # links only; the stored bytes stay for `catena fsck` to show
            raise IntegrityError(
                f"the stored file {spoilt.path} ({spoilt.sha256[:12]}) is damaged",
                hint="`catena fsck` lists what is affected, `catena fsck --forget` lets the next run mend it.",
            )
        return folder

    def _lay_out(self, files: tuple[File, ...], folder: Path) -> None:
        temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        try:
            temporary.mkdir(parents=True)
            for file in files:
                self._lay(file, temporary / inside(file.path))
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.exists():  # another process was faster: its folder is as good
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _lay(self, file: File, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        source = self._path(file.sha256)
        if not self.fs.exists(source):
            raise IntegrityError(
                f"the stored file {file.path} ({file.sha256[:12]}) is missing",
                hint="`catena fsck` lists what is affected.",
            )
        if not self.local:
            self.fs.get_file(source, str(target))
            return
        try:
            os.link(source, target)
        except OSError:  # another disk, or a file system without hard links
            shutil.copyfile(source, target)

    def all(self) -> Iterator[tuple[str, int]]:
        """Yield the name (a digest, or a leftover ending in .part) and size of every stored file."""
        for path, info in self.fs.find(self.root, detail=True).items() if self.fs.exists(self.root) else ():
            yield PurePosixPath(path).name, int(info["size"])

    def remove(self, name: str) -> None:
        """Delete a stored file by the name that `all` gave."""
        self.fs.rm_file(self._path(name))


def inside(path: str) -> PurePosixPath:
    """Return a relative path that stays inside its folder; raises `DataError` for any other."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path or not pure.parts:
        raise DataError(f"{path!r} is not a path inside an artifact", hint="Absolute paths and '..' are refused.")
    return pure


def _spoilt(files: tuple[File, ...], folder: Path) -> File | None:
    """Return the first file of a checkout that is not what was stored."""
    for file in files:
        path = folder / inside(file.path)
        if not path.exists() or sha256_of_file(path) != file.sha256:
            return file
    return None
