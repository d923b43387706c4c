"""Time and memory of attention for each token, from 1k to 64k tokens: `local_global` beside dense causal attention.

    python benchmarks/attention.py [--longest N] [--dense N] [--window N] [--memory N]

One layer's attention (4 heads of 64, float32, one row), forward and backward; each kind in a child process of its own
that goes from short to long, so that the peak of its memory is that of the length. Dense is torch's fused causal
kernel, which keeps no scores: its time grows with the square (minutes at 64k, `--dense 16384` leaves that out), its
memory does not. Processor seconds of one thread, the faster of two (one above 8k). Prints a table, and writes
`benchmarks/results/attention.json` and `attention.svg`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
HEADS, WIDTH, SHORTEST = 4, 64, 1024
KINDS = ("local_global", "local_global packed", "dense")


def child(kind: str, longest: int, window: int, memory: int) -> None:
    """Measure every length in this process: processor seconds, and bytes above what torch takes, for each token."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from catena.models.attention_blocks import blocked_attention, documents_of
    from catena.models.attention_settings import LocalGlobal

    torch.set_num_threads(1)
    settings = LocalGlobal(window=window, memory=memory)
    generator = torch.Generator().manual_seed(1)

    def measured(length: int) -> float:
        # Documents of about 1,000 tokens each.
        numbers = torch.arange(length)[None] // 1000 + 1
        documents = documents_of(numbers) if kind.endswith("packed") else None
        inputs = [torch.randn(1, HEADS, length, WIDTH, generator=generator, requires_grad=True) for _ in range(3)]
        attend: Callable[[], Any] = (
            (lambda: scaled_dot_product_attention(*inputs, is_causal=True))
            if kind == "dense"
            else (lambda: blocked_attention(*inputs, settings, documents))
        )
        started = time.process_time()
        attend().sum().backward()
        return time.process_time() - started

    measured(64)  # what torch sets up at first use
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    length = SHORTEST
    while length <= longest:
        seconds = min(measured(length) for _ in range(2 if length <= 8192 else 1))
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        row = {"kind": kind, "tokens": length, "microseconds_per_token": 1e6 * seconds / length}
        print(json.dumps({**row, "bytes_per_token": peak / length}), flush=True)
        length *= 2


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every kind, in turn."""
    rows = []
    for kind in KINDS:
        longest = arguments.dense if kind == "dense" else arguments.longest
        options = [f"--window={arguments.window}", f"--memory={arguments.memory}"]
        command = [sys.executable, __file__, "--child", kind, str(longest), *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            for line in running.stdout:
                row = json.loads(line)
                rows.append(row)
                micro, kib = row["microseconds_per_token"], row["bytes_per_token"] / 1024
                print(f"{kind:<22}{row['tokens']:>7}{micro:>16.1f}{kib:>15.1f}", flush=True)
        if running.returncode:
            raise SystemExit(f"the measurement of {kind} failed")
    return rows


def plot(rows: list[dict[str, Any]], target: Path) -> None:
    """Draw both figures over the length."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axis, name, scale, label in (
        (axes[0], "microseconds_per_token", 1.0, "microseconds for each token"),
        (axes[1], "bytes_per_token", 1 / 1024, "KiB for each token"),
    ):
        for kind in KINDS:
            chosen = [row for row in rows if row["kind"] == kind]
            axis.plot([row["tokens"] for row in chosen], [row[name] * scale for row in chosen], "o-", label=kind)
        axis.set(xscale="log", xlabel="tokens in the row", ylabel=label)
        axis.set_xticks(sorted({row["tokens"] for row in rows}), minor=False)
        axis.set_xticklabels([f"{tokens // 1024}k" for tokens in sorted({row["tokens"] for row in rows})])
        axis.minorticks_off()
    axes[0].set_yscale("log")  # dense takes fifty times as long at the end: both are to be read
    axes[0].set_yticks([50, 100, 200, 500, 1000, 2000], [50, 100, 200, 500, 1000, 2000])
    axes[1].set_ylim(0, None)
    axes[0].legend()
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    """Measure, print, and write the JSON and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--longest", type=int, default=65_536)
    parser.add_argument("--dense", type=int, default=65_536)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--memory", type=int, default=16)
    parser.add_argument("--child", nargs=2, metavar=("KIND", "TOKENS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, length = arguments.child
        child(kind, int(length), arguments.window, arguments.memory)
        return
    print(f"{'attention':<22}{'tokens':>7}{'us per token':>16}{'KiB per token':>14}")
    rows = measure(arguments)
    at = {(row["kind"], row["tokens"]): row["microseconds_per_token"] for row in rows}
    longest = max(tokens for kind, tokens in at if kind == "dense")
    print(f"dense / local_global at {longest} tokens: {at['dense', longest] / at['local_global', longest]:.1f}")
    result = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, one thread",
        "load": round(os.getloadavg()[0], 1),
        "window": arguments.window,
        "memory": arguments.memory,
        "heads": HEADS,
        "head_width": WIDTH,
        "rows": rows,
    }
    (RESULTS / "attention.json").write_text(json.dumps(result, indent=2) + "\n")
    plot(rows, RESULTS / "attention.svg")


if __name__ == "__main__":
    sys.exit(main())
