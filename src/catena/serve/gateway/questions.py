"""Questions with their vectors and answers, as the semantic cache keeps them: in SQLite, or in a Redis that many share.

A store is a row of entries for each circle (`semantic.py`); who looks reads what was added since the last time. Bytes
in, bytes out: what they mean, and that they are sealed, is the cache's.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from catena.core.registry import require
from catena.serve.gateway.caching import CACHE_FILE, RETRY_S, TRIM_EVERY, open_file

logger = logging.getLogger(__name__)


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


class SqliteQuestions:
    """A table beside the answers'. One thread does all of it."""

    def __init__(self, file: Path, ttl_s: float, most: int, max_bytes: int) -> None:
        self._ttl_s, self._most, self._max, self._writes = ttl_s, most, max_bytes, 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="catena-questions")
        self._database = self._thread.submit(self._open, file).result()

    def _open(self, file: Path) -> sqlite3.Connection:
        database = open_file(file)
        database.execute(
            "CREATE TABLE IF NOT EXISTS questions"
            " (id INTEGER PRIMARY KEY AUTOINCREMENT, circle BLOB, until REAL, item BLOB)"
        )
        database.execute("CREATE INDEX IF NOT EXISTS questions_circle ON questions (circle, id)")
        return database

    async def since(self, circle: bytes, place: Any) -> Sequence[Entry]:
        """Return what a circle has behind a place."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._since, circle, place or 0)

    def _since(self, circle: bytes, place: int) -> Sequence[Entry]:
        query = "SELECT id, until, item FROM questions WHERE circle=? AND id>? AND until>? ORDER BY id"
        return [Entry(*row) for row in self._database.execute(query, (circle, place, time.time()))]

    async def add(self, circle: bytes, item: bytes) -> None:
        """Keep a question."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._add, circle, item)

    def _add(self, circle: bytes, item: bytes) -> None:
        row = (circle, time.time() + self._ttl_s, item)
        self._database.execute("INSERT INTO questions (circle, until, item) VALUES (?,?,?)", row)
        oldest = "(SELECT id FROM questions WHERE circle=? ORDER BY id DESC LIMIT 1 OFFSET ?)"
        self._database.execute(
            f"DELETE FROM questions WHERE circle=? AND id<={oldest}",
            (circle, circle, self._most),
        )
        self._writes += 1
        if self._writes % TRIM_EVERY == 0:
            self._trim()

    def _trim(self) -> None:
        self._database.execute("DELETE FROM questions WHERE until<=?", (time.time(),))
        total = self._database.execute("SELECT COALESCE(SUM(LENGTH(item)),0) FROM questions").fetchone()[0]
        if total <= self._max:
            return
        for id, size in self._database.execute("SELECT id, LENGTH(item) FROM questions ORDER BY id").fetchall():
            self._database.execute("DELETE FROM questions WHERE id=?", (id,))
            total -= size
            if total <= self._max * 0.9:
                break

    async def close(self) -> None:
        """Close the file."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._database.close)
        self._thread.shutdown()


class RedisQuestions:
    """A stream for each circle in a Redis that many gateways share; while it is away nothing is added."""

    def __init__(self, url: str, ttl_s: float, most: int) -> None:
        redis = require("redis.asyncio")
        self._ttl_s, self._most = ttl_s, most
        self._client: Any = redis.Redis.from_url(url, socket_timeout=1.0, socket_connect_timeout=1.0)
        self._again = 0.0

    async def since(self, circle: bytes, place: Any) -> Sequence[Entry]:
        """Return what a circle has behind a place."""
        if time.monotonic() < self._again:
            return ()
        try:
            rows = await self._client.xrange(_name(circle), min="-" if place is None else b"(" + place)
        except Exception as error:  # noqa: BLE001  whatever the client raises: it is away
            self._lost(error)
            return ()
        return [Entry(place, int(place.split(b"-")[0]) / 1000 + self._ttl_s, row[b"item"]) for place, row in rows]

    async def add(self, circle: bytes, item: bytes) -> None:
        """Keep a question."""
        if time.monotonic() < self._again:
            return
        try:
            async with self._client.pipeline(transaction=True) as both:
                both.xadd(_name(circle), {b"item": item}, maxlen=self._most, approximate=False)
                both.pexpire(_name(circle), int(self._ttl_s * 1000))
                await both.execute()
        except Exception as error:  # noqa: BLE001
            self._lost(error)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _lost(self, error: Exception) -> None:
        self._again = time.monotonic() + RETRY_S
        logger.warning("the cache's Redis is away: %s", error)


def _name(circle: bytes) -> bytes:
    return b"catena:questions:" + circle


def open_questions(store: str, folder: Path, ttl_s: float, most: int, max_bytes: int) -> Questions | None:
    """Return the store that a config names; None where questions live in memory alone."""
    if store in ("", "memory"):
        return None
    if store == "sqlite":
        return SqliteQuestions(folder / CACHE_FILE, ttl_s, most, max_bytes)
    return RedisQuestions(store, ttl_s, most)
