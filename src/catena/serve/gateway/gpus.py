"""The use of GPUs, as `nvidia-smi` tells it; nothing where there is none."""

from __future__ import annotations

import asyncio
import shutil

from catena.serve.gateway.meters import Counter

FIELDS = ("index", "utilization.gpu", "memory.used", "memory.total", "temperature.gpu", "power.draw")
NAMES = {
    "utilization.gpu": ("catena_gpu_utilization_ratio", "Share of time that a GPU was busy.", 0.01),
    "memory.used": ("catena_gpu_memory_used_bytes", "Memory of a GPU in use.", float(1 << 20)),
    "memory.total": ("catena_gpu_memory_total_bytes", "Memory of a GPU.", float(1 << 20)),
    "temperature.gpu": ("catena_gpu_temperature_celsius", "Temperature of a GPU.", 1.0),
    "power.draw": ("catena_gpu_power_watts", "Power that a GPU draws.", 1.0),
}
TIMEOUT_S = 5.0


def parse(text: str) -> list[Counter]:
    """Turn the lines of `nvidia-smi --format=csv,noheader,nounits` into gauges; what it does not know is left out."""
    gauges = {field: Counter(name, help, ("gpu",), "gauge") for field, (name, help, _) in NAMES.items()}
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != len(FIELDS):
            continue
        for field, part in zip(FIELDS[1:], parts[1:], strict=True):
            try:
                gauges[field].put(parts[0], to=float(part) * NAMES[field][2])
            except ValueError:
                continue
    return [gauge for gauge in gauges.values() if gauge.values]


async def gpu_families() -> list[Counter]:
    """Ask the driver. An empty list where there is none, or where it does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        child = await asyncio.create_subprocess_exec(
            program,
            f"--query-gpu={','.join(FIELDS)}",
            "--format=csv,noheader,nounits",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            out, _ = await asyncio.wait_for(child.communicate(), TIMEOUT_S)
        except TimeoutError:
            child.kill()
            await child.wait()
            return []
    except OSError:
        return []
    return parse(out.decode(errors="replace"))
