"""Erasure: a row, and all that was made from it, leaves every version, branch, tag and reject of the workspace.

    plan      which rows (by id or by a field's value, and everything that descends from them), which tables hold them
    rewrite   each such table anew without them, beside the old one; versions that shared a table share the new one
    switch    names, tags, runs, commits and the deny-list, in one transaction
    purge     the old tables, and unfinished work that holds the rows
    prove     nothing in `datasets/` holds them any more, raw or decoded (see `hub.proof`)
    attest    a tombstone signed with the workspace's key; it holds ids and keyed hashes, none of the content

A journal in `erasures/` makes each step repeatable: after a kill, the next erasure finishes this one first.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from pydantic import BaseModel, Field

from catena.core.digest import canonical_json
from catena.core.errors import IntegrityError, NotFound, UsageError
from catena.core.events import Events
from catena.core.types import DatasetVersion, ModelVersion
from catena.hub.datasets import REJECTS, SAMPLES, Dataset
from catena.hub.deny import deny_key, mark_of
from catena.hub.diff import key_of
from catena.hub.files import write_atomically
from catena.hub.fsck import alone
from catena.hub.index import now
from catena.hub.keys import sign, signature_holds
from catena.hub.proof import MOST_MARKERS, data_files, decoded, held_ids, pieces_of, search
from catena.hub.rewrite import rewrite_table
from catena.hub.rows import to_sample
from catena.hub.store import Store

LARGEST_OTHER = 64 << 20
"""Bytes of a file outside the datasets beyond which it is taken for weights, and not searched."""


class Erasure(BaseModel):
    """What an erasure did, or is to do: its journal while it goes on, its tombstone afterwards."""

    id: str
    name: str
    by: str = ""
    reason: str = ""
    time: str
    rows: list[str]
    """Ids of the erased rows: those that were asked for, then those that were made from them."""
    asked: int
    """How many of them were asked for."""
    marks: list[tuple[str, str]] = Field(default_factory=list)
    """(row id, keyed hash of its data): the deny-list's entries."""
    tables: list[str] = Field(default_factory=list)
    """The tables that held them."""
    datasets: dict[str, str] = Field(default_factory=dict)
    """Digest of each dataset that lost rows to the digest of what it is now."""
    commits: dict[str, str] = Field(default_factory=dict)
    """Commits that were rewritten: old digest to new."""
    retrain: list[str] = Field(default_factory=list)
    """Models that were trained on the rows: names, or digests."""
    files: int = 0
    bytes: int = 0
    """Of the destroyed tables."""
    proof: dict[str, Any] = Field(default_factory=dict)
    elsewhere: list[str] = Field(default_factory=list)
    """Files outside the datasets that hold pieces of the rows: samples of reports, logs. They are not touched."""
    signature: str = ""

    def statement(self) -> str:
        """Return what the signature covers."""
        return canonical_json(self.model_dump(mode="json", exclude={"signature"})).decode()


class _Journal(BaseModel):
    """An erasure that goes on. It holds bytes of the rows: for its owner's eyes only, and removed at the end."""

    erasure: Erasure
    pieces: list[str] = Field(default_factory=list)
    rewritten: dict[str, DatasetVersion] | None = None


def erase(
    store: Store,
    name: str,
    *,
    ids: Iterable[str] = (),
    where: str = "",
    reason: str = "",
    by: str = "",
    sources: bool = False,
    dry_run: bool = False,
    events: Events | None = None,
) -> Erasure:
    """Erase rows of a name, by ids or by `field=value`, wherever they or their descendants are in the workspace.

    `sources` also erases what the rows were made from (and what else was made of that). `dry_run` only plans. Raises
    `NotFound` where no row fits, `EnvironmentProblem` while a run goes on, `IntegrityError` where the proof fails.
    """
    if bool(where) == bool(wanted := frozenset(ids)):
        raise UsageError("say which rows: either ids, or one field=value")
    with alone(store):
        said = events or Events()
        finish_unfinished(store, said)
        journal = _plan(store, name, wanted or _matching(store, name, where), sources)
        journal.erasure.reason, journal.erasure.by = reason, by
        if dry_run:
            return journal.erasure
        _save(store, journal)
        return _carry_out(store, journal, said)


def finish_unfinished(store: Store, events: Events) -> list[Erasure]:
    """Carry out what a kill left half done. The caller is alone in the workspace."""
    paths = sorted((store.root / "erasures").glob("*.journal"))
    return [_carry_out(store, _Journal.model_validate_json(path.read_bytes()), events) for path in paths]


def tombstones(store: Store) -> list[tuple[Erasure, bool]]:
    """Return every erasure that was done, the oldest first, and whether its signature holds."""
    found = [Erasure.model_validate_json(path.read_bytes()) for path in (store.root / "erasures").glob("*.json")]
    found.sort(key=lambda erasure: erasure.time)
    return [(item, signature_holds(store.root, item.statement(), item.signature)) for item in found]


# -- plan --------------------------------------------------------------------------------------------------------------


def _plan(store: Store, name: str, wanted: frozenset[str], sources: bool) -> _Journal:
    datasets = [item for item in store.index.all_artifacts() if isinstance(item, DatasetVersion)]
    opened = [store.open_dataset(dataset) for dataset in datasets]
    rows = dict.fromkeys(sorted(wanted))
    present = {row for dataset in opened for row in _held(dataset, frozenset(rows))[0]}
    if not wanted & present:
        raise NotFound(f"no dataset holds the row {min(wanted)!r}", hint="`catena show NAME --samples 3` shows ids.")
    while True:
        found: set[str] = set()
        for dataset in opened:
            own, parents = _held(dataset, frozenset(rows))
            found |= own | (parents if sources else set())
        if found <= rows.keys():
            break
        rows |= dict.fromkeys(sorted(found - rows.keys()))
    erasure = Erasure(id=uuid.uuid4().hex[:12], name=name, time=now().isoformat(), rows=list(rows), asked=len(wanted))
    journal = _Journal(erasure=erasure)
    ids, key = frozenset(rows), deny_key(store.root)
    marks: dict[tuple[str, str], None] = {}
    pieces: dict[str, None] = {}
    for dataset in opened:
        for row in _rows_of(dataset, ids):
            marks[(row["_id"], mark_of(to_sample(row).data, key))] = None
            pieces |= dict.fromkeys(piece.hex() for piece in pieces_of(row))
    erasure.marks, journal.pieces = list(marks), list(pieces)[:MOST_MARKERS]
    folders = sorted(path for path in store.datasets.glob("??/*") if path.is_dir())
    erasure.tables = [path.relative_to(store.datasets).as_posix() for path in folders if _holds(path, ids)]
    erasure.retrain = _trained(store, [item.digest for item in datasets if item.table in erasure.tables])
    return journal


def _matching(store: Store, name: str, where: str) -> frozenset[str]:
    """Return the ids of the rows of any version of a name whose field has a value."""
    field, sign, value = where.partition("=")
    if not sign:
        raise UsageError(f"{where!r} is not field=value", hint="For example: --where '_source=https://example.org/a'")
    history, _ = store.index.history(name)
    digests = {commit.dataset for commit in history.values()}
    found: set[str] = set()
    for digest in sorted(digests):
        dataset = store.index.artifact(digest)
        if isinstance(dataset, DatasetVersion):
            for batch in _columns(store.open_dataset(dataset), ["_id", field.partition(".")[0]]):
                found |= {row["_id"] for row in batch.to_pylist() if key_of(row, field) == value}
    if not found:
        raise NotFound(f"no row of {name!r} has {where}")
    return frozenset(found)


def _columns(dataset: Dataset, columns: list[str]) -> Iterator[pa.RecordBatch]:
    for table in (SAMPLES, REJECTS) if dataset.version.rejects else (SAMPLES,):
        opened = dataset.open_table(table)
        if columns[-1] not in opened.schema.names:
            raise UsageError(f"there is no column {columns[-1]!r}", hint=f"Columns: {', '.join(opened.schema.names)}.")
        yield from opened.scanner(columns=columns).to_batches()


def _held(dataset: Dataset, ids: frozenset[str]) -> tuple[set[str], set[str]]:
    """Return the ids of rows that are, or were made from, one of these; and the parents of those that are."""
    wanted = pa.array(sorted(ids), pa.string())
    own: set[str] = set()
    parents: set[str] = set()
    for batch in _columns(dataset, ["_id", "_parents"]):
        if held_ids(batch, wanted):
            for row in batch.to_pylist():
                made_from = row["_parents"] or []
                own |= {row["_id"]} if row["_id"] in ids or not ids.isdisjoint(made_from) else set()
                parents |= set(made_from) if row["_id"] in ids else set()
    return own, parents


def _rows_of(dataset: Dataset, ids: frozenset[str]) -> Iterator[dict[str, Any]]:
    for table in (SAMPLES, REJECTS) if dataset.version.rejects else (SAMPLES,):
        names = dataset.open_table(table).to_table(columns=["_id"])["_id"].to_pylist()
        places = np.array([place for place, name in enumerate(names) if name in ids], dtype=np.int64)
        for row in dataset.take(places, table):
            yield {key: value for key, value in row.items() if key not in ("_reason", "_detail")}


def _holds(folder: Path, ids: frozenset[str]) -> bool:
    """Tell whether a table folder holds one of these rows in any revision, finished or not, deleted or not."""
    wanted = pa.array(sorted(ids), pa.string())
    files = folder.glob("*.lance/data/*.lance")
    return any(held_ids(batch, wanted) for path in files for batch in decoded(path, ["_id", "_parents"]))


def _trained(store: Store, digests: list[str]) -> list[str]:
    """Return the models that were made, directly or not, from these datasets."""
    waiting, seen, models = list(digests), set(digests), []
    while waiting:
        for run in store.index.runs_given(waiting.pop()):
            if run.status != "done" or not run.output or run.output in seen:
                continue
            seen.add(run.output)
            waiting.append(run.output)
            if isinstance(store.index.artifact(run.output), ModelVersion):
                names = [f"{row.name}@{row.version}" for row in store.index.versions(digest=run.output)]
                models += names or [run.output]
    return sorted(models)


# -- carry out ---------------------------------------------------------------------------------------------------------


def _carry_out(store: Store, journal: _Journal, events: Events) -> Erasure:
    erasure, datasets = journal.erasure, store.datasets
    ids, pieces = frozenset(erasure.rows), [bytes.fromhex(piece) for piece in journal.pieces]
    if journal.rewritten is None:
        held = [path for table in erasure.tables for path in data_files(datasets / table)]
        before = search(held, ids, pieces)
        erasure.proof["before"] = {"ids_found": len(before.ids), "pieces_found": len(before.pieces)}
        erasure.files, erasure.bytes = before.files, before.bytes
        journal.rewritten = _rewrite(store, erasure, events)
        erasure.datasets = {old: new.digest for old, new in journal.rewritten.items() if new.digest != old}
        _save(store, journal)
    store.index.replace_datasets(journal.rewritten, erasure.id, erasure.marks, lambda digest: sign(store.root, digest))
    erasure.commits = store.index.rewritten_commits(erasure.id)
    shutil.rmtree(store.root / "exports", ignore_errors=True)  # copies for the hub's clients
    for table in erasure.tables:
        shutil.rmtree(datasets / table, ignore_errors=True)
    for path in datasets.glob(".writing-*"):
        shutil.rmtree(path, ignore_errors=True)
    _prove(store, erasure, ids, pieces, events)
    erasure.signature = sign(store.root, erasure.statement())
    body = orjson.dumps(erasure.model_dump(mode="json"), option=orjson.OPT_INDENT_2)
    write_atomically(_folder(store) / f"{erasure.id}.json", body)
    _journal_path(store, erasure).unlink()
    events.emit("erased", id=erasure.id, rows=len(erasure.rows), datasets=len(erasure.datasets))
    return erasure


def _rewrite(store: Store, erasure: Erasure, events: Events) -> dict[str, DatasetVersion]:
    affected: dict[str, list[DatasetVersion]] = {}
    for artifact in store.index.all_artifacts():
        if isinstance(artifact, DatasetVersion) and artifact.table in erasure.tables:
            affected.setdefault(artifact.table, []).append(artifact)
    progress = events.progress("rewrite", sum(item.rows for items in affected.values() for item in items))
    done: dict[str, DatasetVersion] = {}
    for items in affected.values():
        done |= rewrite_table(store, items, frozenset(erasure.rows), f"-{erasure.id}", progress)
    progress.finish()
    return done


def _prove(store: Store, erasure: Erasure, ids: frozenset[str], pieces: list[bytes], events: Events) -> None:
    """Search all datasets; unfinished work that holds the rows goes, what else holds them is named."""
    files = data_files(store.datasets)
    progress = events.progress("prove", sum(path.stat().st_size for path in files), "bytes")
    after = search(files, ids, pieces, progress)
    progress.finish()
    if after.ids:
        row, places = next(iter(after.ids.items()))
        raise IntegrityError(
            f"the row {row} is still in {Path(places[0]).relative_to(store.root)}",
            hint="Nothing else is lost; run `catena data erase` again, and report this.",
        )
    for folder in sorted((store.root / "work").glob("*")):
        held = search(data_files(folder) if folder.is_dir() else [folder], ids, pieces)
        if held.ids or held.pieces or held.mentions:
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    others = [path for part in ("runs", "objects") for path in data_files(store.root / part)]
    others = [path for path in others if path.stat().st_size <= LARGEST_OTHER]
    seen = search(others, ids, pieces)
    kept = {path for paths in seen.pieces.values() for path in paths}
    erasure.elsewhere = sorted(Path(path).relative_to(store.root).as_posix() for path in kept)
    erasure.proof["after"] = {
        "files": after.files,
        "bytes": after.bytes,
        "ids_found": 0,
        "pieces_sought": len(pieces),
        "pieces_found": len(after.pieces),
        "also_in_rows": sorted(after.holders)[:100],
    }


def _folder(store: Store) -> Path:
    folder = store.root / "erasures"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _journal_path(store: Store, erasure: Erasure) -> Path:
    return _folder(store) / f"{erasure.id}.journal"


def _save(store: Store, journal: _Journal) -> None:
    write_atomically(_journal_path(store, journal.erasure), journal.model_dump_json().encode(), mode=0o600)
