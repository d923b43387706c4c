"""Versions of a dataset's name, as in git: log, branches, diff, commit, merge, checkout.

    pages@3   the third version      pages@production   a tag      pages@fix   the newest of a branch
    pages     the newest of main     pages@1f3a9c       a commit

Commits of one name take turns (a lock that ends with its process); a run that finishes meanwhile is seen, and the work
is done again on top of it: no commit is lost. Nothing is half written at any moment: the last act is one transaction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from catena.core.errors import CatenaError, DataError, EnvironmentProblem, NotFound, UsageError, did_you_mean
from catena.core.events import Events
from catena.core.types import DatasetVersion
from catena.hub.commits import MAIN, Commit, Operation, ancestors, broken, merge_base
from catena.hub.datasets import REJECTS
from catena.hub.diff import ABSENT, ID, Diff, Positions, align, keys_of
from catena.hub.exchange import RowFile, export, row_of
from catena.hub.index import now
from catena.hub.keys import signature_holds
from catena.hub.merge import Conflict, Merge, Resolutions, Side, merge_rows
from catena.hub.revisions import Rows, save_change
from catena.hub.rows import content_digest, shape_of, to_sample
from catena.hub.store import TAG, Store

ATTEMPTS = 20
"""How often a commit is tried again because a run moved `main` in the meantime."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One commit of a log."""

    digest: str
    commit: Commit
    branches: tuple[str, ...]
    """The branches whose newest commit it is."""
    refs: tuple[str, ...]
    """The versions and tags that stand for its dataset."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a history."""

    commit: str
    problem: str


@dataclass(frozen=True, slots=True)
class MergeResult:
    """How a merge ended; with `conflicts` nothing was written."""

    status: Literal["merged", "fast-forward", "up to date", "conflicts"]
    commit: str | None = None
    """Digest of the branch's newest commit afterwards."""
    changes: dict[str, int] | None = None
    conflicts: tuple[Conflict, ...] = ()


# -- looking -----------------------------------------------------------------------------------------------------------


def log(store: Store, name: str, branch: str | None = None) -> list[LogEntry]:
    """Return the commits of a branch (None: of all branches), the newest first."""
    history, branches = _history(store, name)
    starts = [_head(name, branches, branch)] if branch else list(branches.values())
    shown = dict.fromkeys(digest for start in starts for digest in ancestors(history, start))
    if len(starts) > 1:
        shown = dict.fromkeys(sorted(shown, key=lambda digest: history[digest].time, reverse=True))
    refs: dict[str, list[str]] = {}
    for (_, tag), digest in store.index.tags(name).items():
        refs.setdefault(digest, []).append(tag)
    for row in store.index.versions(name=name):
        refs.setdefault(row.digest, []).append(str(row.version))
    return [
        LogEntry(
            digest,
            history[digest],
            tuple(branch for branch, head in branches.items() if head == digest),
            tuple(refs.get(history[digest].dataset, ())),
        )
        for digest in shown
    ]


def verify(store: Store, name: str) -> list[Problem]:
    """Check a name's history: hashes, parents, heads, signatures of rewritten commits, and every dataset's content."""
    history, branches = _history(store, name)
    found = [
        Problem(head, f"is missing: branch {branch} stands at it")
        for branch, head in branches.items()
        if head not in history
    ]
    found += [Problem(*problem) for problem in broken(history, history)]
    for digest, commit in history.items():
        if commit.replaces and not signature_holds(store.root, digest, commit.signature):
            found.append(Problem(digest, f"stands for {commit.replaces[:12]} without a valid signature"))
        dataset = store.index.artifact(commit.dataset)
        if isinstance(dataset, DatasetVersion):  # one that `catena gc --unused` freed is no break of the history
            problem = _damage(store, dataset)
            found += [Problem(digest, problem)] if problem else []
    return found


def _damage(store: Store, dataset: DatasetVersion) -> str | None:
    if dataset.compute_digest() != dataset.digest:
        return f"its dataset {dataset.digest[:12]} has another record than was committed"
    try:
        opened = store.open_dataset(dataset)
        rejects = hashlib.sha256(opened.hashes(REJECTS).tobytes()).hexdigest() if dataset.rejects else ""
        samples = hashlib.sha256(opened.hashes().tobytes()).hexdigest()
    except CatenaError as error:
        return error.message
    if content_digest(dataset.shape, samples, rejects) != dataset.content:
        return f"its dataset {dataset.digest[:12]} has other rows than were committed"
    return None


def diff(store: Store, before: str, after: str, key: str = ID) -> Diff:
    """Compare two versions by key. Raises `UsageError` for an unknown key column."""
    old, new = (store.open_dataset(store.resolve(ref, DatasetVersion)) for ref in (before, after))
    return Diff(old, new, key)


def checkout(store: Store, ref: str, folder: Path, form: str = "jsonl", events: Events | None = None) -> list[Path]:
    """Write a version's samples and rejects into a new folder; returns the files."""
    return export(store.open_dataset(store.resolve(ref, DatasetVersion)), folder, form, events)


# -- branches ----------------------------------------------------------------------------------------------------------


def branches(store: Store, name: str) -> dict[str, str]:
    """Return the branches of a name with their newest commits."""
    return _history(store, name)[1]


def create_branch(store: Store, name: str, branch: str, at: str = "", by: str = "") -> str:
    """Begin a branch at a commit, version, tag or branch of the name (default: main); returns that commit."""
    history, standing = _history(store, name)
    if not TAG.fullmatch(branch) or branch == "latest":
        raise UsageError(
            f"{branch!r} cannot be a branch",
            hint="A branch begins with a letter and has letters, digits, '.', '_' and '-'; 'latest' is taken.",
        )
    if (name, branch) in store.index.tags(name):
        raise UsageError(f"{branch!r} is a tag of {name!r}", hint="Choose another word.")
    digest = _commit_at(store, name, at or MAIN, history, standing)
    if not store.index.move_branch(name, branch, digest, by, expect=None):
        raise UsageError(f"{name!r} has a branch {branch!r} already", hint="Choose another word, or --delete it first.")
    return digest


def delete_branch(store: Store, name: str, branch: str, by: str = "") -> None:
    """Take a branch away; its commits stay in the history."""
    if branch == MAIN:
        raise UsageError("the branch main cannot be deleted")
    head = _head(name, branches(store, name), branch)
    store.index.move_branch(name, branch, None, by, expect=head)


def _history(store: Store, name: str) -> tuple[dict[str, Commit], dict[str, str]]:
    history, standing = store.index.history(name)
    if not history:
        known = {
            row.name for row in store.index.versions() if isinstance(store.index.artifact(row.digest), DatasetVersion)
        }
        raise NotFound(f"there is no dataset named {name!r}", hint=did_you_mean(name, known))
    return history, standing


def _head(name: str, standing: dict[str, str], branch: str) -> str:
    if branch not in standing:
        raise NotFound(f"{name!r} has no branch {branch!r}", hint=did_you_mean(branch, standing))
    return standing[branch]


def _commit_at(store: Store, name: str, at: str, history: dict[str, Commit], standing: dict[str, str]) -> str:
    """Return the commit that a selector means: a branch, the beginning of a commit, or the newest with that dataset."""
    if at in standing:
        return standing[at]
    begins = [digest for digest in history if len(at) >= 6 and digest.startswith(at)]
    if len(begins) == 1:
        return begins[0]
    dataset = store.resolve(f"{name}@{at}", DatasetVersion).digest
    found = [digest for digest, commit in history.items() if commit.dataset == dataset]
    return max(found, key=lambda digest: history[digest].time)


# -- committing --------------------------------------------------------------------------------------------------------


def commit_file(
    store: Store,
    name: str,
    path: Path,
    *,
    branch: str = MAIN,
    message: str = "",
    author: str = "",
    key: str = ID,
    events: Events | None = None,
) -> tuple[str, dict[str, int]]:
    """Make a file's rows (see `hub.exchange`) the branch's newest version; returns the commit and what it changed.

    Only rows that differ by `key` are written. Raises `UsageError` where nothing differs, `DataError` for a bad file.
    """
    with _writing(store, name):
        history, standing = store.index.history(name)
        if not history:
            return _first_commit(store, name, path, message, author)
        head = _head(name, standing, branch)
        base = _dataset_of(store, history[head])
        rows = RowFile(path, base.shape)
        keys, hashes = rows.scan(key, (events or Events()).progress("commit", base.rows))
        opened = store.open_dataset(base)
        old, new = align(keys_of(opened, key), keys)
        both = np.flatnonzero((old != ABSENT) & (new != ABSENT))
        changed = both[(opened.hashes()[old[both]] != hashes[new[both]]).any(axis=1)]
        gone, come = old[(new == ABSENT) & (old != ABSENT)], new[(old == ABSENT) & (new != ABSENT)]
        counts = {"added": len(come), "removed": len(gone), "changed": len(changed)}
        if not any(counts.values()):
            raise UsageError(f"{path} holds what {name}@{branch} holds: there is nothing to commit")
        wanted = np.zeros(len(keys), dtype=bool)
        wanted[come] = wanted[new[changed]] = True
        removed = np.sort(np.concatenate([gone, old[changed]]))
        dataset = save_change(store, base, removed, lambda: rows.rows(wanted))
        draft = _draft(name, dataset, message, author, "commit", counts)
        return _add(store, draft, branch, dataset, head), counts


def _first_commit(store: Store, name: str, path: Path, message: str, author: str) -> tuple[str, dict[str, int]]:
    rows = RowFile(path)
    with store.new_dataset(rows.shape) as writer:
        for row in rows.rows():
            writer.add(to_sample(row))
        dataset = writer.commit()
    counts = {"added": dataset.rows, "removed": 0, "changed": 0}
    return _add(store, _draft(name, dataset, message, author, "commit", counts), MAIN, dataset, None), counts


def put_rows(store: Store, rows: Iterable[Mapping[str, Any]], split: str | None = None) -> DatasetVersion:
    """Store rows from memory (objects with a table's columns) as a dataset that has no name; returns it.

    `split` is where rows go that name none. Raises `DataError` with the row's number for one that does not fit.
    """
    rows = iter(rows)
    first = next(rows, None)
    if not isinstance(first, Mapping):
        raise DataError("these are no rows", hint='A row is an object with columns: {"messages": [...]}, for example.')
    shape = shape_of(first)
    with store.lock("gc", shared=True):
        with store.new_dataset(shape) as writer:
            for number, entry in enumerate(chain([first], rows), 1):
                try:
                    row = row_of(entry, shape)
                except DataError as error:
                    raise DataError(f"row {number}: {error.message}", hint=error.hint) from error
                writer.add(to_sample({**row, "_split": row["_split"] or split}))
            dataset = writer.commit()
        store.index.add_artifact(dataset)
    return dataset


def merge(
    store: Store,
    name: str,
    source: str,
    into: str = MAIN,
    *,
    key: str = ID,
    side: Side | None = None,
    resolutions: Resolutions | None = None,
    message: str = "",
    author: str = "",
) -> MergeResult:
    """Merge a branch (or any commit) into a branch, three-way by key from their nearest common ancestor.

    With conflicts that neither `resolutions` nor `side` decides, nothing is written and they are returned.
    """
    with _writing(store, name):
        history, standing = _history(store, name)
        ours, theirs = _head(name, standing, into), _commit_at(store, name, source, history, standing)
        base = merge_base(history, ours, theirs)
        if base == theirs:
            return MergeResult("up to date", ours)
        if base == ours:
            if not store.index.move_branch(name, into, theirs, author, expect=ours):
                raise _moved(name, into)
            return MergeResult("fast-forward", theirs)
        if base is None:
            raise UsageError(f"{source!r} and {into!r} have no commit in common")
        versions = [_dataset_of(store, history[digest]) for digest in (base, ours, theirs)]
        if len({version.shape for version in versions}) > 1:
            raise UsageError("the two branches hold datasets of different shapes")
        merged = merge_rows(
            *(store.open_dataset(version) for version in versions), key=key, side=side, resolutions=resolutions
        )
        if merged.conflicts:
            return MergeResult("conflicts", ours, conflicts=tuple(merged.conflicts))
        dataset = _save_merged(store, versions[1], merged)
        draft = _draft(name, dataset, message or f"merge {source} into {into}", author, "merge", merged.counts)
        digest = store.index.add_commit(draft(ours, theirs), into, dataset)
        if digest is None:  # a run made a new version of main: what was merged is not what stands there now
            raise _moved(name, into)
        return MergeResult("merged", digest, merged.counts)


def _save_merged(store: Store, ours: DatasetVersion, merged: Merge) -> DatasetVersion:
    if not any(merged.counts.values()):
        return ours  # both sides had come to the same: only the history is joined
    rows: Rows = merged.rows
    removed: Positions = merged.removed
    return save_change(store, ours, removed, rows)


@contextmanager
def _writing(store: Store, name: str) -> Iterator[None]:
    """Let one process at a time commit to a name, and keep the sweeper of leftovers away."""
    held = hashlib.sha256(name.encode()).hexdigest()[:16]
    with store.lock("gc", shared=True), store.lock(f"history-{held}"):
        yield


def _dataset_of(store: Store, commit: Commit) -> DatasetVersion:
    dataset = store.index.artifact(commit.dataset)
    if not isinstance(dataset, DatasetVersion):
        raise NotFound(
            f"the dataset {commit.dataset[:12]} of this commit is no longer in the store",
            hint="`catena data log` shows the commits; begin a branch at one whose dataset is there.",
        )
    return dataset


def _draft(
    name: str, dataset: DatasetVersion, message: str, author: str, operation: Operation, counts: dict[str, int]
) -> Callable[..., Commit]:
    def make(*parents: str | None) -> Commit:
        return Commit(
            name=name,
            dataset=dataset.digest,
            parents=tuple(parent for parent in parents if parent),
            author=author,
            message=message,
            time=now(),
            operation=operation,
            rows=dataset.rows,
            rejects=dataset.rejects,
            changes=counts,
        )

    return make


def _add(store: Store, draft: Callable[..., Commit], branch: str, dataset: DatasetVersion, head: str | None) -> str:
    """Write the commit of a file: it is a whole state, so where a run has moved the branch it comes on top of that."""
    for _ in range(ATTEMPTS):
        digest = store.index.add_commit(draft(head), branch, dataset)
        if digest is not None:
            return digest
        head = store.index.history(draft().name)[1].get(branch)
    raise _moved(draft().name, branch)


def _moved(name: str, branch: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"the branch {branch!r} of {name!r} moved while this was done", hint="Run the same command again."
    )
