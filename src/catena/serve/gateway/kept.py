"""Where the cache's words lie, whatever they are: a table of its file, or a Redis that many gateways share."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

from catena.core.errors import EnvironmentProblem
from catena.core.registry import require
from catena.govern.seal import VALUE

logger = logging.getLogger(__name__)
RETRY_S = 2.0
TRIM_EVERY = 64
TRIM_TO = 0.9
"""What is left of the bytes after a trim, as a share, so that the next one is not at the next entry."""
CACHE_FILE = "answers.sqlite"
P = ParamSpec("P")
R = TypeVar("R")


class Table(NamedTuple):
    """One table of the file; all of them have a column `until`, the end in seconds since 1970."""

    name: str
    create: tuple[str, ...]
    key: str
    value: str
    """The column whose bytes count."""
    order: str
    """Whose smallest goes first."""


ANSWERS = Table(
    "answers",
    ("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, until REAL, used REAL, value BLOB) WITHOUT ROWID",),
    key="key",
    value="value",
    order="used",
)
QUESTIONS = Table(
    "questions",
    (
        "CREATE TABLE IF NOT EXISTS questions"
        " (id INTEGER PRIMARY KEY AUTOINCREMENT, circle BLOB, until REAL, item BLOB)",
        "CREATE INDEX IF NOT EXISTS questions_circle ON questions (circle, id)",
    ),
    key="id",
    value="item",
    order="id",
)


class Kept:
    """What may be away: then there is no cache, and no request fails of it."""

    def __init__(self, where: str) -> None:
        self._where, self._again = where, 0.0

    @property
    def away(self) -> bool:
        """Whether it is not worth asking."""
        return time.monotonic() < self._again

    def lost(self, error: Exception) -> None:
        """Take note that it did not answer; after that it is not asked for a moment, so that nobody waits for it."""
        self._again = time.monotonic() + RETRY_S
        logger.warning("the cache's %s is away: %s", self._where, error)


class KeptInFile(Kept):
    """A table within a number of bytes. One thread does all of it, so that nobody waits for a disk who does not ask."""

    def __init__(self, file: Path, table: Table, max_bytes: int) -> None:
        super().__init__("file")
        self._file, self._table, self._max, self._writes = file, table, max_bytes, 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"catena-{table.name}")
        self.database = self._thread.submit(self._open).result()

    def _open(self) -> sqlite3.Connection:
        database = open_file(self._file)
        for statement in self._table.create:
            database.execute(statement)
        return database

    async def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        """Let the thread do it. None where the file cannot be read or written at the moment."""
        if self.away:
            return None
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*args, **kwargs))
        except sqlite3.Error as error:
            self.lost(error)
            if is_damaged(error):
                await asyncio.get_running_loop().run_in_executor(self._thread, self._begin_anew)
            return None

    def _begin_anew(self) -> None:
        self.database.close()
        remove_file(self._file)
        self.database = self._open()

    def written(self) -> None:
        """Say, in the thread, that an entry was added: now and then what is too much goes."""
        self._writes += 1
        if self._writes % TRIM_EVERY:
            return
        name, _, key, value, order = self._table
        self.database.execute(f"DELETE FROM {name} WHERE until<=?", (time.time(),))
        total = self.database.execute(f"SELECT COALESCE(SUM(LENGTH({value})),0) FROM {name}").fetchone()[0]
        if total <= self._max:
            return
        for entry, size in self.database.execute(
            f"SELECT {key}, LENGTH({value}) FROM {name} ORDER BY {order}"
        ).fetchall():
            self.database.execute(f"DELETE FROM {name} WHERE {key}=?", (entry,))
            total -= size
            if total <= self._max * TRIM_TO:
                break

    async def close(self) -> None:
        """Close the file."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self.database.close)
        self._thread.shutdown()


class KeptInRedis(Kept):
    """A Redis."""

    def __init__(self, url: str) -> None:
        super().__init__("Redis")
        redis = require("redis.asyncio")
        self.client: Any = redis.Redis.from_url(url, socket_timeout=1.0, socket_connect_timeout=1.0)

    async def close(self) -> None:
        """Close the connections."""
        await self.client.aclose()


def open_file(file: Path) -> sqlite3.Connection:
    """Open the file of the cache; one that is damaged is begun anew, since a cache may forget."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        database = sqlite3.connect(file, isolation_level=None, timeout=30)
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=OFF")  # a cache may lose its last answers
        except sqlite3.DatabaseError as error:
            database.close()
            if not is_damaged(error):
                raise EnvironmentProblem(f"the cache's file {file} cannot be used: {error}") from error
            logger.warning("the cache's file was damaged and is begun anew: %s", error)
            remove_file(file)
        else:
            return database
    raise EnvironmentProblem(f"the cache's file {file} cannot be made")


def is_damaged(error: sqlite3.Error) -> bool:
    """Tell whether a file is no database, or no whole one: not that it is full, locked or away."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def remove_file(file: Path) -> None:
    """Delete the file of the cache, with what SQLite keeps beside it."""
    for name in (file.name, f"{file.name}-wal", f"{file.name}-shm"):
        file.with_name(name).unlink(missing_ok=True)


def forget_clear(file: Path) -> None:
    """Empty the file of a cache that is sealed from now on, where anything lies in it as it is: a cache may forget."""
    if not file.exists():
        return
    with closing(open_file(file)) as database:
        there = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        for table in (ANSWERS, QUESTIONS):
            clear = f"SELECT 1 FROM {table.name} WHERE substr({table.value},1,4)<>? LIMIT 1"
            if table.name in there and database.execute(clear, (VALUE,)).fetchone():
                database.execute(f"DELETE FROM {table.name}")
        database.execute("VACUUM")  # or the old words stay in pages that are free
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
