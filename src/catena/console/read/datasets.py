"""What the pages of datasets show: the list, one dataset, its rows by page, its funnel, its licences, two versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as compute

from catena.core.errors import DataError, IntegrityError, UsageError
from catena.core.types import UNDIVIDED, DatasetVersion, Run
from catena.hub.datasets import REJECTS, SAMPLES, Dataset
from catena.hub.diff import Diff, RowChange, changed_fields, key_of
from catena.hub.funnel import funnel_of, run_of
from catena.hub.store import Store
from catena.hub.versions import diff
from catena.workspace import Workspace

Positions = npt.NDArray[np.int64]
Table = Literal["samples", "rejects"]
TABLES: Mapping[Table, str] = {"samples": SAMPLES, "rejects": REJECTS}
SEARCHED = ("_id", "_source", "text", "input", "output", "media_type")
"""Columns that a search looks into, besides the messages of conversations."""
CACHED = 32
"""Searches whose hits are kept, so that turning a page does not search again."""


@dataclass(frozen=True)
class Listed:
    """A dataset in the list: the newest version of a name."""

    name: str
    version: int
    artifact: DatasetVersion
    tags: tuple[str, ...]
    created: datetime


@dataclass(frozen=True)
class Opened:
    """One dataset version, and what is known around it."""

    ref: str
    """`name@version` where it has a name, else its digest."""
    name: str
    artifact: DatasetVersion
    refs: tuple[str, ...]
    """Every name and tag that stands on it."""
    others: tuple[str, ...]
    """The versions of the same name, the newest first."""
    run: Run | None


@dataclass(frozen=True)
class Step:
    """One step of a funnel."""

    ref: str
    stage: str
    rows_in: int
    rows_out: int
    rejected: Mapping[str, int]
    changed: Mapping[str, int]


@dataclass(frozen=True)
class Hits:
    """Rows of one page, and how many there are in all."""

    rows: Sequence[Mapping[str, Any]]
    total: int


@dataclass(frozen=True)
class Compared:
    """Two versions: counts, and the rows of one page."""

    counts: Mapping[str, int]
    rows: Sequence[RowChange]
    total: int


def listed(workspace: Workspace) -> list[Listed]:
    """Return the newest version of every dataset's name, the last made first."""
    index = workspace.store.index
    known = {one.digest: one for one in index.all_artifacts() if isinstance(one, DatasetVersion)}
    tags: dict[str, list[str]] = {}
    for (name, tag), digest in index.tags().items():
        tags.setdefault(f"{name}@{digest}", []).append(tag)
    newest = {row.name: row for row in index.versions() if row.digest in known}
    found = [
        Listed(row.name, row.version, known[row.digest], tuple(tags.get(f"{row.name}@{row.digest}", ())), row.created)
        for row in newest.values()
    ]
    return sorted(found, key=lambda one: one.created, reverse=True)


def opened(workspace: Workspace, ref: str) -> Opened:
    """Return a dataset by reference; raises `NotFound`, or `UsageError` for another kind of artifact."""
    store = workspace.store
    artifact = store.resolve(ref, DatasetVersion)
    rows = store.index.versions(digest=artifact.digest)
    asked = ref.partition("@")[0]
    own = next((row for row in reversed(rows) if row.name == asked), rows[-1] if rows else None)
    tags = [f"{name}@{tag}" for (name, tag), digest in store.index.tags().items() if digest == artifact.digest]
    name = own.name if own else ""
    others = [f"{row.name}@{row.version}" for row in reversed(store.index.versions(name=name))] if name else []
    return Opened(
        ref=f"{own.name}@{own.version}" if own else artifact.digest,
        name=name,
        artifact=artifact,
        refs=(*(f"{row.name}@{row.version}" for row in rows), *tags),
        others=tuple(others),
        run=run_of(store, artifact, ref, cached=True),
    )


def funnel(workspace: Workspace, ref: str) -> list[Step]:
    """Return the funnel from the source down to a dataset; empty where none was kept."""
    store = workspace.store
    try:
        rows = funnel_of(store, store.resolve(ref, DatasetVersion), ref)
    except UsageError:
        return []
    return [
        Step(
            row["ref"],
            row["stage"],
            int(row["rows_in"]),
            int(row["rows_out"]),
            row.get("rejected", {}),
            row.get("changed", {}),
        )
        for row in rows
    ]


def rows(
    workspace: Workspace, ref: str, table: Table, place: tuple[int, int], search: str = "", only: str = ""
) -> Hits:
    """Return the rows at `place` (offset, limit) among those that hold `search`.

    `only` is a split of samples, or a reason of rejects. Nothing but these rows is read whole.
    """
    artifact = workspace.store.resolve(ref, DatasetVersion)
    total = artifact.rejects if table == "rejects" else artifact.rows
    offset, limit = place
    if not total:
        return Hits([], 0)
    with _told(artifact):
        dataset = dataset_of(workspace.store, artifact)
        if not search.strip() and not only:
            wanted = np.arange(offset, min(offset + limit, total), dtype=np.int64)
        else:
            hits = _hits(workspace.store, artifact.digest, table, search.strip(), only)
            wanted, total = hits[offset : offset + limit], len(hits)
        return Hits(list(dataset.take(wanted, TABLES[table])), total)


def row(workspace: Workspace, ref: str, id: str) -> Mapping[str, Any] | None:
    """Return one sample by its id, or None."""
    artifact = workspace.store.resolve(ref, DatasetVersion)
    with _told(artifact):
        dataset = dataset_of(workspace.store, artifact)
        ids = dataset.table(["_id"])["_id"]
        at = compute.index(ids, pa.scalar(id, ids.type)).as_py()
        return None if at < 0 else next(dataset.take(np.array([at])))


def reasons(workspace: Workspace, ref: str) -> Mapping[str, int]:
    """Return why rows were kept back, with their numbers, the commonest first."""
    return _counted(workspace, ref, "rejects", "_reason")


def licences(workspace: Workspace, ref: str) -> Mapping[str, int]:
    """Return the rows' licences with their numbers; empty text for rows without one."""
    return _counted(workspace, ref, "samples", "_license")


def sources(
    workspace: Workspace, ref: str, place: tuple[int, int], search: str = ""
) -> tuple[list[tuple[str, int]], int]:
    """Return the source documents at `place` (offset, limit) with their numbers of rows, and how many there are."""
    counts = list(_counted(workspace, ref, "samples", "_source").items())
    found = [one for one in counts if search.lower() in one[0].lower()]
    return found[place[0] : place[0] + place[1]], len(found)


def compared(workspace: Workspace, before: str, after: str, place: tuple[int, int]) -> Compared:
    """Compare two versions by id; returns counts, and the differing rows at `place` (offset, limit)."""
    store = workspace.store
    old, new = store.resolve(before, DatasetVersion), store.resolve(after, DatasetVersion)
    if old.shape != new.shape:
        raise UsageError(f"{before} holds {old.shape}s and {after} {new.shape}s: their rows cannot be compared")
    found = _diff(store, old.digest, new.digest)
    counts = {**found.counts, "unchanged": found.unchanged}
    total = sum(found.counts.values())
    return Compared(counts, list(_changes(found, *place)), total)


def text_of(row: Mapping[str, Any]) -> str:
    """Return what a row says: its text, its conversation, or input and output."""
    if row.get("text") is not None:
        return str(row["text"])
    if row.get("messages") is not None:
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in row["messages"])
    if row.get("input") is not None:
        return f"{row['input']}\n→ {row['output']}"
    content = row.get("content") or b""
    return f"{row.get('media_type', '')}, {len(content):,} bytes"


def metadata_of(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row's metadata as an object."""
    found = orjson.loads(row.get("metadata") or "{}")
    return found if isinstance(found, dict) else {}


def dataset_of(store: Store, artifact: DatasetVersion) -> Dataset:
    """Open a dataset to look at some rows: checking every file first, as who reads all of it does, takes seconds."""
    return Dataset(store.datasets / artifact.table, artifact)


@contextmanager
def _told(artifact: DatasetVersion) -> Iterator[None]:
    """Turn what a damaged or missing table raises into words."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        if isinstance(error, DataError):
            raise
        raise IntegrityError(
            f"the dataset {artifact.digest[:12]} cannot be read: {str(error).splitlines()[0][:200]}",
            hint="`catena fsck` lists what is affected, `catena fsck --forget` lets the next run mend it.",
        ) from error


def _counted(workspace: Workspace, ref: str, table: Table, column: str) -> Mapping[str, int]:
    artifact = workspace.store.resolve(ref, DatasetVersion)
    if not (artifact.rejects if table == "rejects" else artifact.rows):
        return {}
    with _told(artifact):
        return _counts(workspace.store, artifact.digest, table, column)


@lru_cache(CACHED)
def _counts(store: Store, digest: str, table: Table, column: str) -> Mapping[str, int]:
    artifact = store.resolve(digest, DatasetVersion)
    opened = dataset_of(store, artifact).open_table(TABLES[table])
    counted = compute.value_counts(opened.to_table(columns=[column])[column]).to_pylist()
    found = [(entry["values"] or "", int(entry["counts"])) for entry in counted]
    return dict(sorted(found, key=lambda one: (-one[1], one[0])))


@lru_cache(CACHED)
def _hits(store: Store, digest: str, table: Table, search: str, only: str) -> Positions:
    """Return where the rows stand that are asked for. Columns are scanned as Arrow, some 100 MB in a second."""
    artifact = store.resolve(digest, DatasetVersion)
    opened = dataset_of(store, artifact).open_table(TABLES[table])
    names = set(opened.schema.names)
    limiting = "_reason" if table == "rejects" else "_split"
    columns = [name for name in (*SEARCHED, "messages") if name in names and search] + ([limiting] if only else [])
    parts, start = [], 0
    for batch in opened.scanner(columns=columns, scan_in_order=True, batch_size=8192).to_batches():
        mask = np.ones(len(batch), dtype=bool)
        if only:
            column = compute.fill_null(batch[limiting], UNDIVIDED)
            mask &= compute.equal(column, only).to_numpy(zero_copy_only=False)
        if search:
            mask &= _holding(batch, search)
        parts.append(np.flatnonzero(mask) + start)
        start += len(batch)
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _holding(batch: pa.RecordBatch, search: str) -> npt.NDArray[np.bool_]:
    found = np.zeros(len(batch), dtype=bool)
    for name in batch.schema.names:
        if name in SEARCHED:
            column = compute.match_substring(batch[name], search, ignore_case=True)
            found |= compute.fill_null(column, False).to_numpy(zero_copy_only=False)
        elif name == "messages":
            turns = batch[name]
            said = compute.struct_field(compute.list_flatten(turns), "content")
            owners = compute.list_parent_indices(turns).to_numpy(zero_copy_only=False)
            held = compute.fill_null(compute.match_substring(said, search, ignore_case=True), False)
            found[owners[held.to_numpy(zero_copy_only=False)]] = True
    return found


@lru_cache(8)
def _diff(store: Store, before: str, after: str) -> Diff:
    return diff(store, before, after)


def _changes(found: Diff, offset: int, limit: int) -> Iterator[RowChange]:
    """Yield the differing rows of one page: removed, then changed, then added."""
    removed = found.removed[offset : offset + limit]
    for row in found.before.take(removed):
        yield RowChange("removed", key_of(row), row, None)
    begin, end = (min(max(0, at - len(found.removed)), len(found.changed[0])) for at in (offset, offset + limit))
    old, new = found.changed
    for before, after in zip(found.before.take(old[begin:end]), found.after.take(new[begin:end]), strict=True):
        yield RowChange("changed", key_of(before), before, after, changed_fields(before, after))
    past = len(found.removed) + len(old)
    for row in found.after.take(found.added[max(0, offset - past) : max(0, offset + limit - past)]):
        yield RowChange("added", key_of(row), None, row)
