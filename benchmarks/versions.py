"""Versions: commit, diff and checkout of a table of which one row in a hundred changed, against a copy of the whole.

    python benchmarks/versions.py [--rows 1000000] [--cache DIR] [--without-peer]

The yardstick is what a team without versions does: a Parquet file (zstd) for each state, written and compared by DuckDB
in an environment of its own, from the same edited JSON lines. Bytes are what the state adds on disk. Both work on the
same machine in turn. Speed is told in seconds of a processor (all threads), which other work on the machine changes
little; wall seconds are in the results.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from catena.core.sample import Sample, sample_id
from catena.core.types import DatasetVersion
from catena.hub import versions
from catena.hub.store import Store, init_store

RESULTS = Path(__file__).parent / "results" / "versions.json"
PEER = ["duckdb==2.0.0"]
SHARE = 0.01
WORDS = [f"word{number}" for number in range(5000)]
PEER_CODE = """
import duckdb, json, os, sys, time
before, after, folder = sys.argv[1:4]
def timed(query):
    start, wall = time.process_time(), time.perf_counter()
    result = duckdb.sql(query)
    rows = result.fetchall() if result is not None else None
    return (time.process_time() - start, time.perf_counter() - wall), rows
duckdb.sql("set enable_progress_bar = false")
row = "read_json('{}', format='newline_delimited', maximum_object_size=100000000)"
parquet = "(format parquet, compression zstd)"
first, _ = timed(f"copy (select * from {row.format(before)}) to '{folder}/1.parquet' {parquet}")
commit, _ = timed(f"copy (select * from {row.format(after)}) to '{folder}/2.parquet' {parquet}")
diff, counts = timed(f\"\"\"
    select count(*) filter (a._id is null), count(*) filter (b._id is null),
           count(*) filter (a._id is not null and b._id is not null and a.h <> b.h)
    from (select _id, hash(t) as h from '{folder}/1.parquet' t) a
    full join (select _id, hash(t) as h from '{folder}/2.parquet' t) b on a._id = b._id\"\"\")
checkout, _ = timed(f"copy (select * from '{folder}/2.parquet') to '{folder}/out.jsonl' (format json)")
seconds = {"first": first, "commit": commit, "diff": diff, "checkout": checkout}
print(json.dumps({**{name + "_s": value[0] for name, value in seconds.items()},
                  **{name + "_wall_s": value[1] for name, value in seconds.items()},
                  "counts": counts[0], "bytes": os.path.getsize(folder + "/2.parquet")}))
"""


def text(chance: random.Random, number: int) -> str:
    """Return a text of about 400 bytes."""
    return f"Document {number}: " + " ".join(chance.choices(WORDS, k=45))


def fill(store: Store, rows: int) -> DatasetVersion:
    """Write the first version of `bench`."""
    chance = random.Random(7)
    with store.new_dataset("document") as writer:
        for number in range(rows):
            identity = sample_id("row", number)
            writer.add(Sample(identity, {"text": text(chance, number)}, {"n": number}, f"https://example.org/{number}"))
        version = writer.commit()
    store.index.add_artifact(version)
    store.index.add_name("bench", version.digest)
    return version


def edit(source: Path, target: Path, rows: int) -> None:
    """Change one row in a hundred: eight of ten get another text, one goes, one comes."""
    chance = random.Random(11)
    chosen = set(chance.sample(range(rows), int(rows * SHARE)))
    with source.open("rb") as lines, target.open("wb") as out:
        for number, line in enumerate(lines):
            kind = number % 10 if number in chosen else None
            if kind == 0:
                continue
            row = orjson.loads(line) if kind is not None else None
            if row is None:
                out.write(line)
            elif kind == 1:
                out.write(line + orjson.dumps({**row, "_id": sample_id("new", number)}) + b"\n")
            else:
                out.write(orjson.dumps({**row, "text": text(chance, number)}) + b"\n")


def bytes_in(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Clock:
    """Seconds of named pieces of work: of the processor (`NAME_s`) and of the wall (`NAME_wall_s`)."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, work: Callable[[], Any]) -> Any:
        """Do the work, note its time, and return its result."""
        start, wall = time.process_time(), time.perf_counter()
        result = work()
        self.seconds[f"{name}_s"] = time.process_time() - start
        self.seconds[f"{name}_wall_s"] = time.perf_counter() - wall
        return result


def ours(folder: Path, rows: int) -> dict[str, Any]:
    """Measure Catena; leaves `before.jsonl` and `after.jsonl` for the peer."""
    store = init_store(folder / ".catena")
    clock = Clock()
    clock.time("first", lambda: fill(store, rows))
    full = bytes_in(store.datasets)
    versions.checkout(store, "bench", folder / "before")
    edit(folder / "before" / "samples.jsonl", folder / "after.jsonl", rows)
    _, counts = clock.time("commit", lambda: versions.commit_file(store, "bench", folder / "after.jsonl"))
    added = bytes_in(store.datasets) - full
    found = clock.time("diff", lambda: versions.diff(store, "bench@1", "bench@2"))
    listed = clock.time("diff_rows", lambda: sum(1 for _ in found.rows()))
    clock.time("checkout", lambda: versions.checkout(store, "bench@2", folder / "out"))
    clock.time("checkout_parquet", lambda: versions.checkout(store, "bench@2", folder / "parquet", "parquet"))
    assert found.counts == counts
    assert listed == sum(counts.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {**clock.seconds, "counts": counts, "bytes": added, "full_bytes": full, "peak_mib": peak}


def peer(folder: Path, cache: Path) -> dict[str, Any]:
    """Measure DuckDB with a Parquet file for each state."""
    python = cache / "duckdb" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(python.parent.parent)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEER], check=True)
    paths = [str(folder / "before" / "samples.jsonl"), str(folder / "after.jsonl"), str(folder)]
    done = subprocess.run([str(python), "-c", PEER_CODE, *paths], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure, print a table, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "catena-benchmarks")
    parser.add_argument("--without-peer", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mine = ours(folder, options.rows)
        other = {} if options.without_peer else peer(folder, options.cache)
    hardware = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(f"{options.rows:,} rows, changes {mine['counts']}; {hardware}; load {os.getloadavg()[0]:.1f}\n")
    print(f"{'':22} {'Catena':>14} {'copies, DuckDB':>15} {'ratio':>8}")
    for label, key, unit in (
        ("first version", "first_s", "s"),
        ("commit", "commit_s", "s"),
        ("commit adds", "bytes", "MB"),
        ("diff (counts)", "diff_s", "s"),
        ("diff (all rows read)", "diff_rows_s", "s"),
        ("checkout, JSON lines", "checkout_s", "s"),
        ("checkout, Parquet", "checkout_parquet_s", "s"),
    ):
        scale = 1e6 if unit == "MB" else 1
        value, against = mine[key] / scale, other.get(key)
        shown = f"{against / scale:12.2f} {unit:>2} {against / scale / value:7.2f}x" if against else ""
        print(f"{label:22} {value:11.2f} {unit:>2} {shown}")
    print(f"\na commit adds {mine['bytes'] / mine['full_bytes']:.1%} of the first version; peak {mine['peak_mib']} MiB")
    result = {"rows": options.rows, "hardware": hardware, "load": os.getloadavg()[0], "catena": mine, "copies": other}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
