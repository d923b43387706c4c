"""The machine that advice is for: GPUs of the table, or this processor, measured."""

from __future__ import annotations

from collections.abc import Mapping

import psutil

from catena.core.errors import EnvironmentProblem
from catena.core.limits import memory_limit
from catena.core.machine import measured
from catena.flow.advisor.need import parse_gpu
from catena.flow.advisor.serving import Machine
from catena.flow.advisor.tables import Gpu, find

MUCH_FASTER = 1.2
"""How many times float32's speed bfloat16 has to have before it is taken, as the engine does."""


def gpus_of(text: str, table: Mapping[str, Gpu]) -> Machine:
    """Return the GPUs of `a100:2`; raises `UsageError` and `NotFound`."""
    name, count = parse_gpu(text)
    return Machine(name, find(table, name, "GPU"), count)


def this_processor() -> Machine:
    """Measure this machine's processor as `catena doctor` does, and take the memory that is free now."""
    found = measured()
    if "error" in found:
        raise EnvironmentProblem(f"this machine could not be measured: {found['error']}", hint="See `catena doctor`.")
    rates = {name: float(rate or 0.0) for name, rate in found["gflops"].items()}
    half = rates.get("bfloat16", 0.0) > MUCH_FASTER * rates["float32"]
    free, limit = psutil.virtual_memory().available, memory_limit()
    memory = min(free, limit.free) if limit is not None else free
    described = Gpu(
        name=f"this processor ({found['cpu']}, {found['best_threads']} threads)",
        memory=max(memory / 1e9, 1e-3),
        bandwidth=found["read_gb_per_s"],
        tflops=rates["bfloat16" if half else "float32"] / 1000,
        half="bfloat16" if half else "float32",
        link=found["read_gb_per_s"],
        source="measured now, by catena doctor",
    )
    return Machine("cpu", described, 1, cpu=True)
