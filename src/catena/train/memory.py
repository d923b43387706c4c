"""How much memory a step takes on a CPU, and how much there is: Linux ends a process that takes too much, unasked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from catena.core.limits import memory_limit
from catena.train.guard import fitting

RESET_PEAK = b"5"
"""What makes Linux forget the highest resident size of a process (proc(5), clear_refs)."""


class MemoryWatch:
    """Learns what a token of a micro-batch takes, from the steps with the most tokens so far."""

    def __init__(self) -> None:
        self.bytes_per_token = 0.0
        self._largest = 0

    def rows(self, rows: int, row_tokens: int) -> int:
        """Return how many rows of so many tokens can be computed at once; all, where nothing is known yet."""
        if not self.bytes_per_token or rows * row_tokens <= self._largest:
            return rows
        free = free_memory()
        return rows if free is None else fitting(rows, row_tokens, self.bytes_per_token, free)

    @contextmanager
    def measuring(self, tokens: int) -> Iterator[None]:
        """Learn from a forward and backward over a micro-batch of so many tokens."""
        if tokens <= self._largest or not _forget_peak():
            yield
            return
        before = _status("VmRSS")
        yield
        self._largest = tokens
        self.bytes_per_token = max(self.bytes_per_token, (_status("VmHWM") - before) / tokens)


def free_memory() -> int | None:
    """Return the bytes that this process may still take: of the machine, and of its control group if that is less."""
    found = [limit.free] if (limit := memory_limit()) is not None else []
    available = _kilobytes(Path("/proc/meminfo"), "MemAvailable")
    return min([*found, available] if available else found, default=None)


def _forget_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_bytes(RESET_PEAK)
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    return _kilobytes(Path("/proc/self/status"), name)


def _kilobytes(file: Path, name: str) -> int:
    """Return one entry of a file of `Name: 123 kB` lines, in bytes; 0 where it is not there."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", file.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
