"""A picture of a load test: throughput and latencies over the number of requests at once, as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

LATENCIES = (("ttft_ms", "to the first token"), ("tpot_ms", "per token"), ("e2el_ms", "to the last token"))
STYLES = (("p50", "-"), ("p95", "--"), ("p99", ":"))


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write the picture of what `run_load` returned."""
    levels = sorted(result["levels"], key=lambda level: level["concurrency"])
    at = [level["concurrency"] for level in levels]
    with rc_context({"svg.hashsalt": "catena", "svg.fonttype": "none"}):
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(at, [level["requests_per_s"] for level in levels], marker="o", label="completed")
        left.plot(at, [level["goodput_per_s"] for level in levels], marker="s", linestyle="--", label="within limits")
        left.set(xlabel="requests at once", ylabel="requests per second", ylim=(0, None))
        for number, (name, label) in enumerate(LATENCIES):
            for percentile, style in STYLES:
                values = [(level[name] or {}).get(percentile) for level in levels]
                told = f"{label}, {percentile.upper()}"
                right.plot(at, values, linestyle=style, marker=".", color=f"C{number}", label=told)
        right.set(xlabel="requests at once", ylabel="milliseconds", yscale="log")
        for axes in (left, right):
            axes.set_xscale("log")
            axes.grid(alpha=0.3)
            axes.legend(fontsize="x-small")
        figure.savefig(path, format="svg", metadata={"Date": None})
