"""What is on the hub: one entry for each repository, searched in memory and read again when the index has changed."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Connection, func, select

from catena.hub.commits import MAIN
from catena.hub.index import now
from catena.hub.repo.records import HEADS, PRIVATE, RepoKind
from catena.hub.repo.repos import REPO_ID, Repos
from catena.hub.schema import artifacts, names, repo_commits, repo_moves


@dataclass(frozen=True, slots=True)
class Entry:
    """One repository in a list."""

    kind: RepoKind
    name: str
    created: datetime
    changed: datetime
    tags: tuple[str, ...] = ()
    license: str | None = None
    about: str = ""
    """Architecture, or shape and rows."""
    bytes: int = 0
    private: bool = False

    @property
    def words(self) -> str:
        """What a search looks through."""
        return " ".join((self.name, *self.tags, self.about, self.license or "")).lower()


class Listing:
    """The list of all repositories. For threads."""

    def __init__(self, repos: Repos) -> None:
        self._repos = repos
        self._lock = threading.Lock()
        self._stamp: tuple[Any, ...] | None = None
        self._entries: dict[str, list[tuple[str, Entry]]] = {}

    def find(
        self, kind: RepoKind, *, search: str = "", author: str = "", tags: Iterable[str] = (), private: bool = True
    ) -> list[Entry]:
        """Return the repositories that have every word of `search` and every tag, the last changed first."""
        words, wanted = search.lower().split(), {tag.lower() for tag in tags if tag}
        found = []
        for text, entry in self._all(kind):
            if entry.private and not private:
                continue
            if author and entry.name.partition("/")[0].lower() != author.lower():
                continue
            if all(word in text for word in words) and wanted <= {tag.lower() for tag in entry.tags}:
                found.append(entry)
        return found

    def _all(self, kind: RepoKind) -> list[tuple[str, Entry]]:
        stamp = self._repos.stamp()
        with self._lock:
            if stamp != self._stamp:
                with self._repos.reading() as connection:
                    self._entries = {word: _read(connection, word) for word in ("model", "dataset")}
                self._stamp = stamp
            return self._entries[kind]


def _read(connection: Connection, kind: str) -> list[tuple[str, Entry]]:
    newest = select(names.c.name, func.max(names.c.version).label("version"), func.min(names.c.created).label("first"))
    newest = newest.group_by(names.c.name)
    last = newest.subquery()
    query = select(names.c.name, names.c.created, last.c.first, artifacts.c.body)
    query = query.join(last, (last.c.name == names.c.name) & (last.c.version == names.c.version))
    query = query.join(artifacts, artifacts.c.digest == names.c.digest).where(artifacts.c.kind == kind)
    found: dict[str, Entry] = {}
    for row in connection.execute(query):
        if REPO_ID.fullmatch(row.name):
            found[row.name] = _entry(kind, row.name, (row.first, row.created), orjson.loads(row.body))
    moves = select(repo_moves).where(repo_moves.c.kind == kind).order_by(repo_moves.c.id)
    pushed: dict[str, list[Any]] = {}
    private: dict[str, bool] = {}
    for move in connection.execute(moves):
        if move.ref == PRIVATE:
            private[move.name] = move.commit is not None
        elif move.ref == f"{HEADS}{MAIN}":
            pushed.setdefault(move.name, []).append(move)
    for name, heads in pushed.items():
        if name not in found:
            found[name] = _entry(kind, name, (heads[0].moved, heads[-1].moved), _head_facts(connection, heads[-1]))
    for name in found:
        if private.get(name):
            found[name] = _marked(found[name])
    ordered = sorted(found.values(), key=lambda entry: (-entry.changed.timestamp(), entry.name))
    return [(entry.words, entry) for entry in ordered]


def _head_facts(connection: Connection, move: Any) -> dict[str, Any]:
    body = connection.execute(select(repo_commits.c.body).where(repo_commits.c.id == move.commit)).scalar()
    return orjson.loads(body) if body is not None else {}


def _entry(kind: Any, name: str, times: tuple[Any, Any], body: dict[str, Any]) -> Entry:
    made = bool(body) and "artifact" not in body  # the record of an artifact; a commit's has the field
    tags = ["catena"] if made else []
    about = ""
    if made and kind == "model":
        tags += [str(body[key]) for key in ("form", "quantization", "dtype") if body.get(key)]
        about = f"{body.get('architecture', '')} {body.get('parameters') or 0:,} parameters".strip()
    if made and kind == "dataset":
        tags += [str(body.get("shape"))]
        about = f"{body.get('shape')} {body.get('rows', 0):,} rows"
    if any(file.get("pickle") for file in body.get("files", ())):
        tags.append("pickle")
    license = body.get("license")
    tags += [f"license:{license.lower()}"] if license else []
    first, last = (_aware(time) for time in times)
    size = sum(file.get("size", 0) for file in body.get("files", ()))
    return Entry(kind, name, first, last, tuple(tags), license, about, size)


def _marked(entry: Entry) -> Entry:
    from dataclasses import replace

    return replace(entry, private=True)


def _aware(time: Any) -> datetime:
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    if not isinstance(time, datetime):
        return now()
    return time if time.tzinfo else time.replace(tzinfo=now().tzinfo)
