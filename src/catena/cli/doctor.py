"""What `catena doctor` looks at: the machine, the packages, the workspace. Each check says what to do about it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from catena.core.cpu import guard, guard_status
from catena.core.errors import CatenaError, NotFound
from catena.core.limits import GROUPS, ROOT, cpu_limit, memory_limit
from catena.core.machine import measured
from catena.core.registry import EXTRA_OF

if TYPE_CHECKING:
    from sqlalchemy import Engine

Status = Literal["ok", "warn", "fail"]
PYTHONS = ((3, 11), (3, 13))
MEMORY_GIB, DISK_GIB = 4, 2  # what the shipped recipe was measured to need, rounded up
GIB = 2**30
DRIVER = Path("/dev/nvidiactl")
LIBRARIES = {"cuda": "CUDA", "cudnn": "cuDNN", "nccl": "NCCL"}


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was looked at, what was found, and what to do."""

    name: str
    status: Status
    value: str
    advice: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    """What `value` says, as numbers for a program."""

    def line(self) -> str:
        """Return the check as text."""
        return f"{self.status:<4}  {self.name:<17}  {self.value}" + (
            f"\n{'':25}-> {self.advice}" if self.advice else ""
        )


def examine(workspace: Path | None, *, quick: bool = False) -> list[Check]:
    """Run every check; `quick` leaves out what starts a child process to measure."""
    guard()
    checks = [check_python(), check_cores(), check_memory(), check_disk(workspace or Path.cwd()), check_guard()]
    checks += list(check_extras())
    found = {"error": ""} if quick else measured()
    checks += [] if quick else list(check_compute(found))
    checks += list(check_gpus(found))
    checks += [check_library_path(os.environ.get("LD_LIBRARY_PATH", ""))]
    checks += [check_server("redis", 6379), check_server("postgresql", 5432), check_index(workspace)]
    return checks


def check_python() -> Check:
    """The interpreter's version."""
    version, found = sys.version_info[:2], f"{sys.version.split()[0]} ({sys.executable})"
    data = {"version": sys.version.split()[0], "executable": sys.executable}
    if version < PYTHONS[0]:
        return Check("python", "fail", found, "Install Python 3.11 or later.", data)
    if version > PYTHONS[1]:
        return Check("python", "warn", found, "Tested on 3.11 to 3.13.", data)
    return Check("python", "ok", found, data=data)


def check_cores(root: Path = ROOT, groups: Path = GROUPS) -> Check:
    """Processors that this process may use; a container's limit counts."""
    allowed, present, quota = len(os.sched_getaffinity(0)), os.cpu_count() or 1, cpu_limit(root, groups)
    usable = allowed if quota is None else min(quota, allowed)
    load = os.getloadavg()[0]
    data = {"usable": usable, "allowed": allowed, "present": present, "limit": quota, "load": load}
    text = f"{usable:g} usable of {present}"
    if quota is not None and quota < allowed:
        text += ", by the limit of this container"
    if load > 2 * present:
        advice = "Other programs use the processors: all will be slow, and what is measured here is too low."
        return Check("cores", "warn", f"{text}, load {load:.1f}", advice, data)
    return Check("cores", "ok" if usable > 1 else "warn", text, data=data)


def check_memory(root: Path = ROOT, groups: Path = GROUPS) -> Check:
    """Memory that is free now; a container's limit counts."""
    memory, limit = psutil.virtual_memory(), memory_limit(root, groups)
    free, bounded = memory.available, limit is not None and limit.limit < memory.total
    text = f"{free / GIB:.1f} GiB free of {memory.total / GIB:.1f}"
    data = {"total_bytes": memory.total, "available_bytes": free, "limit_bytes": None, "limit_free_bytes": None}
    if limit is not None and bounded:
        text += f", {limit.free / GIB:.1f} below the limit of this container of {limit.limit / GIB:.1f}"
        data |= {"limit_bytes": limit.limit, "limit_free_bytes": limit.free}
        free = min(free, limit.free)
    data["free_bytes"] = free
    if free < MEMORY_GIB * GIB:
        advice = f"The shipped recipe needs up to {MEMORY_GIB} GiB; end other programs."
        return Check("memory", "warn", text, advice, data)
    return Check("memory", "ok", text, data=data)


def check_disk(place: Path) -> Check:
    """Space, and the right to write, where the workspace is or would be."""
    folder = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
    usage = shutil.disk_usage(folder)
    text, data = f"{usage.free / GIB:.1f} GiB free for {place}", {"free_bytes": usage.free, "total_bytes": usage.total}
    if not os.access(folder, os.W_OK):
        return Check("disk", "fail", f"{folder} cannot be written", "Choose another folder with --workspace.", data)
    if usage.free < DISK_GIB * GIB:
        return Check("disk", "warn", text, f"Free some space: a run may need {DISK_GIB} GiB. `catena gc` helps.", data)
    return Check("disk", "ok", text, data=data)


def check_guard() -> Check:
    """What the CPU guard found out about AMX."""
    found = guard_status()
    text = f"{found['cpu']}, AMX {'advertised' if found['amx'] else 'absent'}, probe: {found['probe']}"
    if found["probe"] == "dies":
        advice = f"oneDNN is held below AMX (ONEDNN_MAX_CPU_ISA={found['isa']}); nothing to do."
        return Check("cpu guard", "warn", text, advice, found)
    return Check("cpu guard", "ok", text + (f", limit {found['isa']}" if found["isa"] else ""), data=found)


def check_extras() -> Iterator[Check]:
    """Which optional parts are installed."""
    missing: dict[str, list[str]] = {extra: [] for extra in sorted(set(EXTRA_OF.values()))}
    for module, extra in EXTRA_OF.items():
        if importlib.util.find_spec(module) is None:
            missing[extra].append(module)
    for extra, modules in missing.items():
        if modules:
            text = f"not installed: {', '.join(modules)}"
            advice = f"If you need it: pip install 'catena-ai[{extra}]'"
            yield Check(f"extra {extra}", "warn", text, advice, {"missing": modules})
        else:
            yield Check(f"extra {extra}", "ok", "installed", data={"missing": []})


def check_compute(found: dict[str, Any]) -> Iterator[Check]:
    """What torch computes with here, by measurement."""
    if "error" in found:
        absent = "No module named" in found["error"]
        advice = "Install it with: pip install 'catena-ai[train]'" if absent else "Try: python -m catena.models.measure"
        yield Check("compute", "warn" if absent else "fail", found["error"], advice)
        return
    rates = found.get("gflops", {})
    blas = f"torch {found.get('torch')}, {found.get('blas')}, {found.get('cpu')}"
    data = {name: found.get(name) for name in ("torch", "blas", "onednn", "cpu", "best_threads", "threads")}
    yield Check("blas", "ok", f"{blas}, best with {found.get('best_threads')} threads", data=data)
    full, half = rates.get("float32") or 0.0, rates.get("bfloat16") or 0.0
    advice = "bfloat16 is slow here; float32 is chosen by itself." if half < full / 4 else ""
    yield Check("GFLOP/s", "ok", rates_text(rates), advice, {"gflops": rates})
    speed = found.get("read_gb_per_s")
    yield Check("memory read", "ok", f"{speed} GB/s", data={"read_gb_s": speed})


def rates_text(rates: Mapping[str, float | None]) -> str:
    """Return measured speeds by number format on one line."""
    return ", ".join(f"{name} {'none' if rate is None else f'{rate:g}'}" for name, rate in rates.items())


def check_gpus(found: Mapping[str, Any], driver: Path = DRIVER) -> Iterator[Check]:
    """GPUs with what they were measured to do, and the libraries around them; a line for each, present or not."""
    if "error" in found:
        why = "torch was not asked" if found["error"] else "not asked with --quick"
        advice = "`catena doctor` without --quick measures it." if not found["error"] and driver.exists() else ""
        if found["error"] and driver.exists():
            advice = "There is an NVIDIA driver; mend the measurement above to see what it can do."
        yield Check("GPU", "ok", f"none known: {why}" + (", a driver is there" if driver.exists() else ""), advice)
        for name in LIBRARIES.values():
            yield Check(name, "ok", f"none known: {why}", data={"version": None})
        return
    gpus, errors = found.get("gpus") or (), found.get("errors") or {}
    for gpu in gpus:
        text = f"{gpu['name']}, {gpu['memory_gib']} GiB, compute capability {gpu['capability']}"
        rates = gpu.get("gflops") or {}
        yield Check("GPU", "ok", f"{text}, GFLOP/s: {rates_text(rates) or 'none'}", data=gpu)
    if not gpus:
        yield _no_gpu(found.get("cuda"), errors.get("gpu", ""), driver)
    for key, name in LIBRARIES.items():
        yield _library(name, found.get(key), errors.get(key), needed=bool(gpus) and (key != "nccl" or len(gpus) > 1))


def _no_gpu(cuda: str | None, error: str, driver: Path) -> Check:
    if not driver.exists():
        return Check("GPU", "ok", "none", data={"count": 0})
    if cuda is None:
        advice = "There is an NVIDIA driver, and this torch does not use it: install its CUDA build."
    else:
        advice = f"There is an NVIDIA driver: bring it up to what CUDA {cuda} needs, and see CUDA_VISIBLE_DEVICES."
    return Check("GPU", "warn", "none that torch sees" + (f": {error}" if error else ""), advice, {"count": 0})


def _library(name: str, version: Any, error: str | None, *, needed: bool) -> Check:
    shown = cudnn_version(version) if name == "cuDNN" and version else version
    data = {"version": shown}
    if error and needed:
        advice = "Unset LD_LIBRARY_PATH, or install torch anew: it brings the version that it was built with."
        return Check(name, "warn", error, advice, data)
    if shown is None and needed:
        return Check(name, "warn", "none", "Install a CUDA build of torch that has it.", data)
    return Check(name, "ok", str(shown or "none"), data=data)


def cudnn_version(number: int) -> str:
    """Return cuDNN's version from its number: 91002 is 9.10.2, and before version 9, 8902 was 8.9.2."""
    big = 10_000 if number >= 90_000 else 1_000
    return f"{number // big}.{number % big // 100}.{number % 100}"


def check_library_path(path: str) -> Check:
    """LD_LIBRARY_PATH: other CUDA or BLAS libraries in it take the place of those that torch was built with."""
    name = "LD_LIBRARY_PATH"
    if not path:
        return Check(name, "ok", "not set", data={"folders": []})
    folders = [Path(part) for part in path.split(":") if part]
    data = {"folders": list(map(str, folders))}
    strange = [str(folder) for folder in folders if not folder.is_dir()]
    patterns = ("libcudnn*", "libcublas*", "libnccl*", "libmkl_rt*", "libgomp*", "libstdc++*")
    replaced = sorted({found.name for folder in folders for pattern in patterns for found in folder.glob(pattern)})
    if replaced:
        advice = "Unset LD_LIBRARY_PATH if torch fails: these take the place of its own libraries."
        return Check(name, "warn", ", ".join(replaced[:4]), advice, data)
    if strange or path.startswith(":") or path.endswith(":") or "::" in path:
        text = ", ".join(strange) or "an empty part means the current folder"
        return Check(name, "warn", text, "Mend LD_LIBRARY_PATH: a part of it is no folder.", data)
    return Check(name, "ok", path, data=data)


def check_server(name: str, port: int) -> Check:
    """An optional server on its usual port of this machine."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.3):
            return Check(name, "ok", f"answers on port {port}", data={"port": port, "answers": True})
    except OSError:
        return Check(name, "ok", f"none on port {port} (optional)", data={"port": port, "answers": False})


def check_index(workspace: Path | None) -> Check:
    """The workspace's index: reachable, and of a schema that we know. Nothing is changed, not even an old schema."""
    from sqlalchemy import text as sql

    from catena.hub import schema

    if workspace is None:
        return Check("workspace", "ok", "none here yet; `catena run` or `catena init` makes one")
    head, count = schema.HEAD, 0
    try:
        with _read_only(workspace) as engine:
            kind, found = engine.dialect.name, schema.current_version(engine)
            if found is not None:
                with engine.connect() as connection:
                    count = connection.execute(sql("SELECT count(*) FROM names")).scalar_one()
    except CatenaError as error:
        return Check("workspace", "fail", error.message, error.hint)
    data = {"index": kind, "schema": found, "newest_schema": head, "versions": count}
    text = f"{workspace}, {kind}, schema {found or 'none'}, {count} versions"
    if found == head:
        return Check("workspace", "ok", text, data=data)
    if found is None or any(Path(schema.__file__).parent.glob(f"migrations/versions/{found}_*.py")):
        return Check("workspace", "ok", text, f"The index is older: the next run brings it up to date ({head}).", data)
    advice = "Install the Catena that wrote it, or a newer one."
    return Check("workspace", "fail", f"{text}; this Catena knows up to {head}", advice, data)


@contextmanager
def _read_only(workspace: Path) -> Iterator[Engine]:
    """Open a workspace's index for the length of a block; SQLite in a way that cannot write."""
    from sqlalchemy import URL, create_engine

    from catena.hub.index import Index, make_engine
    from catena.hub.store import workspace_settings

    url = workspace_settings(workspace).get("index") or ""
    engine = make_engine(url) if url else None
    if engine is None or engine.dialect.name == "sqlite":
        file = Path((engine.url.database if engine else None) or workspace / "catena.db").absolute()
        if not file.exists():
            raise NotFound(f"the index {file} is not there", hint="Restore it from a copy: it holds names and lineage.")
        place = f"{file.as_uri()}?mode=ro"
        engine = create_engine(
            URL.create("sqlite", database=str(file)), creator=lambda: sqlite3.connect(place, uri=True, timeout=30)
        )
    try:
        with Index(engine).translated():
            yield engine
    finally:
        engine.dispose()
