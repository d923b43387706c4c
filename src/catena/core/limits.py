"""What a container leaves of the machine: the limits of control groups, in both of their versions.

v2  /sys/fs/cgroup/<group>/          cpu.max            memory.max, memory.current
v1  /sys/fs/cgroup/cpu/<group>/      cpu.cfs_quota_us   memory/<group>/memory.limit_in_bytes, memory.usage_in_bytes

A group is bound by those above it too, so the narrowest one counts. Inside a container its own group is the root.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
GROUPS = Path("/proc/self/cgroup")
NO_LIMIT = 1 << 60
"""cgroup v1 writes no limit as a number of about this size."""


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """The narrowest limit on memory, in bytes."""

    limit: int
    used: int
    """Without the page cache that the kernel gives back when memory is needed."""

    @property
    def free(self) -> int:
        """Return what is left below the limit."""
        return max(self.limit - self.used, 0)


def cpu_limit(root: Path = ROOT, groups: Path = GROUPS) -> float | None:
    """Return how many processors' time this process may use, or None where nothing limits it."""
    found = []
    for folder in _folders(root, groups, "cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):  # no limit is `max`, in v1 -1
            found.append(int(quota) / int(period))
    return min(found, default=None)


def memory_limit(root: Path = ROOT, groups: Path = GROUPS) -> MemoryLimit | None:
    """Return the limit on memory that leaves the least free, or None where nothing limits it."""
    found = []
    for folder in _folders(root, groups, "memory"):
        for limit_file, used_file, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _text(folder / limit_file), _text(folder / used_file)
            if limit.isdecimal() and int(limit) < NO_LIMIT:
                given_back = _counted(folder / "memory.stat", cache)
                found.append(MemoryLimit(int(limit), max(int(used or 0) - given_back, 0)))
    return min(found, key=lambda one: one.free, default=None)


def _folders(root: Path, groups: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's group and of those above it, of both versions."""
    yield root
    yield from (root / controller, root / "cpu,cpuacct") if controller == "cpu" else (root / controller,)
    for line in _text(groups).splitlines():
        _, names, group = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        for place in (root, root / "unified") if not names else (root / controller, root / names):
            path = place
            for part in Path(group).parts[1:]:
                path /= part
                yield path


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _counted(file: Path, name: str) -> int:
    """Return one number of a `memory.stat`."""
    for line in _text(file).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value)
    return 0
