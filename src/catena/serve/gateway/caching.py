"""Answers that are kept: stores (memory, SQLite, Redis) behind one small protocol. Bytes in, bytes out."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from catena.core.errors import IntegrityError
from catena.core.registry import require
from catena.govern.seal import VALUE, Sealer, is_sealed

logger = logging.getLogger(__name__)
RETRY_S = 2.0
TRIM_EVERY = 64
CACHE_FILE = "answers.sqlite"


class Answers(Protocol):
    """Where answers are kept."""

    async def get(self, key: bytes) -> bytes | None:
        """Return what is kept under a key and still good."""
        ...

    async def put(self, key: bytes, value: bytes) -> None:
        """Keep a value."""
        ...

    async def close(self) -> None:
        """Close files and connections."""
        ...


class MemoryAnswers:
    """The last used, up to a number of bytes."""

    def __init__(self, ttl_s: float, max_bytes: int) -> None:
        self._ttl_s, self._max = ttl_s, max_bytes
        self._kept: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()
        self.bytes = 0

    async def get(self, key: bytes) -> bytes | None:
        """Return what is kept under a key and still good."""
        until, value = self._kept.get(key, (0.0, b""))
        if until < time.monotonic():
            return None
        self._kept.move_to_end(key)
        return value

    async def put(self, key: bytes, value: bytes) -> None:
        """Keep a value."""
        if len(value) > self._max:
            return
        self.bytes -= len(self._kept.pop(key, (0.0, b""))[1])
        self._kept[key] = (time.monotonic() + self._ttl_s, value)
        self.bytes += len(value)
        while self.bytes > self._max:
            self.bytes -= len(self._kept.popitem(last=False)[1][1])

    async def close(self) -> None:
        """Nothing to close."""


class SqliteAnswers:
    """A file. One thread does all of it, so that no request waits for a disk but those that ask for an answer."""

    def __init__(self, file: Path, ttl_s: float, max_bytes: int) -> None:
        self._ttl_s, self._max, self._writes = ttl_s, max_bytes, 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="catena-cache")
        self._database = self._thread.submit(self._open, file).result()

    def _open(self, file: Path) -> sqlite3.Connection:
        database = open_file(file)
        database.execute(
            "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, until REAL, used REAL, value BLOB) WITHOUT ROWID"
        )
        return database

    async def get(self, key: bytes) -> bytes | None:
        """Return what is kept under a key and still good."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._get, key)

    def _get(self, key: bytes) -> bytes | None:
        now = time.time()
        row = self._database.execute("SELECT value, used FROM answers WHERE key=? AND until>?", (key, now)).fetchone()
        if row is None:
            return None
        if now - row[1] > 60:
            self._database.execute("UPDATE answers SET used=? WHERE key=?", (now, key))
        return bytes(row[0])

    async def put(self, key: bytes, value: bytes) -> None:
        """Keep a value."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._put, key, value)

    def _put(self, key: bytes, value: bytes) -> None:
        now = time.time()
        row = (key, now + self._ttl_s, now, value)
        self._database.execute("INSERT OR REPLACE INTO answers VALUES (?,?,?,?)", row)
        self._writes += 1
        if self._writes % TRIM_EVERY == 0:
            self._trim(now)

    def _trim(self, now: float) -> None:
        self._database.execute("DELETE FROM answers WHERE until<=?", (now,))
        total = self._database.execute("SELECT COALESCE(SUM(LENGTH(value)),0) FROM answers").fetchone()[0]
        if total <= self._max:
            return
        for key, size in self._database.execute("SELECT key, LENGTH(value) FROM answers ORDER BY used").fetchall():
            self._database.execute("DELETE FROM answers WHERE key=?", (key,))
            total -= size
            if total <= self._max * 0.9:
                break

    async def close(self) -> None:
        """Close the file."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._database.close)
        self._thread.shutdown()


def open_file(file: Path) -> sqlite3.Connection:
    """Open the file of the cache."""
    file.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(file, isolation_level=None, timeout=30)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=OFF")  # a cache may lose its last answers
    return database


def forget_clear(file: Path) -> None:
    """Empty the file of a cache that is sealed from now on, where anything lies in it as it is: a cache may forget."""
    if not file.exists():
        return
    database = open_file(file)
    try:
        tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        for table, column in (("answers", "value"), ("questions", "item")):
            if (
                table in tables
                and database.execute(
                    f"SELECT 1 FROM {table} WHERE substr({column},1,4)<>? LIMIT 1",
                    (VALUE,),
                ).fetchone()
            ):
                database.execute(f"DELETE FROM {table}")
        database.execute("VACUUM")  # or the old words stay in pages that are free
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        database.close()


class Cover:
    """Seals what is kept under its tenant's key, where there is a sealer, and opens it again."""

    def __init__(self, sealer: Sealer | None) -> None:
        self._sealer = sealer
        self.secret = b"" if sealer is None else sealer.secret("keys of answers")
        """So that nobody who has the store can try out what was asked."""
        self.mark = bytes(4) if sealer is None else VALUE
        """The beginning of an entry that has parts."""

    def put(self, tenant: str, value: bytes, about: bytes) -> bytes:
        """Return a value as it is kept."""
        return value if self._sealer is None else self._sealer.seal(tenant, value, about)

    def get(self, kept: bytes, about: bytes) -> bytes | None:
        """Return a value; None where nobody can read it any more, or it is not ours."""
        if self._sealer is None:
            return None if is_sealed(kept) else kept
        try:
            return self._sealer.open(kept, about)
        except IntegrityError:
            return None


class RedisAnswers:
    """A Redis that many gateways share; while it is away there is no cache."""

    def __init__(self, url: str, ttl_s: float) -> None:
        redis = require("redis.asyncio")
        self._ttl_ms = int(ttl_s * 1000)
        self._client: Any = redis.Redis.from_url(url, socket_timeout=1.0, socket_connect_timeout=1.0)
        self._again = 0.0

    async def get(self, key: bytes) -> bytes | None:
        """Return what is kept under a key."""
        if time.monotonic() < self._again:
            return None
        try:
            value = await self._client.get(b"catena:answer:" + key)
        except Exception as error:  # noqa: BLE001  whatever the client raises: it is away
            self._lost(error)
            return None
        return None if value is None else bytes(value)

    async def put(self, key: bytes, value: bytes) -> None:
        """Keep a value."""
        if time.monotonic() < self._again:
            return
        try:
            await self._client.set(b"catena:answer:" + key, value, px=self._ttl_ms)
        except Exception as error:  # noqa: BLE001
            self._lost(error)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _lost(self, error: Exception) -> None:
        self._again = time.monotonic() + RETRY_S
        logger.warning("the cache's Redis is away: %s", error)


def open_answers(store: str, folder: Path, ttl_s: float, max_bytes: int) -> Answers | None:
    """Return the store that a config names; None where there is none."""
    if not store:
        return None
    if store == "memory":
        return MemoryAnswers(ttl_s, max_bytes)
    if store == "sqlite":
        return SqliteAnswers(folder / CACHE_FILE, ttl_s, max_bytes)
    return RedisAnswers(store, ttl_s)
