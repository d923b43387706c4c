"""Evidence about what gateways keep outside the audit (jobs, their files, answers): whether any of it lies in clear.

A gateway notes where it keeps things (`remember`), without passwords; the check looks there, at the bytes as they lie.
What it cannot look at from here is told, and then the line does not hold.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import inspect, text

from catena.core.registry import require
from catena.govern.seal import VALUE, is_sealed
from catena.hub.files import write_atomically
from catena.hub.locks import file_lock
from catena.hub.store import Store

NOTED = "kept.json"
USUAL = ("gateway/jobs.db", "gateway/files", "gateway/answers.sqlite")
INDEX = "the workspace's PostgreSQL"
MOST_LOOKED_AT = 10_000
TEXTS = (("jobs", "body", "body <> ''"), ("jobs", "input", "kind = 'response'"), ("job_results", "body", "body <> ''"))
BLOBS = (("answers", "value"), ("questions", "item"))
Found = Counter[str]


def remember(root: Path, places: Iterable[str]) -> None:
    """Note where a gateway keeps words: paths, URLs (a password is left out), or `INDEX`."""
    folder = root / "compliance"
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(root / "locks" / "kept.lock"):
        known = _noted(root)
        wanted = sorted({*known, *map(_without_password, places)})
        if wanted != known:
            write_atomically(folder / NOTED, json.dumps(wanted, indent=2).encode() + b"\n")


def _noted(root: Path) -> list[str]:
    try:
        told = json.loads((root / "compliance" / NOTED).read_bytes())
    except (OSError, ValueError):
        return []
    return [str(one) for one in told] if isinstance(told, list) else []


def _without_password(place: str) -> str:
    parts = urlsplit(place)
    if not parts.password:
        return place
    return place.replace(f":{parts.password}@", ":***@", 1)


def sealed(store: Store) -> tuple[bool | None, Mapping[str, Any]]:
    """Tell whether all that gateways keep is sealed; None where nothing is kept, or not all can be looked at."""
    found, unseen = Counter[str](), []
    for place in dict.fromkeys([*USUAL, *_noted(store.root)]):
        if not _looked(store, place, found):
            unseen.append(place)
    told: dict[str, Any] = {key: found[key] for key in ("sealed", "in clear")}
    told |= {"in clear, by kind": {key: count for key, count in found.items() if key not in told}}
    told["not looked at"] = unseen
    if found["in clear"]:
        return False, told
    return (None if unseen or not found["sealed"] else True), told


def _looked(store: Store, place: str, found: Found) -> bool:
    """Count what lies at a place; tells whether that could be done."""
    if place == INDEX:
        return _texts(store, found)
    if place.startswith(("redis://", "rediss://", "unix://")):
        return "***" not in place and _redis(place, found)
    path = store.root / place
    if "://" in place:
        return False
    if path.is_dir():
        for file in path.rglob("*/*"):
            if file.is_file() and not file.name.endswith(".part"):
                with file.open("rb") as stream:
                    _count(found, "files", is_sealed(stream.read(len(VALUE))))
    elif path.exists():
        return _sqlite(path, found)
    return True  # nothing there is nothing in clear


def _count(found: Found, kind: str, good: bool, count: int = 1) -> None:
    found["sealed" if good else "in clear"] += count
    if not good and count:
        found[kind] += count


def _sqlite(path: Path, found: Found) -> bool:
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as database:
            tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type='table'")}
            for table, column, where in TEXTS if "job_results" in tables else ():
                query = f"SELECT {column} LIKE 'sealed:%', COUNT(*) FROM {table} WHERE {where} GROUP BY 1"
                for good, count in database.execute(query):
                    _count(found, table, bool(good), count)
            for table, column in BLOBS:
                query = f"SELECT substr({column}, 1, 4) = ?, COUNT(*) FROM {table} GROUP BY 1"
                for good, count in database.execute(query, (VALUE,)) if table in tables else ():
                    _count(found, table, bool(good), count)
    except sqlite3.Error:
        return False
    return True


def _texts(store: Store, found: Found) -> bool:
    index = store.index
    with index.translated(), index.engine.connect().execution_options(reads=True) as connection:
        if not inspect(connection).has_table("job_results"):
            return True
        for table, column, where in TEXTS:
            query = f"SELECT {column} LIKE 'sealed:%', COUNT(*) FROM {table} WHERE {where} GROUP BY 1"
            for good, count in connection.execute(text(query)):
                _count(found, table, bool(good), count)
    return True


def _redis(url: str, found: Found) -> bool:
    """Look at answers in a Redis, at most so many."""
    try:
        redis = require("redis")
        with redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5) as client:
            for number, key in enumerate(client.scan_iter(match="catena:answer:*", count=1000)):
                if number >= MOST_LOOKED_AT:
                    break
                if kept := client.getrange(key, 0, len(VALUE) - 1):
                    _count(found, "answers", is_sealed(kept))
            for number, key in enumerate(client.scan_iter(match="catena:questions:*", count=1000)):
                if number >= MOST_LOOKED_AT:
                    break
                for _, row in client.xrange(key, count=1):
                    _count(found, "questions", is_sealed(row[b"item"]))
    except Exception:  # noqa: BLE001  whatever the client raises: it cannot be looked at
        return False
    return True
