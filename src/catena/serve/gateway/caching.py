"""Answers that are kept: stores (memory, SQLite, Redis) behind one small protocol. Bytes in, bytes out."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

from catena.core.errors import IntegrityError
from catena.govern.seal import VALUE, Sealer, is_sealed
from catena.serve.gateway.kept import ANSWERS, CACHE_FILE, KeptInFile, KeptInRedis


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


class SqliteAnswers(KeptInFile):
    """A table of the cache's file."""

    def __init__(self, file: Path, ttl_s: float, max_bytes: int) -> None:
        super().__init__(file, ANSWERS, max_bytes)
        self._ttl_s = ttl_s

    async def get(self, key: bytes) -> bytes | None:
        """Return what is kept under a key and still good."""
        return await self.run(self._get, key)

    def _get(self, key: bytes) -> bytes | None:
        now = time.time()
        row = self.database.execute("SELECT value, used FROM answers WHERE key=? AND until>?", (key, now)).fetchone()
        if row is None:
            return None
        if now - row[1] > 60:
            self.database.execute("UPDATE answers SET used=? WHERE key=?", (now, key))
        return bytes(row[0])

    async def put(self, key: bytes, value: bytes) -> None:
        """Keep a value."""
        await self.run(self._put, key, value)

    def _put(self, key: bytes, value: bytes) -> None:
        now = time.time()
        row = (key, now + self._ttl_s, now, value)
        self.database.execute("INSERT OR REPLACE INTO answers VALUES (?,?,?,?)", row)
        self.written()


class Cover:
    """Seals what is kept under its tenant's key, where there is a sealer, and opens it again."""

    def __init__(self, sealer: Sealer | None) -> None:
        self._sealer = sealer
        self.secret = b"" if sealer is None else sealer.secret("keys of answers")
        """So that nobody who has the store can try out what was asked."""
        self.mark = bytes(4) if sealer is None else VALUE
        """The beginning of an entry that has parts."""

    async def put(self, tenant: str, value: bytes, about: bytes) -> bytes:
        """Return a value as it is kept. A tenant's first key waits for whoever holds the vault: in a thread."""
        if self._sealer is None:
            return value
        return await asyncio.to_thread(self._sealer.seal, tenant, value, about)

    def get(self, kept: bytes, about: bytes) -> bytes | None:
        """Return a value; None where nobody can read it any more, or it is not ours."""
        if self._sealer is None:
            return None if is_sealed(kept) else kept
        try:
            return self._sealer.open(kept, about)
        except IntegrityError:
            return None


class RedisAnswers(KeptInRedis):
    """A Redis that many gateways share; while it is away there is no cache."""

    def __init__(self, url: str, ttl_s: float) -> None:
        super().__init__(url)
        self._ttl_ms = int(ttl_s * 1000)

    async def get(self, key: bytes) -> bytes | None:
        """Return what is kept under a key."""
        if self.away:
            return None
        try:
            value = await self.client.get(b"catena:answer:" + key)
        except Exception as error:  # noqa: BLE001  whatever the client raises: it is away
            self.lost(error)
            return None
        return None if value is None else bytes(value)

    async def put(self, key: bytes, value: bytes) -> None:
        """Keep a value."""
        if self.away:
            return
        try:
            await self.client.set(b"catena:answer:" + key, value, px=self._ttl_ms)
        except Exception as error:  # noqa: BLE001
            self.lost(error)


def open_answers(store: str, folder: Path, ttl_s: float, max_bytes: int) -> Answers | None:
    """Return the store that a config names; None where there is none."""
    if not store:
        return None
    if store == "memory":
        return MemoryAnswers(ttl_s, max_bytes)
    if store == "sqlite":
        return SqliteAnswers(folder / CACHE_FILE, ttl_s, max_bytes)
    return RedisAnswers(store, ttl_s)
