"""Has anybody written to the index? Asked before every answer, so it must cost next to nothing."""

from __future__ import annotations

import sqlite3
import threading
import weakref

from sqlalchemy import Engine


class Probe:
    """A connection of its own to SQLite, whose `data_version` is another after each commit of anybody else."""

    def __init__(self, engine: Engine) -> None:
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        if engine.dialect.name == "sqlite" and engine.url.database:
            self._connection = sqlite3.connect(engine.url.database, check_same_thread=False)
            weakref.finalize(self, self._connection.close)

    def version(self) -> int | None:
        """Return the number; None where the index is another database, or cannot be asked."""
        if self._connection is None:
            return None
        try:
            with self._lock:
                return int(self._connection.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error:
            return None
