"""How fast files of each format become rows, on one core, by the same child process that `data.ingest` uses.

    python benchmarks/formats.py [--megabytes N]

Files are generated. Each format is read three times; the median counts. Speed is told per second of a processor (user
and system, parent and child), which other work on the machine changes little. Prints a table and writes
`benchmarks/results/formats.json`. There is no peer here: the numbers say what to expect.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import inspect
import io
import json
import os
import platform
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import pyarrow as pa  # noqa: E402
from PIL import Image  # noqa: E402
from pyarrow import parquet  # noqa: E402
from tests.data import sample_files  # noqa: E402

from catena.data.formats.pieces import Reading  # noqa: E402
from catena.data.formats.pool import Child  # noqa: E402
from catena.data.formats.wire import unpack  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "formats.json"
TIMES = 3


def sentences() -> list[str]:
    """Return English sentences of the documentation that Python brings."""
    modules = (argparse, csv, gzip, inspect, io, json, os, random, re, statistics, tempfile)
    found: list[str] = []
    for module in modules:
        for value in vars(module).values():
            text = " ".join((inspect.getdoc(value) or "").split())
            found += [part for part in re.split(r"(?<=\.) ", text) if 40 < len(part) < 300 and part.isascii()]
    return sorted(set(found))


def paragraphs(count: int, seed: int) -> list[str]:
    """Return paragraphs of five sentences."""
    rng, known = random.Random(seed), sentences()
    return [" ".join(rng.choices(known, k=5)) for _ in range(count)]


def wrapped(text: str) -> str:
    """Break a text into lines of a page's width."""
    return "\n".join(re.findall(r".{1,90}(?:\s|$)", text))


def page(number: int) -> bytes:
    """Return an HTML page of about 8 KB."""
    links = "".join(f'<li><a href="/{n}">Section {n}</a></li>' for n in range(40))
    body = "".join(f"<p>{text}</p>" for text in paragraphs(10, number))
    return f"<html><head><title>{number}</title></head><body><ul>{links}</ul><main>{body}</main></body></html>".encode()


def table_of(rows: list[str]) -> bytes:
    """Return the rows as CSV with every text quoted."""
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL)
    writer.writerow(["text", "n"])
    writer.writerows((text, number) for number, text in enumerate(rows))
    return out.getvalue().encode()


def column_of(rows: list[str]) -> bytes:
    """Return the rows as Parquet."""
    out = io.BytesIO()
    parquet.write_table(pa.table({"text": rows, "n": list(range(len(rows)))}), out)
    return out.getvalue()


def photo() -> bytes:
    """Return a JPEG of one million pixels."""
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (125, 125, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((1000, 1000)).save(out, "JPEG")
    return out.getvalue()


def inputs(megabytes: float) -> dict[str, tuple[str, list[bytes], dict[str, Any]]]:
    """Return format to (file name, files, how to read them)."""
    rows = paragraphs(int(megabytes * 1500), 1)
    lines = "\n".join(json.dumps({"text": text, "n": number}) for number, text in enumerate(rows)).encode()
    members = {f"{number}.txt": text for number, text in enumerate(rows[:1000])}
    few = rows[:2000]
    many: Callable[[bytes, int], list[bytes]] = lambda content, count: [content] * count  # noqa: E731
    return {
        "txt": ("a.txt", [text.encode() for text in few], {}),
        "html": ("a.html", [page(number) for number in range(int(40 * megabytes))], {}),
        "pdf": ("a.pdf", many(sample_files.pdf([wrapped(text) for text in rows[:200]]), 10), {"per": "page"}),
        "docx": ("a.docx", many(sample_files.docx(rows[:300]), 30), {}),
        "pptx": ("a.pptx", many(sample_files.pptx([[text] for text in rows[:100]]), 30), {"per": "page"}),
        "xlsx": ("a.xlsx", many(sample_files.xlsx({"s": [[text, 1.5] for text in rows[:500]]}), 30), {}),
        "epub": ("a.epub", many(sample_files.epub({str(n): text for n, text in enumerate(rows[:100])}), 30), {}),
        "csv": ("a.csv", [table_of(rows)], {}),
        "jsonl": ("a.jsonl", [lines], {}),
        "jsonl.gz": ("a.jsonl.gz", [gzip.compress(lines)], {}),
        "parquet": ("a.parquet", [column_of(rows)], {}),
        "xml": ("a.xml", [b"<a>" + b"".join(f"<p>{n}</p>".encode() for n in range(200_000)) + b"</a>"], {}),
        "zip of txt": ("a.zip", [sample_files.zipped(members)], {}),
        "jpeg": ("a.jpg", many(photo(), 30), {"shape": "media"}),
        "wav": ("a.wav", many(sample_files.wav(60.0, 16_000), 10), {"shape": "media"}),
    }


def processor_seconds() -> float:
    """Return what this process and its child have used; 0 for a child that has not begun."""
    used = [child.cpu_times() for child in psutil.Process().children()]
    return time.process_time() + sum(times.user + times.system for times in used)


def measure(name: str, files: list[bytes], reading: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Read all files; returns rows and processor seconds of the median turn, without the child's start."""
    paths = []
    for number, content in enumerate(files):
        paths.append(folder / f"{number}-{name}")
        paths[-1].write_bytes(content)
    seconds, rows, rejects, text = [], 0, 0, 0
    with Child(Reading.model_validate(reading), folder / "child") as child:
        for turn in range(TIMES + 1):
            with (folder / "spool").open("w+b") as spool:
                started = processor_seconds()
                for path in paths:
                    child.read(path, path.name, spool)
                if turn:  # the first is for imports
                    seconds.append(processor_seconds() - started)
                    continue
                length = spool.tell()
                spool.seek(0)
                for found in unpack(spool, length):
                    rows, rejects = rows + (not found.reason), rejects + bool(found.reason)
                    text += len(found.body)
    took = statistics.median(seconds)
    size = sum(map(len, files))
    return {
        "files": len(files),
        "megabytes": round(size / 1e6, 2),
        "rows": rows,
        "rejects": rejects,
        "seconds": round(took, 3),
        "files_per_s": round(len(files) / took, 1),
        "rows_per_s": round(rows / took, 1),
        "file_mb_per_s": round(size / took / 1e6, 2),
        "row_mb_per_s": round(text / took / 1e6, 2),
    }


def main() -> None:
    """Measure every format and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=20.0, help="size of the tables; other formats in proportion")
    chosen = parser.parse_args()
    machine = (
        f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, Python {platform.python_version()}"
    )
    print(f"one child process on {machine}\n")
    print(f"{'format':<12}{'files':>7}{'MB':>8}{'rows':>9}{'rows/s':>11}{'MB/s file':>11}{'MB/s rows':>11}")
    results: dict[str, Any] = {}
    for format, (name, files, reading) in inputs(chosen.megabytes).items():
        with tempfile.TemporaryDirectory() as folder:
            found = results[format] = measure(name, files, reading, Path(folder))
        print(
            f"{format:<12}{found['files']:>7}{found['megabytes']:>8}{found['rows']:>9}{found['rows_per_s']:>11}"
            f"{found['file_mb_per_s']:>11}{found['row_mb_per_s']:>11}"
        )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine, "times": TIMES, "formats": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
