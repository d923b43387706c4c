"""Locks between processes. They end with the process that holds them, however it ends.

On one machine: `flock` on a file. With a PostgreSQL index also advisory locks, for machines that share a workspace
folder over a network where `flock` does not reach; they end with the connection.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from catena.core.errors import EnvironmentProblem


@contextmanager
def file_lock(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Hold a lock on `path` (made if absent). Yields False, without the lock, if `wait` is off and another holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        try:
            fcntl.flock(descriptor, kind)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


@contextmanager
def advisory_lock(engine: Engine, name: str, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """The same by a PostgreSQL session lock whose number is the first 63 bits of the name's SHA-256.

    Raises `EnvironmentProblem` when the connection that held it is found dead at the end: others may have come in.
    """
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
    suffix = "_shared" if shared else ""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if wait:
            connection.execute(text(f"SELECT pg_advisory_lock{suffix}(:n)"), {"n": number})
            held = True
        else:
            held = bool(connection.execute(text(f"SELECT pg_try_advisory_lock{suffix}(:n)"), {"n": number}).scalar())
        try:
            yield held
        finally:
            if held:
                try:
                    connection.execute(text(f"SELECT pg_advisory_unlock{suffix}(:n)"), {"n": number})
                except DBAPIError as error:
                    raise EnvironmentProblem(
                        "the connection to the database was lost while a lock was held",
                        hint="Run the same command again; what was finished is kept.",
                    ) from error
