"""The version before under the same name: which files it was made of, and their rows, to be taken over as they are."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from catena.core.sample import Sample
from catena.core.stage import Context
from catena.core.types import DatasetVersion, Shape
from catena.data.by_hand import ByHand, from_the_start
from catena.hub.datasets import DatasetWriter

# Reasons that may be gone tomorrow: files with such rejects are read again.
PASSING = frozenset({"timeout", "reader_died", "out_of_memory", "unreadable"})
Facts = tuple[int | None, str, str]
"""Size, stamp and SHA-256 of a file."""


class Before:
    """Rows and rejects of the version before; `copy` has to be called in the order of names.

    Files of which people changed rows are in `by_hand.keys`: they are not read again, whatever stands in them now.
    """

    def __init__(self, ctx: Context, shape: Shape, basis: str) -> None:
        self.files: dict[str, Facts] = {}
        """Files that were read in the same way and need not be read again."""
        self._listed: Container[str] = ()
        self._samples: Iterator[tuple[Sample, str, str]] = iter(())
        self._rejects: Iterator[tuple[Sample, str, str]] = iter(())
        self._next: dict[int, tuple[Sample, str, str] | None] = {}
        latest = ctx.store.latest(ctx.name)
        before = latest if isinstance(latest, DatasetVersion) else None
        told: Mapping[str, Any] = (before.profile.get("ingest") or {}) if before is not None else {}
        self._listed = told.get("files") or ()
        self.by_hand = ByHand(ctx, before, self._place)
        same = told.get("basis") == basis
        if before is None or not (same or self.by_hand.keys):
            return
        if before.shape != shape:
            from_the_start(ctx, before, self._place)
            return
        opened = ctx.store.open_dataset(before)
        passing = {_path(row) for row, reason, _ in opened.rejects() if reason in PASSING}
        files = told.get("files") or _files_of(chain(opened.samples(), (row for row, _, _ in opened.rejects())))
        self.files = {
            name: (size, stamp, sha)
            for name, (size, stamp, sha) in files.items()
            if name in self.by_hand.keys or (same and name not in passing)
        }
        self._samples = ((row, "", "") for row in self.by_hand.rows())
        self._rejects = opened.rejects()

    def copy(self, name: str, writer: DatasetWriter) -> None:
        """Write the rows and rejects of a file as they were."""
        for row, _, _ in self._of(0, name):
            writer.add(replace(row, license=writer.license))
        for row, reason, detail in self._of(1, name):
            writer.reject(replace(row, license=writer.license), reason, detail)

    def _of(self, table: int, name: str) -> Iterator[tuple[Sample, str, str]]:
        rows, place = ((self._samples, self._place), (self._rejects, _path))[table]
        row = self._next.get(table) or next(rows, None)
        while row is not None and place(row[0]) <= name:
            if place(row[0]) == name:
                yield row
            row = next(rows, None)
        self._next[table] = row

    def _place(self, row: Sample) -> str:
        """Return the file that a row is of; nothing for a row that a person added: such rows are the first."""
        path = _path(row)
        return path if not self._listed or path in self._listed else ""


def _path(row: Sample) -> str:
    return str(row.metadata.get("path", ""))


def _files_of(rows: Iterable[Sample]) -> dict[str, Facts]:
    """Return the files that rows are of, where the profile does not list them: only the SHA-256 is known then."""
    return {_path(row): (None, "", str(row.metadata["sha256"])) for row in rows if row.metadata.get("sha256")}
