"""What `catena doctor` looks at: the machine, the packages, the workspace. Each check says what to do about it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from catena.core.cpu import guard, guard_status
from catena.core.errors import CatenaError
from catena.core.registry import EXTRA_OF

Status = Literal["ok", "warn", "fail"]
PYTHONS = ((3, 11), (3, 13))
MEMORY_GIB, DISK_GIB = 4, 2  # what the shipped recipe was measured to need, rounded up
MEASURE_SECONDS = 120
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was looked at, what was found, and what to do."""

    name: str
    status: Status
    value: str
    advice: str = ""

    def line(self) -> str:
        """Return the check as text."""
        return f"{self.status:<4}  {self.name:<14}  {self.value}" + (
            f"\n{'':22}-> {self.advice}" if self.advice else ""
        )


def examine(workspace: Path | None, *, quick: bool = False) -> list[Check]:
    """Run every check; `quick` leaves out what starts a child process to measure."""
    guard()
    checks = [check_python(), check_cores(), check_memory(), check_disk(workspace or Path.cwd()), check_guard()]
    checks += list(check_extras())
    if not quick:
        checks += list(check_compute(measured()))
    checks += list(check_library_path(os.environ.get("LD_LIBRARY_PATH", "")))
    checks += [check_server("redis", 6379), check_server("postgresql", 5432), check_index(workspace)]
    return checks


def check_python() -> Check:
    """The interpreter's version."""
    version, found = sys.version_info[:2], f"{sys.version.split()[0]} ({sys.executable})"
    if version < PYTHONS[0]:
        return Check("python", "fail", found, "Install Python 3.11 or later.")
    if version > PYTHONS[1]:
        return Check("python", "warn", found, "Tested on 3.11 to 3.13.")
    return Check("python", "ok", found)


def check_cores() -> Check:
    """Processors that this process may use; a container's limit counts."""
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    return Check("cores", "ok" if usable > 1 else "warn", f"{usable} usable of {present}")


def check_memory() -> Check:
    """Memory that is free now; a container's limit counts."""
    memory, limit = psutil.virtual_memory(), memory_limit()
    text = f"{memory.available / GIB:.1f} GiB free of {memory.total / GIB:.1f}"
    if limit is not None and limit < memory.total:
        text += f", limit of this container {limit / GIB:.1f}"
    if min(memory.available, limit or memory.available) < MEMORY_GIB * GIB:
        return Check("memory", "warn", text, f"The shipped recipe needs up to {MEMORY_GIB} GiB; end other programs.")
    return Check("memory", "ok", text)


def memory_limit(file: Path = Path("/sys/fs/cgroup/memory.max")) -> int | None:
    """Return the container's limit in bytes, or None."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # `max` stands for none
        return None


def check_disk(place: Path) -> Check:
    """Space, and the right to write, where the workspace is or would be."""
    folder = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
    text = f"{shutil.disk_usage(folder).free / GIB:.1f} GiB free for {place}"
    if not os.access(folder, os.W_OK):
        return Check("disk", "fail", f"{folder} cannot be written", "Choose another folder with --workspace.")
    if shutil.disk_usage(folder).free < DISK_GIB * GIB:
        return Check("disk", "warn", text, f"Free some space: a run may need {DISK_GIB} GiB. `catena gc` helps.")
    return Check("disk", "ok", text)


def check_guard() -> Check:
    """What the CPU guard found out about AMX."""
    found = guard_status()
    text = f"{found['cpu']}, AMX {'advertised' if found['amx'] else 'absent'}, probe: {found['probe']}"
    if found["probe"] == "dies":
        advice = f"oneDNN is held below AMX (ONEDNN_MAX_CPU_ISA={found['isa']}); nothing to do."
        return Check("cpu guard", "warn", text, advice)
    return Check("cpu guard", "ok", text + (f", limit {found['isa']}" if found["isa"] else ""))


def check_extras() -> Iterator[Check]:
    """Which optional parts are installed."""
    missing: dict[str, list[str]] = {extra: [] for extra in sorted(set(EXTRA_OF.values()))}
    for module, extra in EXTRA_OF.items():
        if importlib.util.find_spec(module) is None:
            missing[extra].append(module)
    for extra, modules in missing.items():
        if modules:
            text = f"not installed: {', '.join(modules)}"
            yield Check(f"extra {extra}", "warn", text, f"If you need it: pip install 'catena-ai[{extra}]'")
        else:
            yield Check(f"extra {extra}", "ok", "installed")


def measured() -> dict[str, Any]:
    """Measure in a child process, whose death (SIGILL) is a finding too. Returns `{"error": ...}` where it fails."""
    command = [sys.executable, "-m", "catena.models.measure"]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=MEASURE_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return {"error": f"the measurement did not end: {error}"}
    if child.returncode < 0:
        return {"error": f"the measurement was ended by signal {-child.returncode}"}
    try:
        found = json.loads(child.stdout)
    except json.JSONDecodeError:
        found = None
    if isinstance(found, dict):
        return found
    return {"error": (child.stderr.strip().splitlines() or ["the measurement said nothing"])[-1]}


def check_compute(found: dict[str, Any]) -> Iterator[Check]:
    """What torch computes with here, by measurement."""
    if "error" in found:
        absent = "No module named" in found["error"]
        advice = "Install it with: pip install 'catena-ai[train]'" if absent else "Try: python -m catena.models.measure"
        yield Check("compute", "warn" if absent else "fail", found["error"], advice)
        return
    rates = found.get("gflops", {})
    text = ", ".join(f"{name} {'none' if rate is None else f'{rate:g}'}" for name, rate in rates.items())
    blas = f"torch {found.get('torch')}, {found.get('blas')}, {found.get('cpu')}"
    yield Check("blas", "ok", f"{blas}, best with {found.get('best_threads')} threads")
    full, half = rates.get("float32") or 0.0, rates.get("bfloat16") or 0.0
    advice = "bfloat16 is slow here; float32 is chosen by itself." if half < full / 4 else ""
    yield Check("GFLOP/s", "ok", text, advice)
    yield Check("memory read", "ok", f"{found.get('read_gb_per_s')} GB/s")
    yield from check_gpus(found)


def check_gpus(found: dict[str, Any]) -> Iterator[Check]:
    """GPUs and the libraries around them."""
    device = Path("/dev/nvidiactl").exists()
    for gpu in found.get("gpus", ()):
        yield Check("gpu", "ok", f"{gpu['name']}, {gpu['memory_gib']} GiB, compute capability {gpu['capability']}")
    if not found.get("gpus"):
        advice = "There is an NVIDIA driver, and this torch does not use it: install its CUDA build." if device else ""
        yield Check("gpu", "warn" if device else "ok", "none that torch sees", advice)
    if found.get("cuda"):
        versions = f"CUDA {found['cuda']}, cuDNN {found.get('cudnn')}, NCCL {found.get('nccl')}"
        yield Check("cuda", "ok", versions)


def check_library_path(path: str) -> Iterator[Check]:
    """LD_LIBRARY_PATH: other CUDA or BLAS libraries in it take the place of those that torch was built with."""
    if not path:
        return
    folders = [Path(part) for part in path.split(":") if part]
    strange = [str(folder) for folder in folders if not folder.is_dir()]
    patterns = ("libcudnn*", "libcublas*", "libnccl*", "libmkl_rt*", "libgomp*", "libstdc++*")
    replaced = sorted({found.name for folder in folders for pattern in patterns for found in folder.glob(pattern)})
    if replaced:
        advice = "Unset LD_LIBRARY_PATH if torch fails: these take the place of its own libraries."
        yield Check("library path", "warn", ", ".join(replaced[:4]), advice)
    elif strange or path.startswith(":") or path.endswith(":") or "::" in path:
        text = ", ".join(strange) or "an empty part means the current folder"
        yield Check("library path", "warn", text, "Mend LD_LIBRARY_PATH: a part of it is no folder.")
    else:
        yield Check("library path", "ok", path)


def check_server(name: str, port: int) -> Check:
    """An optional server on its usual port of this machine."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.3):
            return Check(name, "ok", f"answers on port {port}")
    except OSError:
        return Check(name, "ok", f"none on port {port} (optional)")


def check_index(workspace: Path | None) -> Check:
    """The workspace's index: reachable, and of a schema that we know."""
    from catena.hub.schema import HEAD
    from catena.hub.store import open_store

    if workspace is None:
        return Check("workspace", "ok", "none here yet; `catena run` or `catena init` makes one")
    try:
        store = open_store(workspace)
    except CatenaError as error:
        return Check("workspace", "fail", error.message, error.hint)
    kind, count = store.index.engine.dialect.name, len(store.index.versions())
    store.close()
    return Check("workspace", "ok", f"{workspace}, {kind}, schema {HEAD}, {count} versions")
