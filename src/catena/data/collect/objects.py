"""The stage `data.collect_objects`: files of a folder or an object store become media samples, as they are.

    listing (size, hash or time of change) -> what is new, changed, gone -> bytes -> rows by path

Formats are the business of `data.extract`; here a file is bytes with a media type.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from catena.core.digest import sha256
from catena.core.errors import NotFound, RemoteError
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, Shape
from catena.data.collect.cursor import Past, collect, in_batches
from catena.data.collect.folder import Folder, FolderConfig, Found
from catena.data.collect.journal import Batch, Item, Position

# Types that Python's own table lacks or leaves to the machine's: rows must not depend on /etc/mime.types.
TYPES = mimetypes.MimeTypes()
for ending, known in {
    ".md": "text/markdown",
    ".jsonl": "application/x-ndjson",
    ".parquet": "application/vnd.apache.parquet",
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".epub": "application/epub+zip",
    ".dcm": "application/dicom",
    ".webp": "image/webp",
    ".flac": "audio/flac",
    ".csv": "text/csv",
}.items():
    TYPES.add_type(known, ending)


class ObjectsConfig(FolderConfig):
    """Which files to collect."""

    max_bytes: int = Field(100_000_000, ge=1)
    """Largest file; a larger one is rejected without being read."""
    max_records: int = Field(1_000_000, ge=1)
    """About the most files of one run; the next run goes on behind them."""
    license: str | None = None
    """Licence of what is collected, for example an SPDX identifier."""


@stage("data.collect_objects", volatile=True)
def collect_objects(ctx: Context, cfg: ObjectsConfig) -> DatasetVersion:
    """Collect files by path or fsspec address, and later only new and changed ones; rows of deleted files go.

    A file counts as changed when its size, hash (ETag) or time of change is another one. `metadata`: path, size,
    sha256, mark. Reasons of rejects: `too_large`, `unreadable`, `empty`, `gone`.
    """
    return collect(ctx, ObjectsConnector(cfg, Folder(cfg)), cfg.max_records)


@dataclass
class ObjectsConnector:
    """One folder. A position is the last path that was done with; what was read before is known by its mark."""

    cfg: ObjectsConfig
    folder: Folder
    name: str = "collect_objects"
    shape: Shape = "media"
    passing: frozenset[str] = frozenset({"mark"})
    license: str | None = field(init=False)
    identity: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.license = self.cfg.license
        only = {"url", "glob", "license", "max_bytes"}
        self.identity = {"connector": self.name, **self.cfg.model_dump(mode="json", include=only)}

    def batches(self, past: Past) -> Iterator[Batch]:
        """Read what is new or changed, by path."""
        files = self.folder.files()
        known = past.known("mark")
        gone = tuple(Item(key, "gone") for key in sorted(known.keys() - {file.path for file in files}))
        after = (past.position or {}).get("after", "")
        news = [file for file in files if file.path > after and not (file.mark and known.get(file.path) == file.mark)]
        yield from in_batches(self._read(news))
        yield Batch(gone, {"after": ""}, {})

    def _read(self, files: list[Found]) -> Iterator[tuple[tuple[Item, ...], Position]]:
        for file in files:
            yield (self._item(file),), {"after": file.path}

    def _item(self, file: Found) -> Item:
        facts = {"path": file.path, "size": file.size, "mark": file.mark}
        source = self.folder.source(file.path)
        too_large = Item(file.path, "reject", {}, facts, source, reason="too_large", detail=f"{file.size} bytes")
        if file.size > self.cfg.max_bytes:
            return too_large
        try:
            with self.folder.open(file.path) as stream:
                body = stream.read(self.cfg.max_bytes + 1)
        except (RemoteError, NotFound) as error:
            # Without its mark it counts as new in the next run, and is tried again.
            facts.pop("mark")
            return Item(file.path, "reject", {}, facts, source, reason="unreadable", detail=str(error))
        if len(body) > self.cfg.max_bytes:
            return too_large
        if not body:
            return Item(file.path, "reject", {}, facts, source, reason="empty", detail="a file of no bytes")
        data = {"content": body, "media_type": media_type_of(file.path)}
        return Item(file.path, data=data, metadata={**facts, "size": len(body), "sha256": sha256(body)}, source=source)


def media_type_of(path: str) -> str:
    """Return the media type that a path's ending stands for; compressed files by their compression."""
    kind, encoding = TYPES.guess_type(path)
    if encoding:
        return {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}.get(
            encoding, "application/octet-stream"
        )
    return kind or "application/octet-stream"
