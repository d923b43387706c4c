"""Why a replica's process ended: of itself, maybe of a request, or because somebody ended it from outside. Pure but for
one file of the kernel.

A crash has a signal of its own (SIGSEGV, SIGABRT, ...) or an exit code. SIGTERM, SIGINT and SIGHUP come from people and
supervisors. SIGKILL comes from them too, and from the kernel when memory runs out; the kernel counts what it kills
(`oom_kill` in /proc/vmstat, all of the machine's), so where that count did not rise it was somebody else. Where the
kernel tells no count, SIGKILL counts as the process's own end.
"""

from __future__ import annotations

import signal
from pathlib import Path

VMSTAT = Path("/proc/vmstat")
ASKED = frozenset({0, *(-number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))})


def memory_kills(source: Path = VMSTAT) -> int | None:
    """Return how many processes the kernel has ended for want of memory; None where it does not tell."""
    try:
        for line in source.read_bytes().splitlines():
            if line.startswith(b"oom_kill "):
                return int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass  # another system, or a container that hides it
    return None


def from_outside(code: int | None, before: int | None, now: int | None) -> bool:
    """Tell whether somebody else ended a process.

    `code` is how it ended (below 0: by that signal), None while it runs; `before` and `now` are the kernel's counts
    from while it lived and from after its end.
    """
    if code == -signal.SIGKILL:
        return before is not None and before == now
    return code in ASKED


def told(code: int | None, outside: bool) -> str:
    """Return in words how a process ended."""
    if code is None:
        return "does not answer /health"
    if code >= 0:
        return f"ended with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was ended from outside ({name})" if outside else f"ended by {name}"
