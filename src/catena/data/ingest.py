"""The stage `data.ingest`: files of any known format become a dataset, one row for each text, record or picture.

    paths -> entries (listing) -> what changed? (before) -> children (pool, worker, readers) -> journal -> rows, rejects

Rows come in the order of file names, whatever was read first. A second run takes the rows of unchanged files from the
version before under the same name: equal size and time of change, or else equal SHA-256.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from catena.core.digest import digest_of
from catena.core.sample import Sample, sample_id
from catena.core.stage import Context, stage, stage_of
from catena.core.types import DatasetVersion
from catena.data.formats.before import Before
from catena.data.formats.journal import Journal
from catena.data.formats.listing import Entry, list_files
from catena.data.formats.pieces import Reading
from catena.data.formats.work import Work
from catena.hub.datasets import DatasetWriter

READERS = tuple(
    f"catena.data.formats.{name}"
    for name in (
        "worker", "plain", "markup", "office", "delimited", "records", "columnar", "pictures", "dicom", "recordings",
        "containers",
    )
)  # fmt: skip
PARSERS = ("kreuzberg", "resiliparse", "trafilatura", "pyarrow", "pillow", "pydicom", "av")
"""Packages whose version decides what is read."""
LISTED = 20_000
"""Up to this many files the profile lists each with size, stamp and SHA-256; beyond, files are told by SHA-256."""


class IngestConfig(Reading):
    """Which files to read, and how."""

    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    """Files, folders, globs (`docs/**/*.pdf`), or fsspec addresses (`s3://bucket/folder`, `https://host/file.csv`)."""
    license: str | None = None
    """Licence of the files, for example an SPDX identifier; rows carry it through the whole chain."""

    @field_validator("paths")
    @classmethod
    def _no_password_in_an_address(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        for path in paths:
            if "://" in path and urlsplit(path).password:
                raise ValueError("an address holds a password; give it by the environment of its file system")
        return paths


@stage("data.ingest", volatile=True, uses=READERS)
def ingest(ctx: Context, cfg: IngestConfig) -> DatasetVersion:
    """Read files (text, HTML, PDF, Office, EPUB, tables, JSON, XML, pictures, DICOM, sound, video, archives) into rows.

    Each file, page or record that gives no row is among the rejects, with its reason. `metadata`: path, member,
    format, sha256 (of the file), and what the format knows: line, row, page, title, width, seconds, ...
    """
    entries, hidden = list_files(cfg.paths)
    reading = Reading.model_validate(cfg.model_dump(include=set(Reading.model_fields)))
    basis = _basis(cfg, reading)
    before = Before(ctx, reading.shape, basis)
    journal = Journal(ctx.workdir / "ingest", basis)
    work = Work(ctx.workdir, reading, before, journal)
    if waiting := work.waiting(entries):
        workers = min(ctx.workers or os.cpu_count() or 1, len(waiting))
        work.run(waiting, workers, ctx.progress("Read", len(waiting), "files"))
    changed: Counter[str] = Counter()
    with ctx.store.new_dataset(reading.shape, license=cfg.license) as writer:
        before.copy("", writer)
        for entry in ctx.progress("Write", len(entries), "files").over(entries):
            if entry.name in work.unchanged:
                before.copy(entry.name, writer)
            else:
                _write(writer, entry, journal, changed)
        listed = work.facts if len(work.facts) <= LISTED else {}
        told = {"basis": basis, "files": {name: listed[name] for name in sorted(listed)}}
        kept = before.by_hand.profile(before.by_hand.keys - {"", *(entry.name for entry in entries)})
        dataset = writer.commit(changed=dict(sorted(changed.items())), profile={"ingest": told, **kept})
    shutil.rmtree(journal.folder)
    for name, count in {"files": len(entries), "files_read": work.read, "bytes_read": work.bytes}.items():
        ctx.events.metric(name, count)
    if by_hand := before.by_hand.keys & work.unchanged:
        ctx.events.log(f"{len(by_hand)} files stay as people left their rows, whatever stands in them now")
    if hidden:
        ctx.events.log(f"{hidden} hidden files and folders were passed over; name one in `paths` to read it")
    return dataset


def _basis(cfg: IngestConfig, reading: Reading) -> str:
    """Return a digest of all that decides how a file is read: what was asked, our code, and the parsers' versions."""
    from importlib import metadata

    versions = {name: metadata.version(name) for name in PARSERS}
    return digest_of([reading.model_dump(mode="json"), stage_of(ingest).code(cfg), versions])


def _write(writer: DatasetWriter, entry: Entry, journal: Journal, changed: Counter[str]) -> None:
    """Write the rows and rejects of one file that was read."""
    if entry.problem is not None:
        writer.reject(_sample(writer, entry.name, {"path": entry.name}, b"", ""), *entry.problem)
        return
    done = journal.get(entry.name)
    assert done is not None, entry.name
    for number, found in enumerate(journal.pieces(done)):
        where = {"path": entry.name, "format": found.format, "sha256": done.sha256}
        metadata = {**found.metadata, **where, **({"member": found.member} if found.member else {})}
        source = f"{entry.name}!/{found.member}" if found.member else entry.name
        sample = _sample(writer, source, metadata, found.body, found.media_type, number)
        if found.reason:
            writer.reject(sample, found.reason, found.detail)
        else:
            changed.update(found.changed)
            writer.add(sample)


def _sample(
    writer: DatasetWriter, source: str, metadata: dict[str, Any], body: bytes, media_type: str, number: int = 0
) -> Sample:
    document = writer.shape == "document"
    data = {"text": body.decode()} if document else {"content": body, "media_type": media_type}
    return Sample(sample_id(source, number, data), data, metadata, source, writer.license)
