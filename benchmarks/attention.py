"""Time and memory of attention for each token, from 1k to 64k tokens: `local_global` beside dense causal attention.

    python benchmarks/attention.py [--longest N] [--dense N] [--window N] [--memory N]

One layer's attention (4 heads of 64, float32, one row), forward and backward, each length in a child process of its
own, so that the peak of its memory is its own. Dense is torch's fused causal kernel, which keeps no scores; it is
measured as far as `--dense`, since its time grows with the square. Processor seconds of one thread, the faster of two.
Prints a table, and writes `benchmarks/results/attention.json` and `attention.svg`.
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
HEADS, WIDTH = 4, 64
KINDS = ("local_global", "local_global packed", "dense")


def child(kind: str, length: int, window: int, memory: int) -> dict[str, float]:
    """Measure one length in this process: processor seconds and bytes above those of the inputs, for each token."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from catena.models.attention_blocks import blocked_attention, documents_of
    from catena.models.attention_settings import LocalGlobal

    torch.set_num_threads(1)
    settings = LocalGlobal(window=window, memory=memory)
    # Documents of about 1,000 tokens each.
    documents = documents_of(torch.arange(length)[None] // 1000 + 1) if kind.endswith("packed") else None
    generator = torch.Generator().manual_seed(1)

    def measured(tokens: int) -> float:
        inputs = [torch.randn(1, HEADS, tokens, WIDTH, generator=generator, requires_grad=True) for _ in range(3)]
        attend: Callable[[], Any] = (
            (lambda: scaled_dot_product_attention(*inputs, is_causal=True))
            if kind == "dense"
            else (lambda: blocked_attention(*inputs, settings, documents))
        )
        started = time.process_time()
        attend().sum().backward()
        return time.process_time() - started

    if kind == "local_global":
        measured(1024)  # what torch sets up at first use
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    first = measured(length)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    seconds = min(first, measured(length))
    return {"microseconds_per_token": 1e6 * seconds / length, "bytes_per_token": peak / length}


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every kind at every length, in turn."""
    rows = []
    length = 1024
    while length <= arguments.longest:
        for kind in KINDS:
            if kind == "dense" and length > arguments.dense:
                continue
            options = [f"--window={arguments.window}", f"--memory={arguments.memory}"]
            command = [sys.executable, __file__, "--child", kind, str(length), *options]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row = {"kind": kind, "tokens": length, **json.loads(done.stdout)}
            rows.append(row)
            print(
                f"{kind:<22}{length:>7}{row['microseconds_per_token']:>16.1f}{row['bytes_per_token'] / 1024:>14.1f}",
                flush=True,
            )
        length *= 2
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
        axis.set(xscale="log", xlabel="tokens in the row", ylabel=label, ylim=(0, None))
        axis.set_xticks(sorted({row["tokens"] for row in rows}), minor=False)
        axis.set_xticklabels([f"{tokens // 1024}k" for tokens in sorted({row["tokens"] for row in rows})])
        axis.minorticks_off()
    axes[0].legend()
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    """Measure, print, and write the JSON and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--longest", type=int, default=65_536)
    parser.add_argument("--dense", type=int, default=16_384)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--memory", type=int, default=16)
    parser.add_argument("--child", nargs=2, metavar=("KIND", "TOKENS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, length = arguments.child
        print(json.dumps(child(kind, int(length), arguments.window, arguments.memory)))
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
