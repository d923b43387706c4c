"""Files behind any fsspec address: what is there, and whether one is still the file that was read before.

`data.collect_objects`, `data.collect_warc` and `data.collect_hf` read through here. Secrets of object stores come from
the environment variables that their own libraries know (AWS_ACCESS_KEY_ID and the like), or from those named in the
config; none is stored.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from pydantic import Field

from catena.core.config import Config
from catena.core.digest import digest_of
from catena.core.errors import NotFound, RemoteError, UsageError
from catena.core.registry import require
from catena.data.collect.client import secret_of

# What different stores call the same thing, best first: a content hash, then a time of change.
HASHES = ("ETag", "etag", "md5Hash", "content_md5", "checksum", "md5")
TIMES = ("LastModified", "last_modified", "updated", "mtime", "created", "modify")
STORES = frozenset({"aiohttp", "botocore", "s3fs", "gcsfs", "adlfs", "azure", "google", "paramiko", "ftplib"})
EXTRA_OF_PROTOCOL = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


class FolderConfig(Config):
    """Where files are, and which of them count."""

    url: str
    """A folder: a path, or an fsspec address such as `s3://bucket/reports` or `https://host/files/`."""
    glob: str = "**"
    """Which files below it, by path: `*` stays in one folder, `**` crosses folders, for example `**/*.pdf`."""
    options: dict[str, str] = Field(default_factory=dict)
    """Options of the file system that are no secrets, for example `endpoint_url`."""
    secrets: dict[str, str] = Field(default_factory=dict)
    """Option name to the environment variable that holds its value, for example `secret: MINIO_SECRET`."""
    max_files: int = Field(default=1_000_000, ge=1)
    """Most files that a listing may have; more are refused, so that a wrong address does not run for days."""


@dataclass(frozen=True, slots=True)
class Found:
    """One file of a listing."""

    path: str
    """Relative to the folder, with `/`."""
    size: int
    """Bytes; -1 where the store does not say."""
    mark: str
    """Changes with the content: digest of size and of the store's hash or time of change; empty if it has neither."""


class Folder:
    """A folder behind an fsspec address. Raises `RemoteError` when its store fails, `NotFound` when it is not there."""

    def __init__(self, cfg: FolderConfig) -> None:
        self.cfg = cfg
        self.root = ""

    def files(self) -> list[Found]:
        """List the files that the glob takes, by path."""
        with _translated(self.cfg.url):
            system = self._system()
            if not system.exists(self.root):
                system.info(self.root)  # s3fs says "not there" of a bucket whose server is down; this says why
                raise NotFound(f"there is nothing at {self.cfg.url}", hint="See whether the address is right.")
            if self._is_file(system):
                return [_found(self.root.rsplit("/", 1)[-1], system.info(self.root))]
            listed = []
            for path, facts in self._walk(system):
                if matches(path, self.cfg.glob):
                    listed.append(_found(path, facts))
                if len(listed) > self.cfg.max_files:
                    raise UsageError(
                        f"{self.cfg.url} has more than {self.cfg.max_files} files",
                        hint="Narrow `glob`, or raise `max_files`.",
                    )
        return sorted(listed, key=lambda file: file.path)

    def _walk(self, system: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for path, facts in system.find(self.root, detail=True).items():
            # A link of a local folder may lead out of it, and to a file that nobody meant to collect.
            if facts.get("islink"):
                continue
            if not any(facts.get(name) for name in (*HASHES, *TIMES)):
                facts = {**facts, **system.info(path)}  # a page of links (HTTP) says nothing more than names
            yield str(path).removeprefix(self.root).lstrip("/"), facts

    def _is_file(self, system: Any) -> bool:
        # Over HTTP everything is a file; an address that ends in a slash is meant as a folder.
        return not self.cfg.url.endswith("/") and bool(system.isfile(self.root))

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """Open a file of the listing for reading."""
        with _translated(f"{self.cfg.url}: {path}"):
            system = self._system()
            whole = self.root if self._is_file(system) else f"{self.root.rstrip('/')}/{path}"
            with system.open(whole, "rb") as stream:
                yield stream

    def source(self, path: str) -> str:
        """Return the address that rows carry."""
        address = self.cfg.url if "://" in self.cfg.url else f"file:{self.cfg.url}"
        return address if address.endswith("/" + path) else f"{address.rstrip('/')}/{path}"

    def _system(self) -> Any:
        import fsspec

        protocol = self.cfg.url.partition("://")[0] if "://" in self.cfg.url else "file"
        if protocol in EXTRA_OF_PROTOCOL:
            require(EXTRA_OF_PROTOCOL[protocol])
        secrets = {option: secret_of(name) for option, name in self.cfg.secrets.items()}
        try:
            system, self.root = fsspec.core.url_to_fs(self.cfg.url, **self.cfg.options, **secrets)
        except (ValueError, ImportError) as error:
            raise UsageError(
                f"{self.cfg.url} cannot be opened: {error}", hint="See the protocols of fsspec."
            ) from error
        system.invalidate_cache()
        return system


def matches(path: str, glob: str) -> bool:
    """Tell whether a glob takes a path: `*` and `?` stay inside a folder, `**/` is any number of folders."""
    return _match(path.split("/"), glob.split("/"))


def _match(parts: list[str], globs: list[str]) -> bool:
    if not globs:
        return not parts
    if globs[0] == "**":
        if len(globs) == 1:
            return bool(parts)
        return any(_match(parts[skip:], globs[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], globs[0]) and _match(parts[1:], globs[1:])


def _found(path: str, facts: Mapping[str, Any]) -> Found:
    size = facts.get("size")
    mark = next((str(facts[name]) for name in (*HASHES, *TIMES) if facts.get(name)), "")
    known = digest_of([size, mark])[:16] if mark or size is not None else ""
    return Found(path, -1 if size is None else int(size), known)


@contextmanager
def _translated(place: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"{place} is not there", hint="See whether the address is right.") from error
    except Exception as error:
        # Each store has errors of its own, and whoever reads inside the block may raise others, which pass.
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in STORES:
            raise
        raise RemoteError(
            f"{place} cannot be read: {str(error) or type(error).__name__}",
            hint="See whether the store runs and you may read it; then run again: it goes on where it was.",
        ) from error
