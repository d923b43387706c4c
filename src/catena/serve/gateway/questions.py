"""Questions with their vectors and answers, as the semantic cache keeps them: in SQLite, or in a Redis that many share.

A store is a row of entries for each circle (`semantic.py`); who looks reads what was added since the last time. Bytes
in, bytes out: what they mean, and that they are sealed, is the cache's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from catena.serve.gateway.kept import CACHE_FILE, QUESTIONS, KeptInFile, KeptInRedis


class Entry(NamedTuple):
    """One question."""

    place: Any
    """Where it stands; what is added later stands behind it."""
    until: float
    """When it ends, in seconds since 1970."""
    item: bytes


class Questions(Protocol):
    """Where questions are kept."""

    async def since(self, circle: bytes, place: Any) -> Sequence[Entry]:
        """Return what a circle has behind a place (None: all of it)."""
        ...

    async def add(self, circle: bytes, item: bytes) -> None:
        """Keep a question of a circle; the oldest beyond the most go."""
        ...

    async def close(self) -> None:
        """Close files and connections."""
        ...


class SqliteQuestions(KeptInFile):
    """A table beside the answers'."""

    def __init__(self, file: Path, ttl_s: float, most: int, max_bytes: int) -> None:
        super().__init__(file, QUESTIONS, max_bytes)
        self._ttl_s, self._most = ttl_s, most

    async def since(self, circle: bytes, place: Any) -> Sequence[Entry]:
        """Return what a circle has behind a place."""
        return await self.run(self._since, circle, place or 0) or []

    def _since(self, circle: bytes, place: int) -> Sequence[Entry]:
        query = "SELECT id, until, item FROM questions WHERE circle=? AND id>? AND until>? ORDER BY id"
        return [Entry(*row) for row in self.database.execute(query, (circle, place, time.time()))]

    async def add(self, circle: bytes, item: bytes) -> None:
        """Keep a question."""
        await self.run(self._add, circle, item)

    def _add(self, circle: bytes, item: bytes) -> None:
        row = (circle, time.time() + self._ttl_s, item)
        self.database.execute("INSERT INTO questions (circle, until, item) VALUES (?,?,?)", row)
        oldest = "(SELECT id FROM questions WHERE circle=? ORDER BY id DESC LIMIT 1 OFFSET ?)"
        beyond = f"DELETE FROM questions WHERE circle=? AND id<={oldest}"
        self.database.execute(beyond, (circle, circle, self._most))
        self.written()


class RedisQuestions(KeptInRedis):
    """A stream for each circle in a Redis that many gateways share; while it is away nothing is added."""

    def __init__(self, url: str, ttl_s: float, most: int) -> None:
        super().__init__(url)
        self._ttl_s, self._most = ttl_s, most

    async def since(self, circle: bytes, place: Any) -> Sequence[Entry]:
        """Return what a circle has behind a place."""
        if self.away:
            return ()
        try:
            rows = await self.client.xrange(_name(circle), min="-" if place is None else b"(" + place)
        except Exception as error:  # noqa: BLE001  whatever the client raises: it is away
            self.lost(error)
            return ()
        return [Entry(place, int(place.split(b"-")[0]) / 1000 + self._ttl_s, row[b"item"]) for place, row in rows]

    async def add(self, circle: bytes, item: bytes) -> None:
        """Keep a question."""
        if self.away:
            return
        try:
            async with self.client.pipeline(transaction=True) as both:
                both.xadd(_name(circle), {b"item": item}, maxlen=self._most, approximate=False)
                both.pexpire(_name(circle), int(self._ttl_s * 1000))
                await both.execute()
        except Exception as error:  # noqa: BLE001
            self.lost(error)


def _name(circle: bytes) -> bytes:
    return b"catena:questions:" + circle


def open_questions(store: str, folder: Path, ttl_s: float, most: int, max_bytes: int) -> Questions | None:
    """Return the store that a config names; None where questions live in memory alone."""
    if store in ("", "memory"):
        return None
    if store == "sqlite":
        return SqliteQuestions(folder / CACHE_FILE, ttl_s, most, max_bytes)
    return RedisQuestions(store, ttl_s, most)
