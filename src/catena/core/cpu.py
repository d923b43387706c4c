"""The CPU guard: keeps oneDNN away from instructions that the processor advertises and the machine does not run.

On some virtual machines `/proc/cpuinfo` lists AMX, and the first bfloat16 matmul dies with SIGILL. Every package that
imports torch calls `guard()` first. It asks a child process once, keeps the answer in the user's cache, and caps oneDNN
by an environment variable, so that this process and all its children are safe. Torch is not imported here.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal

ISA_VARIABLE = "ONEDNN_MAX_CPU_ISA"
SAFE_ISA = "AVX512_CORE_FP16"  # the highest level of oneDNN below AMX
CPUINFO = Path("/proc/cpuinfo")
PROBE = "import torch; x = torch.ones(64, 64, dtype=torch.bfloat16); assert (x @ x)[0, 0] == 64"
PROBE_SECONDS = 120.0

Answer = Literal["sound", "dies", "unknown"]


def guard(*, cpuinfo: Path = CPUINFO, probe: str = PROBE) -> None:
    """Make torch safe to import and calm on shared CPUs. Costs a millisecond where there is no AMX; never raises.

    `probe` is the Python source that the child runs; the child's death by a signal of the processor is the answer.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages: torch reads weights up to 1.3 times faster
    if ISA_VARIABLE in os.environ:
        return
    facts = _cpu_facts(cpuinfo)
    if "amx_tile" not in facts.get("flags", "").split():
        return
    version = _torch_version()
    if version is None:
        return
    cache = _cache_file(facts, version)
    answer = _read(cache)
    if answer is None:
        answer = _ask_child(probe)
        _keep(cache, answer)
    if answer == "dies":
        os.environ[ISA_VARIABLE] = SAFE_ISA


def guard_status(*, cpuinfo: Path = CPUINFO) -> dict[str, str | bool | None]:
    """Say what the guard knows: `cpu`, `amx` (advertised), `probe` (the answer, or why none), `isa` (the cap, if any).

    Nothing is probed here; call `guard` first.
    """
    facts = _cpu_facts(cpuinfo)
    amx = "amx_tile" in facts.get("flags", "").split()
    isa = os.environ.get(ISA_VARIABLE)
    version = _torch_version()
    if not amx:
        probe = "not needed: the processor has no AMX"
    elif version is None:
        probe = "not needed: torch is not installed"
    else:
        probe = _read(_cache_file(facts, version)) or (
            "not asked: the limit was set before" if isa else "not asked yet"
        )
    return {
        "cpu": facts.get("model name", ""),
        "amx": amx,
        "probe": probe,
        "isa": isa,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }


def _cpu_facts(cpuinfo: Path) -> dict[str, str]:
    """Return the fields of the first processor; reading stops there, since a large machine lists hundreds."""
    facts: dict[str, str] = {}
    with suppress(OSError), cpuinfo.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            if not line.strip():
                break
            name, _, value = line.partition(":")
            facts[name.strip()] = value.strip()
    return facts


def _torch_version() -> str | None:
    from importlib import metadata

    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def _cache_file(facts: dict[str, str], torch_version: str) -> Path:
    """Return where the answer for this processor, microcode, kernel and torch is kept."""
    import hashlib

    kernel = os.uname().release
    key = "\n".join([facts.get("model name", ""), facts.get("microcode", ""), kernel, torch_version])
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111  Path.home() raises without one
    return Path(base) / "catena" / f"cpu-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _read(cache: Path) -> Answer | None:
    with suppress(OSError, ValueError):
        found = json.loads(cache.read_text(encoding="utf-8"))
        if isinstance(found, dict) and found.get("answer") in ("sound", "dies"):
            return "dies" if found["answer"] == "dies" else "sound"
    return None


def _keep(cache: Path, answer: Answer) -> None:
    """Keep a certain answer; a child that was killed from outside or had no memory says nothing about the processor."""
    if answer == "unknown":
        return
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_name(f".{cache.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"answer": answer}), encoding="utf-8")
        temporary.replace(cache)


def _ask_child(probe: str) -> Answer:
    import signal
    import subprocess

    if not sys.executable:
        return "unknown"
    try:
        # -P: a file `torch.py` in the current folder must not answer for torch.
        child = subprocess.run(
            [sys.executable, "-P", "-c", probe],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    if child.returncode == 0:
        return "sound"
    return "dies" if -child.returncode in (signal.SIGILL, signal.SIGSEGV) else "unknown"
