"""A short measurement of what this machine computes with: number format and threads are chosen by it, never by flags.

Some processors advertise bfloat16 and run it a hundred times slower than float32. `python -m catena.models.measure`
prints everything as JSON, for a program that wants it from a child process (`catena doctor`).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SIZE = 512
"""Rows and columns of the matrices: about the shapes of a small model, and larger than the caches' overheads."""
SECONDS_EACH = 0.12
"""Time for one measurement; a format so slow that one product takes longer is measured by that one."""
READ_BYTES = 256 << 20


def _rate(work: Callable[[], object], amount: float, device: str) -> float:
    """Return amount per second of `work` at its fastest, after one call that warms up.

    Other programs only ever slow a call down, so the fastest is nearest to what the machine can do.
    """
    began = time.perf_counter()
    work()
    _wait(device)
    first = time.perf_counter() - began
    if first > SECONDS_EACH:
        return amount / first
    best, ends = first, time.perf_counter() + SECONDS_EACH
    while (began := time.perf_counter()) < ends:
        work()
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return amount / best


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def gemm(dtype: torch.dtype, device: str = "cpu", size: int = SIZE) -> float | None:
    """Return GFLOP/s of a square matrix product in a number format, or None where it is not supported."""
    try:
        left = torch.ones(size, size, dtype=dtype, device=device)
        right = torch.ones(size, size, dtype=dtype, device=device)
        return _rate(lambda: left @ right, 2 * size**3 / 1e9, device)
    except (RuntimeError, NotImplementedError):
        return None


def read_bandwidth() -> float:
    """Return GB/s of reading memory with all threads: what bounds decoding."""
    block = torch.ones(READ_BYTES // 4)
    return _rate(lambda: block.sum(), READ_BYTES / 1e9, "cpu")


def gpu_read_bandwidth(device: str) -> float:
    """Return GB/s of reading a GPU's memory."""
    block = torch.ones(READ_BYTES, device=device)
    return _rate(lambda: block.sum(), READ_BYTES * 4 / 1e9, device)


def thread_options() -> list[int]:
    """Return the thread counts worth trying: half, and all, of the processors this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return sorted({max(1, usable // 2), usable})


@cache
def measurements() -> dict[str, Any]:
    """Measure this machine's processors, once in a process; takes about a second.

    `gflops` by number format and `threads` (GFLOP/s of float32 by thread count), `read_gb_per_s`, `cpu` (the
    instruction set torch uses). The thread count of the process is as before afterwards.
    """
    before = torch.get_num_threads()
    by_threads: dict[int, float] = {}
    try:
        for count in thread_options():
            torch.set_num_threads(count)
            by_threads[count] = gemm(torch.float32) or 0.0
        torch.set_num_threads(_fewest_good(by_threads))
        rates = {name: gemm(dtype) for name, dtype in FORMATS.items()}
        bandwidth = read_bandwidth()
    finally:
        torch.set_num_threads(before)
    return {
        "gflops": {name: None if rate is None else round(rate, 1) for name, rate in rates.items()},
        "threads": {str(count): round(rate, 1) for count, rate in by_threads.items()},
        "best_threads": _fewest_good(by_threads),
        "read_gb_per_s": round(bandwidth, 1),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def _fewest_good(rates: dict[int, float]) -> int:
    """Return the smallest thread count within 10 % of the best: what is over is left to others."""
    best = max(rates.values())
    return min(count for count, rate in rates.items() if rate >= 0.9 * best)


@cache
def fastest(device: str = "cpu") -> tuple[torch.dtype, int]:
    """Return (number format, threads) for inference on a device; half precision has to be 1.2 times faster."""
    if device != "cpu":
        major, _ = torch.cuda.get_device_capability(device)
        return (torch.bfloat16 if major >= 8 else torch.float16), torch.get_num_threads()
    found = measurements()
    rates = found["gflops"]
    half = (rates["bfloat16"] or 0.0) > 1.2 * (rates["float32"] or 0.0)
    return (torch.bfloat16 if half else torch.float32), int(found["best_threads"])


def gpus() -> list[dict[str, Any]]:
    """Describe and measure every CUDA GPU."""
    found = []
    for index in range(torch.cuda.device_count()):
        device, facts = f"cuda:{index}", torch.cuda.get_device_properties(index)
        rates = {name: gemm(dtype, device, 4096) for name, dtype in FORMATS.items()}
        found.append(
            {
                "name": facts.name,
                "memory_gib": round(facts.total_memory / 2**30, 1),
                "capability": f"{facts.major}.{facts.minor}",
                "gflops": {name: None if rate is None else round(rate) for name, rate in rates.items()},
            }
        )
    return found


def report() -> dict[str, Any]:
    """Return everything as one JSON-like object, with the versions of torch's libraries."""
    return {
        **measurements(),
        "torch": torch.__version__,
        "blas": "mkl" if torch.backends.mkl.is_available() else "other",  # type: ignore[no-untyped-call]
        "onednn": torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
        **libraries(),
        "gpus": gpus(),
    }


def libraries() -> dict[str, Any]:
    """Return the versions of CUDA, cuDNN and NCCL, None where absent, and what went wrong in `errors`, by name."""
    found: dict[str, Any] = {"cuda": torch.version.cuda, "cudnn": None, "nccl": None, "errors": {}}
    if not torch.version.cuda:
        return found
    asked: dict[str, Callable[[], object]] = {
        "cudnn": torch.backends.cudnn.version,
        "nccl": lambda: ".".join(map(str, torch.cuda.nccl.version())),  # type: ignore[no-untyped-call]
        "gpu": torch.cuda.init,
    }
    for name, ask in asked.items():
        try:
            answer = ask()
        except (RuntimeError, AssertionError, AttributeError, OSError) as error:
            found["errors"][name] = str(error).strip().partition("\n")[0]
        else:
            found.update({} if name == "gpu" else {name: answer})
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(report()) + "\n")
