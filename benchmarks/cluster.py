"""Clustering at scale: seconds and peak memory of banding, verifying and choosing for millions of synthetic signatures.

    python benchmarks/cluster.py [--millions 1 3 10] [--bands 32]

Of every ten documents three are copies of the one before them: a pair agrees in a band as often as a pair of Jaccard
similarity 0.85 does. Keys are made one band at a time, as `data.dedup` reads them; verification asks the synthetic
truth. Each size runs in a process of its own. Writes results/cluster.json and results/cluster.svg.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from catena.data.clusters import choose
from catena.data.lsh import link
from catena.data.shingles import mixed

RESULTS = Path(__file__).parent / "results"
SIMILARITY, ROWS, PERIOD, ORIGINALS = 0.85, 8, 10, 7


def run(count: int, bands: int) -> dict[str, Any]:
    """Cluster `count` documents; returns what it took."""
    places = np.arange(count, dtype=np.int32)
    truth = places - np.maximum(places % PERIOD - (ORIGINALS - 1), 0)

    def each_band() -> Iterator[tuple[Any, Any]]:
        for band in range(bands):
            chance = np.random.default_rng(band)
            keys = mixed(truth.astype(np.uint64) * np.uint64(bands) + np.uint64(band))
            apart = np.flatnonzero((truth != places) & (chance.random(count, dtype=np.float32) > SIMILARITY**ROWS))
            keys[apart] = chance.integers(0, 1 << 63, len(apart), dtype=np.uint64)
            yield keys, places

    before = time.monotonic(), time.process_time()
    linked = link(count, each_band(), lambda pairs: truth[pairs[:, 0]] == truth[pairs[:, 1]])
    chosen = choose(linked.labels, places, lambda first, second: float(truth[first] == truth[second]), 0.8)
    copies = int((truth != places).sum())
    return {
        "documents": count,
        "seconds": time.monotonic() - before[0],
        "processor_seconds": time.process_time() - before[1],
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "pairs_verified": linked.tried,
        "pairs_left_out": linked.untried + chosen.untried,
        "copies": copies,
        "removed": int((chosen.kept_for >= 0).sum()),
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot time and memory against the number of documents."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    millions = [row["documents"] / 1e6 for row in rows]
    for axis, key, scale, name in (
        (axes[0], "processor_seconds", 1, "processor seconds"),
        (axes[1], "peak_bytes", 2**30, "peak memory, GiB"),
    ):
        axis.plot(millions, [row[key] / scale for row in rows], marker="o")
        axis.set(xlabel="million documents", ylabel=name, xlim=0, ylim=0)
    axes[1].axhline(1.5, linestyle=":", color="grey")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run every size, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 3, 10])
    parser.add_argument("--bands", type=int, default=32)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.count:
        print(json.dumps(run(asked.count, asked.bands)))
        return
    rows = []
    print(
        f"{'documents':>11} {'seconds':>8} {'cpu s':>8} {'us/doc':>7} {'peak MiB':>9} {'verified':>10} {'removed':>9}"
    )
    for millions in asked.millions:
        command = [sys.executable, __file__, "--bands", str(asked.bands), "--count", str(int(millions * 1e6))]
        row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        rows.append(row)
        print(
            f"{row['documents']:11,} {row['seconds']:8.1f} {row['processor_seconds']:8.1f}"
            f" {row['processor_seconds'] / row['documents'] * 1e6:7.2f} {row['peak_bytes'] / 2**20:9.0f}"
            f" {row['pairs_verified']:10,} {row['removed']:9,}",
            flush=True,
        )
    machine = {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
    RESULTS.mkdir(exist_ok=True)
    told = {"machine": machine, "bands": asked.bands, "results": rows}
    (RESULTS / "cluster.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    draw(rows, RESULTS / "cluster.svg")


if __name__ == "__main__":
    main()
