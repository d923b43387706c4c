"""Commits of a repository, as values and as rows of the index. A commit lists every file that it holds.

object   the bytes are in the store's files, by their SHA-256
inline   the text stands in the commit: a model card that was written from lineage
export   a Parquet file written from a dataset version when it is first read (see `hub.repo.exports`)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from sqlalchemy import Connection, delete, insert, select

from catena.core.digest import digest_of
from catena.core.types import Value
from catena.hub.index import now
from catena.hub.schema import repo_commits, repo_moves

if TYPE_CHECKING:
    from catena.hub.store import Store

RepoKind = Literal["model", "dataset"]
LARGE = 10 << 20
"""From this size on a file is told by its SHA-256 (as Git LFS does), below by its Git blob id."""
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"
PRIVATE = "is/private"
HEADS, TAGS, PULLS = "heads/", "tags/", "pr/"
MOVED = "moved/"
"""Of a name that no repository has any more: what it is called now."""


class RepoFile(Value):
    """One file of a commit."""

    path: str
    size: int
    sha256: str
    oid: str
    """Git blob id: of the bytes, or for a large file of its LFS pointer."""
    large: bool = False
    where: Literal["object", "inline", "export"] = "object"
    text: str | None = None
    """Of an inline file."""
    dataset: str | None = None
    """Digest of the dataset version that an export is written from."""
    pickle: bool = False
    """Whether it is a pickle, or an archive of them: loading it runs code."""

    @property
    def etag(self) -> str:
        """What tells these bytes from others, as clients expect it."""
        return self.sha256 if self.large else self.oid

    @property
    def pointer_size(self) -> int:
        """Bytes of the LFS pointer."""
        return len(POINTER.format(self.sha256, self.size))


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of a commit."""

    path: str
    oid: str
    """Changes with anything below it."""


class RepoCommit(Value):
    """One state of a repository."""

    kind: RepoKind
    name: str
    parents: tuple[str, ...] = ()
    files: tuple[RepoFile, ...] = ()
    message: str = ""
    description: str = ""
    author: str = ""
    time: datetime
    artifact: str | None = None
    """Digest of the model or dataset version that it is; None for files that are none."""
    native: str | None = None
    """Digest of what the name's branch stood on in the store when this was written."""
    generated: bool = False
    """Whether it was read off the store and not pushed."""

    @cached_property
    def id(self) -> str:
        """Forty hexadecimal digits, as of a Git commit."""
        return digest_of(self.model_dump(mode="json"))[:40]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> RepoCommit:
        """Return a changed copy, without what was computed of this one."""
        copied = super().model_copy(update=update, deep=deep)
        for name in ("id", "tree", "_by_path"):
            copied.__dict__.pop(name, None)
        return copied

    def file(self, path: str) -> RepoFile | None:
        """Return the file at a path."""
        return self.by_path().get(path)

    def by_path(self) -> Mapping[str, RepoFile]:
        """Return the files by their paths."""
        return self._by_path

    @cached_property
    def tree(self) -> tuple[RepoFile | Folder, ...]:
        """Every file and folder, in the order of paths, a folder before what is in it."""
        states: dict[str, Any] = {}
        found: list[str] = []
        for name in sorted(self._by_path):
            line = f"{name} {self._by_path[name].oid}\n".encode()
            for place in (at for at, letter in enumerate(name) if letter == "/"):
                folder = name[:place]
                if folder not in states:
                    states[folder] = hashlib.sha1(usedforsecurity=False)
                    found.append(folder)
                states[folder].update(line)
            found.append(name)
        return tuple(
            Folder(path, states[path].hexdigest()) if path in states else self._by_path[path] for path in found
        )

    @cached_property
    def _by_path(self) -> dict[str, RepoFile]:
        return {file.path: file for file in self.files}


class RepoMove(Value):
    """One move of a branch or tag; `commit` is None where it was removed."""

    ref: str
    commit: str | None
    moved: datetime
    by: str = Field(default="")


def git_blob(data: bytes) -> str:
    """Return the id that Git gives to these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def pointer_id(sha256: str, size: int) -> str:
    """Return the Git id of the LFS pointer to a large file."""
    return git_blob(POINTER.format(sha256, size).encode())


def inline_file(path: str, text: str) -> RepoFile:
    """Return a file whose text stands in the commit."""
    data = text.encode()
    digest = hashlib.sha256(data).hexdigest()
    return RepoFile(path=path, size=len(data), sha256=digest, oid=git_blob(data), where="inline", text=text)


# -- rows of the index: each takes the connection of a transaction -----------------------------------------------------


def write(connection: Connection, commit: RepoCommit, ref: str | None, by: str = "") -> str:
    """Store a commit and, with `ref`, let a branch or tag stand on it; returns its id."""
    id = commit.id
    if connection.execute(select(repo_commits.c.id).where(repo_commits.c.id == id)).first() is None:
        row = {"id": id, "kind": commit.kind, "name": commit.name, "body": commit.model_dump_json()}
        connection.execute(insert(repo_commits).values(row))
    if ref is not None:
        move(connection, commit.kind, commit.name, ref, id, by=by)
    return id


def move(connection: Connection, kind: str, name: str, ref: str, commit: str | None, *, by: str = "") -> None:
    """Let a branch or tag stand on a commit, or take it away (None)."""
    values = {"kind": kind, "name": name, "ref": ref, "commit": commit, "moved": now(), "by": by}
    connection.execute(insert(repo_moves).values(values))


def read(connection: Connection, kind: str, name: str, id: str) -> RepoCommit | None:
    """Return a commit by its id, or by a beginning of it that is the only one such; None for any other."""
    query = select(repo_commits).where(repo_commits.c.kind == kind, repo_commits.c.name == name)
    found = connection.execute(query.where(repo_commits.c.id.startswith(id, autoescape=True)).limit(2)).all()
    return _commit_of(found[0]) if len(found) == 1 else None


def _commit_of(row: Any) -> RepoCommit:
    """Return the commit of a row, under the name that its repository has now and the id that it was given."""
    commit = RepoCommit.model_validate_json(row.body)
    if commit.name != row.name:
        commit = commit.model_copy(update={"name": row.name})
        commit.__dict__["id"] = row.id  # the id covers the name that the repository had then
    return commit


def read_refs(connection: Connection, kind: str, name: str) -> dict[str, str]:
    """Return the branches and tags that stand now: `heads/main`, `tags/v1` to commit."""
    query = select(repo_moves.c.ref, repo_moves.c.commit).where(repo_moves.c.kind == kind, repo_moves.c.name == name)
    standing = {row.ref: row.commit for row in connection.execute(query.order_by(repo_moves.c.id))}
    return {ref: commit for ref, commit in standing.items() if commit is not None}


def pulls_ever(connection: Connection, kind: str, name: str) -> set[str]:
    """Return the proposals that a repository has had."""
    query = select(repo_moves.c.ref).where(repo_moves.c.kind == kind, repo_moves.c.name == name)
    return set(connection.execute(query.where(repo_moves.c.ref.startswith(PULLS))).scalars())


def read_commits(connection: Connection, kind: str, name: str) -> dict[str, RepoCommit]:
    """Return all commits of a repository by id."""
    query = select(repo_commits).where(repo_commits.c.kind == kind, repo_commits.c.name == name)
    return {row.id: _commit_of(row) for row in connection.execute(query)}


def pushed_files(store: Store) -> dict[str, tuple[RepoFile, tuple[str, ...]]]:
    """Return the stored files that commits hold by themselves (those that were pushed), by SHA-256: the file, and the
    repositories that have it in a commit, as people say them."""
    with store.index.translated(), store.index.engine.connect().execution_options(reads=True) as connection:
        commits = [_commit_of(row) for row in connection.execute(select(repo_commits).order_by(repo_commits.c.name))]
    found: dict[str, tuple[RepoFile, tuple[str, ...]]] = {}
    for commit in commits:
        for file in commit.files if not commit.generated else ():
            if file.where == "object":
                kept, names = found.get(file.sha256, (file, ()))
                said = f"{commit.kind} {commit.name}"
                found[file.sha256] = (kept, names if said in names else (*names, said))
    return found


def remove(connection: Connection, kind: str, name: str) -> None:
    """Forget a repository: its commits, branches and tags."""
    for table in (repo_commits, repo_moves):
        connection.execute(delete(table).where(table.c.kind == kind, table.c.name == name))
