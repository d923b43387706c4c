"""The change log of a gateway: every act of a release, who did it and on what evidence. Lines of JSON, each with the
digest of the one before it, so that what is taken out or altered shows."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from catena.core.errors import IntegrityError

logger = logging.getLogger(__name__)
AGAIN_S = 5.0
"""Between two tries of what the disk did not take."""


class ChangeLog:
    """A file that only grows. What a kill or a full disk left of a line at its end is not read, and goes with the next
    act: that line was never told to anybody."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        entries = self.entries()
        self._last = entries[-1]["digest"] if entries else ""

    def add(self, act: str, model: str, by: str, **facts: Any) -> dict[str, Any]:
        """Write one act; it is on the disk when this returns."""
        entry = {"time": round(time.time(), 3), "act": act, "model": model, "by": by, **facts, "before": self._last}
        entry["digest"] = _digest(entry)
        self._cut()
        with self._file.open("ab") as stream:
            stream.write(orjson.dumps(entry) + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._last = entry["digest"]
        return entry

    def _cut(self) -> None:
        """Take away a line that has no end."""
        data = self._file.read_bytes() if self._file.exists() else b""
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            logger.warning("%d bytes at the end of %s were half-written and are cut off", len(data) - whole, self._file)
            os.truncate(self._file, whole)

    def entries(self) -> list[dict[str, Any]]:
        """Return all acts, the oldest first. Raises `IntegrityError` for a line that was changed."""
        if not self._file.exists():
            return []
        found: list[dict[str, Any]] = []
        before = ""
        data = self._file.read_bytes()
        for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
            try:
                entry = orjson.loads(line)
                good = entry["before"] == before and entry["digest"] == _digest(entry)
            except (orjson.JSONDecodeError, KeyError, TypeError):
                good = False
            if not good:
                raise IntegrityError(f"line {number} of {self._file} is not what was written")
            before = entry["digest"]
            found.append(entry)
        return found


class Acts:
    """Acts that are done, on their way to the disk: first what a restart needs (`keep`), then their lines in the log.

    What a full disk does not take is owed, and written when there is room: an act that is done is not undone for it.
    """

    def __init__(self, log: ChangeLog, keep: Callable[[], None]) -> None:
        self._log, self._keep = log, keep
        self._owed: list[tuple[str, str, str, dict[str, Any]]] = []
        self._again = 0.0

    def add(self, act: str, model: str, by: str, **facts: Any) -> None:
        """Write down an act, now or later."""
        self._owed.append((act, model, by, {"time": round(time.time(), 3), **facts}))
        self.write()

    def due(self) -> bool:
        """Tell whether there is something to try."""
        return bool(self._owed) and time.monotonic() >= self._again

    def write(self) -> None:
        """Write what is owed, as far as the disk takes it."""
        if not self._owed:
            return
        try:
            self._keep()
            while self._owed:
                act, model, by, facts = self._owed[0]
                self._log.add(act, model, by, **facts)
                del self._owed[0]
        except OSError as error:
            self._again = time.monotonic() + AGAIN_S
            logger.error("acts of releases, %d of them, are not on the disk yet: %s", len(self._owed), error)


class Alone:
    """A lock on a state folder: of several gateways that have it, one does the releases, until it ends."""

    def __init__(self, file: Path) -> None:
        self._file, self._descriptor = file, -1

    def held(self) -> bool:
        """Take the lock if nobody has it; tells whether it is ours."""
        if self._descriptor < 0:
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                return False
            self._descriptor = descriptor
        return True

    def let_go(self) -> None:
        """Let another have it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _digest(entry: dict[str, Any]) -> str:
    told = {name: value for name, value in entry.items() if name != "digest"}
    return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()
