"""Integrity and space: what is damaged in the store, and what nothing needs any more.

`check` reads every stored byte. `forget` takes damaged artifacts out, so that the next run makes them again.
`collect_garbage` frees leftovers of killed runs and bytes without an owner; it never works beside a run.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from catena.core.errors import EnvironmentProblem, environment_problem
from catena.core.events import Events
from catena.core.types import Artifact, DatasetVersion, File, ModelVersion, Report
from catena.hub.datasets import damage
from catena.hub.repo.records import pushed_files
from catena.hub.store import Store

HALF_WRITTEN = re.compile(r"\..+\.[0-9a-f]{8}")  # what `write_atomically` and `checkout` write before they rename


@dataclass(frozen=True, slots=True)
class Finding:
    """One damaged or missing file of an artifact, or one that was pushed to a repository and is part of none."""

    kind: str
    """Of the artifact; `file` for one that was pushed."""
    artifact: str
    """Digest of the artifact; SHA-256 of a pushed file."""
    names: tuple[str, ...]
    """Every `name@version` that stands for it; of a pushed file the repositories that have it."""
    file: str
    problem: str


@dataclass(slots=True)
class Freed:
    """What `collect_garbage` removed, or would remove."""

    files: int = 0
    bytes: int = 0
    artifacts: tuple[str, ...] = ()
    """Digests of artifacts that were dropped (`unused`)."""
    paths: list[str] = field(default_factory=list)
    """What went, one entry for each file or folder."""


def check(store: Store, events: Events | None = None) -> list[Finding]:
    """Read every file of every artifact, and all that was pushed, and return what is damaged. What is shared is read
    once."""
    artifacts, pushed = store.index.all_artifacts(), pushed_files(store)
    owned = {file.sha256 for one in artifacts if not isinstance(one, DatasetVersion) for file in one.files}
    alone = {sha256: found for sha256, found in pushed.items() if sha256 not in owned}
    total = sum(file.size for artifact in artifacts for file in artifact.files)
    total += sum(file.size for file, _ in alone.values())
    progress = (events or Events()).progress("check", total, "bytes")
    known: dict[tuple[str, str], str | None] = {}
    findings = []
    for artifact in artifacts:
        names = tuple(f"{row.name}@{row.version}" for row in store.index.versions(digest=artifact.digest))
        for file in artifact.files:
            key = (_place(artifact), file.path if isinstance(artifact, DatasetVersion) else file.sha256)
            if key not in known:
                known[key] = _damage(store, artifact, file)
            problem = known[key]
            if problem:
                findings.append(Finding(artifact.kind, artifact.digest, names, file.path, problem))
            progress.advance(file.size)
    for sha256, (entry, names) in alone.items():
        problem = _damage(store, None, File(path=entry.path, size=entry.size, sha256=sha256))
        if problem:
            findings.append(Finding("file", sha256, names, entry.path, problem))
        progress.advance(entry.size)
    progress.finish()
    return findings


def _place(artifact: Artifact) -> str:
    return artifact.table if isinstance(artifact, DatasetVersion) else ""


def _damage(store: Store, artifact: Artifact | None, file: File) -> str | None:
    try:
        if isinstance(artifact, DatasetVersion):
            return damage(store.datasets / artifact.table, file)
        return store.files.damage(file)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def forget(store: Store, findings: Iterable[Finding]) -> list[str]:
    """Remove the damaged artifacts (records, names, damaged bytes) and return their digests; of damaged files that were
    pushed only the bytes, so that the same push mends them.

    What was made from them stays. Raises `EnvironmentProblem` while a run is going on.
    """
    damaged: dict[str, list[str]] = {}
    pushed = set()
    for finding in findings:
        damaged.setdefault(finding.artifact, []).append(finding.file)
        if finding.kind == "file":
            pushed.add(finding.artifact)
    with alone(store):
        for digest, paths in damaged.items():
            artifact = store.index.artifact(digest)
            if artifact is None:
                if digest in pushed and store.files.has(digest):
                    store.files.remove(digest)
                continue
            store.index.remove_artifact(digest)  # first: a kill after it leaves only bytes without an owner
            if isinstance(artifact, DatasetVersion):
                if not any(
                    isinstance(other, DatasetVersion) and other.table == artifact.table
                    for other in store.index.all_artifacts()
                ):
                    shutil.rmtree(store.datasets / artifact.table, ignore_errors=True)
                continue  # other versions share the table: what of it is sound stays theirs
            shutil.rmtree(store.root / "checkouts" / digest, ignore_errors=True)
            for file in artifact.files:
                if file.path in paths and store.files.has(file.sha256):
                    store.files.remove(file.sha256)
    return list(damaged)


def collect_garbage(
    store: Store, *, dry_run: bool = False, older_than: timedelta = timedelta(0), unused: bool = False
) -> Freed:
    """Free what nothing needs: leftovers of killed runs, laid out checkouts, bytes that no artifact refers to.

    `older_than` spares what was written since. `unused` also drops the artifacts that no tag, no branch and no newest
    version of a name leads to, and the folders of unfinished steps. Raises `EnvironmentProblem` beside a run.
    """
    with alone(store):
        if not dry_run:
            store.index.interrupt_runs()  # nothing runs now: whoever is recorded as running was killed
        artifacts = store.index.all_artifacts()
        dropped = unused_artifacts(store) if unused else set()
        freed = Freed(artifacts=tuple(artifact.digest for artifact in artifacts if artifact.digest in dropped))
        if not dry_run:
            for digest in freed.artifacts:
                store.index.remove_artifact(digest)
        kept = [artifact for artifact in artifacts if artifact.digest not in dropped]
        sweep = _Sweep(store, freed, dry_run, time.time() - older_than.total_seconds())
        for path in _leftovers(store, kept, unfinished=unused):
            sweep.path(path)
        owners = [artifact for artifact in kept if not isinstance(artifact, DatasetVersion)]
        wanted = {file.sha256 for artifact in owners for file in artifact.files} | pushed_files(store).keys()
        for name, size in list(store.files.all()):
            if name not in wanted:
                sweep.object(name, size)
    return freed


def unused_artifacts(store: Store) -> set[str]:
    """Return the digests that no tag, branch or newest version leads to, by what made them or what was measured."""
    artifacts = {artifact.digest: artifact for artifact in store.index.all_artifacts()}
    newest = {row.name: row.digest for row in store.index.versions()}
    waiting = [*newest.values(), *store.index.tags().values()]
    for name in newest:
        history, branches = store.index.history(name)
        # Branches are merged from where they parted: while there are several, all commits keep their data.
        heads = history if len(branches) > 1 else branches.values()
        waiting.extend(history[head].dataset for head in heads if head in history)
    kept: set[str] = set()
    while waiting:
        digest = waiting.pop()
        if digest in kept or digest not in artifacts:
            continue
        kept.add(digest)
        waiting.extend(_needs(store, artifacts[digest]))
        # The scores of what is kept are kept: they are why it was chosen.
        waiting.extend(
            other.digest for other in artifacts.values() if isinstance(other, Report) and other.subject == digest
        )
    return artifacts.keys() - kept


def _needs(store: Store, artifact: Artifact) -> Iterator[str]:
    """Yield the digests of what an artifact was made from or cannot be used without."""
    yield from artifact.parents
    for run in store.index.find_runs(output=artifact.digest):
        yield from run.inputs.values()
    if isinstance(artifact, ModelVersion) and artifact.base:
        yield artifact.base
    if isinstance(artifact, Report):
        yield artifact.subject


@contextmanager
def alone(store: Store) -> Iterator[None]:
    """Hold the lock that every run shares."""
    try:
        with store.lock("gc", wait=False) as free:
            if not free:
                raise EnvironmentProblem(
                    "a run or a server is at work in this workspace", hint="Wait until it has ended, or stop it."
                )
            yield
    except OSError as error:
        raise environment_problem(error, store.root) or error from error


def _leftovers(store: Store, kept: list[Artifact], *, unfinished: bool) -> Iterator[Path]:
    """Yield files and folders of the workspace that no artifact and no step needs. No run is going on."""
    root = store.root
    yield from store.datasets.glob(".writing-*")
    tables = {artifact.table for artifact in kept if isinstance(artifact, DatasetVersion)}
    for path in sorted(store.datasets.glob("??/*")):
        if path.relative_to(store.datasets).as_posix() not in tables:
            yield path
    yield from sorted((root / "checkouts").glob("*"))
    yield from sorted((root / "exports").glob("*"))
    yield from sorted((root / "locks").glob("step-*.lock"))
    for path in sorted((root / "work").glob("*")):
        if unfinished or path.name.startswith("tmp-") or store.index.find_runs(key=path.name, status="done"):
            yield path
    for pattern in (".*", "runs/*/.*"):
        for path in sorted(root.glob(pattern)):
            if path.is_file() and HALF_WRITTEN.fullmatch(path.name):
                yield path


@dataclass(slots=True)
class _Sweep:
    """Removes (or only counts) what was last written before a moment."""

    store: Store
    freed: Freed
    dry_run: bool
    before: float
    """Unix seconds."""

    def path(self, path: Path) -> None:
        """Remove a file or folder of the workspace. Hard links count nothing: their bytes stay."""
        inside = [path, *path.rglob("*")] if path.is_dir() else [path]
        stats = [item.lstat() for item in inside]
        if max(stat.st_mtime for stat in stats) > self.before:
            return
        files = [stat for item, stat in zip(inside, stats, strict=True) if not item.is_dir()]
        size = sum(stat.st_size for stat in files if stat.st_nlink == 1)
        self._count(str(path.relative_to(self.store.root)), len(files), size)
        if self.dry_run:
            return
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    def object(self, name: str, size: int) -> None:
        """Remove a stored file by the name that `FileStore.all` gave."""
        files = self.store.files
        if files.fs.modified(f"{files.root}/{name[:2]}/{name}").timestamp() > self.before:
            return
        self._count(f"objects/{name}", 1, size)
        if not self.dry_run:
            files.remove(name)

    def _count(self, name: str, files: int, size: int) -> None:
        self.freed.files += files
        self.freed.bytes += size
        self.freed.paths.append(name)
