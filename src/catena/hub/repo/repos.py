"""Reading repositories. What the store holds under a name is the repository's `main`; what was pushed lies beside it.

    name@3 made by a run   ->  a commit with its files and a card from lineage, when somebody first looks
    a new report on it     ->  a further commit: the same files, a newer card
    a push                 ->  a commit on top; a whole model is a new version of the name at the same moment

A commit that was read off the store is written down, so that its id holds for as long as the repository does.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select

from catena.core.errors import NotFound, UsageError
from catena.core.types import Artifact, DatasetVersion, File, ModelVersion
from catena.hub.commits import MAIN
from catena.hub.index import now
from catena.hub.repo import records
from catena.hub.repo.card import card
from catena.hub.repo.exports import exported_files
from catena.hub.repo.probe import Probe
from catena.hub.repo.records import (
    HEADS,
    LARGE,
    TAGS,
    RepoCommit,
    RepoFile,
    RepoKind,
    git_blob,
    inline_file,
    pointer_id,
)
from catena.hub.schema import artifacts, branch_moves, names, repo_moves, tag_moves
from catena.hub.store import Store

README = "README.md"
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{7,64}")
KEPT = 512
"""Commits that are kept in memory."""


class RepoNotFound(NotFound):
    """There is no such repository."""


class RevisionNotFound(NotFound):
    """The repository has no such branch, tag or commit."""


class EntryNotFound(NotFound):
    """The commit has no such file."""


class Conflict(UsageError):
    """Something is there already, or has moved in the meantime."""

    http_status = 409


@dataclass(frozen=True, slots=True)
class Refs:
    """Where the branches and tags of a repository stand: name to commit."""

    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)
    """Proposed changes, by number."""


STAMP = select(
    select(func.count()).select_from(artifacts).scalar_subquery(),
    select(func.max(artifacts.c.created)).scalar_subquery(),
    select(func.count()).select_from(names).scalar_subquery(),
    select(func.max(names.c.created)).scalar_subquery(),
    select(func.max(tag_moves.c.id)).scalar_subquery(),
    select(func.max(branch_moves.c.id)).scalar_subquery(),
    select(func.max(repo_moves.c.id)).scalar_subquery(),
    select(func.count()).select_from(repo_moves).scalar_subquery(),
)


def checked_name(name: str) -> str:
    """Return a repository's name, `org/name` or plain; raises `UsageError` for any that clients would not take."""
    if not REPO_ID.fullmatch(name) or ".." in name or "--" in name or name.endswith((".git", ".", "-")):
        raise UsageError(
            f"{name[:200]!r} cannot name a repository",
            hint="`name` or `org/name` of letters, digits, '.', '_' and '-', without '..', '--' and '.git' at the end.",
        )
    return name


LOOKS = 20
"""At a repository that others change meanwhile, before its reader is told."""


class Repos:
    """The repositories of a workspace. For threads; each method sees what other processes have written."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._commits: OrderedDict[str, RepoCommit] = OrderedDict()
        self._fresh: dict[tuple[str, str], tuple[Any, Refs]] = {}
        self._guard = threading.Lock()
        self._probe = Probe(store.index.engine)
        self._seen: tuple[int | None, tuple[Any, ...]] | None = None

    # -- the index ---------------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for questions."""
        engine = self.store.index.engine
        with self.store.index.translated(), engine.connect().execution_options(reads=True) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction."""
        with self.store.index.translated(), self.store.index.engine.begin() as connection:
            yield connection

    @contextmanager
    def alone(self, kind: RepoKind, name: str) -> Iterator[None]:
        """Let one process at a time change a repository, and keep the sweeper of leftovers away."""
        held = hashlib.sha256(f"{kind}/{name}".encode()).hexdigest()[:16]
        with self.store.lock("gc", shared=True), self.store.lock(f"repo-{held}"):
            yield

    def stamp(self) -> tuple[Any, ...]:
        """Return what is another when anything that a repository shows has changed."""
        version = self._probe.version()
        seen = self._seen
        if version is not None and seen is not None and seen[0] == version:
            return seen[1]
        with self.reading() as connection:
            found = tuple(connection.execute(STAMP).one())
        self._seen = (version, found)  # the version is of before: what came in between is asked for again
        return found

    def hot(self, kind: RepoKind, name: str, revision: str) -> RepoCommit | None:
        """Return a commit that was read before if the index has not changed since: a few microseconds, no query."""
        seen, known = self._seen, self._fresh.get((kind, name))
        if seen is None or known is None or known[0] != seen[1] or seen[0] is None or self._probe.version() != seen[0]:
            return None
        id = known[1].branches.get(revision) or known[1].tags.get(revision) or revision
        return self._commits.get(f"{kind}/{name}/{id}")

    # -- what there is -----------------------------------------------------------------------------------------------

    def native(self, kind: RepoKind, name: str) -> dict[str, str]:
        """Return the branches that the store itself has under a name, with the digests they stand on."""
        rows = self.store.index.versions(name=name)
        newest = self.store.index.artifact(rows[-1].digest) if rows else None
        if newest is None or newest.kind != kind:
            return {}
        if kind == "model":
            return {MAIN: newest.digest}
        history, branches = self.store.index.history(name)
        known = {branch: history[head].dataset for branch, head in branches.items() if head in history}
        return {**known, MAIN: newest.digest}

    def own(self, kind: RepoKind, name: str) -> dict[str, str]:
        """Return the branches, tags and marks that were written here: `heads/main`, `tags/v1` to commit."""
        with self.reading() as connection:
            return records.read_refs(connection, kind, name)

    def exists(self, kind: RepoKind, name: str) -> bool:
        """Tell whether there is such a repository."""
        return f"{HEADS}{MAIN}" in self.own(kind, name) or bool(self.native(kind, name))

    def private(self, kind: RepoKind, name: str) -> bool:
        """Tell whether only those with a key may see it, also where others are open to all."""
        return records.PRIVATE in self.own(kind, name)

    def refs(self, kind: RepoKind, name: str) -> Refs:
        """Return branches and tags, `main` as it stands in the store now. Raises `RepoNotFound`.

        A branch whose version is gone from the store is left out.
        """
        key = (kind, name)
        for left in range(LOOKS, 0, -1):
            stamp = self.stamp()  # of before: what changes while this looks is looked at again
            known = self._fresh.get(key)
            if known is not None and known[0] == stamp:
                return known[1]
            own, native = self.own(kind, name), self.native(kind, name)
            if f"{HEADS}{MAIN}" not in own and not native:
                raise RepoNotFound(f"there is no {kind} {name!r} on this hub", hint="`catena hub list` shows what is.")
            try:
                if left > 1 and self._adopt_stale(kind, name, own, native):
                    continue
                found = Refs(_below(own, HEADS), self._tags(kind, name, own), _below(own, records.PULLS))
            except RevisionNotFound:  # its commits have another name by now
                if left > 1:
                    continue
                raise
            if MAIN in found.branches:
                if left > 1:  # else nobody asked whether the store has something newer
                    self._fresh[key] = (stamp, found)
                return found
        raise RepoNotFound(f"there is no {kind} {name!r} that can be read on this hub", hint="`catena fsck` tells why.")

    def _adopt_stale(self, kind: RepoKind, name: str, own: dict[str, str], native: dict[str, str]) -> bool:
        """Write down what the store has and refs do not; tells whether anything may have changed."""
        stale = [
            (branch, digest)
            for branch, digest in native.items()
            if self._stale(kind, name, own.get(f"{HEADS}{branch}"), digest)
        ]
        adopted = [self._adopt(kind, name, branch, digest) for branch, digest in stale]
        return any(adopted)

    def _tags(self, kind: RepoKind, name: str, own: dict[str, str]) -> dict[str, str]:
        tags = _below(own, TAGS)
        if self.native(kind, name):
            for (_, tag), digest in self.store.index.tags(name).items():
                if tag not in tags or self.read(kind, name, tags[tag]).artifact != digest:
                    tags[tag] = self._commit_of(kind, name, digest).id
        return tags

    # -- commits -----------------------------------------------------------------------------------------------------

    def read(self, kind: RepoKind, name: str, id: str) -> RepoCommit:
        """Return a commit by its id; raises `RevisionNotFound`."""
        with self._guard:
            found = self._commits.get(f"{kind}/{name}/{id}")
        if found is not None:
            return found
        with self.reading() as connection:
            found = records.read(connection, kind, name, id)
        if found is None:
            raise RevisionNotFound(f"{name!r} has no commit {id!r}")
        with self._guard:
            self._commits[f"{kind}/{name}/{id}"] = found
            while len(self._commits) > KEPT:
                self._commits.popitem(last=False)
        return found

    def commit(self, kind: RepoKind, name: str, revision: str = MAIN) -> RepoCommit:
        """Return what a branch, tag, commit (7 digits at least), version or digest stands for."""
        refs = self.refs(kind, name)
        if revision.startswith("refs/pr/") and revision.removeprefix("refs/pr/") in refs.pulls:
            return self.read(kind, name, refs.pulls[revision.removeprefix("refs/pr/")])
        word = revision.removeprefix("refs/").removeprefix("heads/").removeprefix("tags/")
        for known in (refs.branches, refs.tags):
            if word in known:
                return self._pointed_at(kind, name, known[word])
        versions = {str(row.version): row.digest for row in self.store.index.versions(name=name)}
        if word in versions and self.native(kind, name):
            return self._commit_of(kind, name, versions[word])
        if COMMIT.fullmatch(word):
            digests = [digest for digest in versions.values() if len(word) > 40 and digest.startswith(word)]
            if digests:
                return self._commit_of(kind, name, digests[0])
            return self.read(kind, name, word)
        raise RevisionNotFound(f"{name!r} has no branch, tag or commit {revision[:100]!r}")

    def _pointed_at(self, kind: RepoKind, name: str, id: str) -> RepoCommit:
        """Return the commit that a ref has just named; raises `RepoNotFound` where it was moved away since."""
        try:
            return self.read(kind, name, id)
        except RevisionNotFound:
            self.refs(kind, name)
            raise

    def log(self, kind: RepoKind, name: str, revision: str = MAIN) -> list[tuple[str, RepoCommit]]:
        """Return a commit and all before it, the newest first."""
        start = self.commit(kind, name, revision)
        with self.reading() as connection:
            known = records.read_commits(connection, kind, name)
        found: list[tuple[str, RepoCommit]] = []
        id: str | None = start.id
        while id is not None and id in known:
            found.append((id, known[id]))
            id = next(iter(known[id].parents), None)
        return found

    def _commit_of(self, kind: RepoKind, name: str, digest: str) -> RepoCommit:
        """Return the newest commit that is this artifact; one of its own, on no branch, where there is none."""
        with self.reading() as connection:
            known = records.read_commits(connection, kind, name)
        found = [commit for commit in known.values() if commit.artifact == digest]
        if found:
            return max(found, key=lambda commit: (commit.time, commit.id))
        artifact = self.store.index.artifact(digest)
        if artifact is None or artifact.kind != kind:
            raise RevisionNotFound(f"{name!r} has no version {digest[:12]} any more")
        commit = self._drawn(kind, name, artifact, (), artifact.created or now())
        with self.writing() as connection:
            records.write(connection, commit, None)
        return commit

    # -- reading off the store ---------------------------------------------------------------------------------------

    def _stale(self, kind: RepoKind, name: str, head: str | None, digest: str) -> bool:
        if head is None:
            return True
        commit = self.read(kind, name, head)
        if commit.native != digest:
            return True
        shown = commit.file(README)
        if not commit.generated or shown is None or shown.text is None:
            return False
        artifact = self.store.index.artifact(digest)
        return artifact is not None and card(self.store, artifact, name) != shown.text

    def _adopt(self, kind: RepoKind, name: str, branch: str, digest: str) -> bool:
        """Write down what a branch of the store stands on; of a model's `main` at first every version.

        Returns False where that is nothing: the version is gone from the store.
        """
        with self.alone(kind, name):
            head = self.own(kind, name).get(f"{HEADS}{branch}")
            if not self._stale(kind, name, head, digest):
                return True  # another process was faster
            if self.native(kind, name).get(branch) != digest:
                return True  # it has another name by now, is gone, or stands on something newer
            rows = [(row.digest, row.created, f"version {row.version}") for row in self.store.index.versions(name=name)]
            wanted = rows if kind == "model" and head is None else [row for row in rows if row[0] == digest][-1:]
            if head is not None and self.read(kind, name, head).artifact == digest:
                wanted = [(digest, now(), "card: what is known now")]
            made, parents = [], (head,) if head else ()
            for one, at, message in wanted or [(digest, now(), f"branch {branch}")]:
                artifact = self.store.index.artifact(one)
                if artifact is not None and artifact.kind == kind:
                    made.append(self._drawn(kind, name, artifact, parents, at, message))
                    parents = (made[-1].id,)
            with self.writing() as connection:
                for commit in made:
                    records.write(connection, commit, f"{HEADS}{branch}" if commit is made[-1] else None)
            return bool(made)

    def _drawn(
        self,
        kind: RepoKind,
        name: str,
        artifact: Artifact,
        parents: tuple[str, ...],
        at: datetime,
        message: str = "a version of the store",
    ) -> RepoCommit:
        """Return the commit of a stored version: its files, and a card where it has none."""
        if isinstance(artifact, DatasetVersion):
            files = exported_files(self.store, artifact)
        elif isinstance(artifact, ModelVersion):
            files = tuple(self._described(file) for file in artifact.files)
        else:
            raise TypeError(f"a {artifact.kind} is no repository")
        if README not in {file.path for file in files}:
            files = (*files, inline_file(README, card(self.store, artifact, name)))
        return RepoCommit(
            kind=kind,
            name=name,
            parents=parents,
            files=tuple(sorted(files, key=lambda file: file.path)),
            message=message,
            author="catena",
            time=at,
            artifact=artifact.digest,
            native=artifact.digest,
            generated=True,
        )

    def _described(self, file: File) -> RepoFile:
        return described(self.store, file)


def described(store: Store, file: File) -> RepoFile:
    """Return a stored file as a commit lists it; a small one is read for its Git id."""
    large = file.size >= LARGE
    if large:
        oid = pointer_id(file.sha256, file.size)
    else:
        with store.files.open(file.sha256) as stream:
            oid = git_blob(stream.read())
    return RepoFile(path=file.path, size=file.size, sha256=file.sha256, oid=oid, large=large)


def _below(refs: dict[str, str], start: str) -> dict[str, str]:
    return {ref.removeprefix(start): commit for ref, commit in refs.items() if ref.startswith(start)}
