"""Run the demo's whole recipe in a new workspace, hold it to what it promises, and write the numbers of the README.

    python benchmarks/demo_quality.py [--workspace DIR] [--seed N]

Promised: at least 300 functions; exact answers >= 90 % on phrasings held out and >= 80 % on phrasings with words that
no training question has; the whole chain within 8 minutes on 2 cores and 4 GB; a second run under 30 seconds.
Exits 1 where one is not kept. Times are told with the machine they were measured on; no test asserts them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import catena as c

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "demo.json"
REPORTS = ("answers-full", "answers-int8", "perplexity-base", "perplexity-full", "perplexity-int8")
RECIPE = ROOT / "recipes" / "python-helper.yaml"


def run_recipe(workspace: Path, seed: int | None) -> tuple[dict[str, Any], float]:
    """Run the recipe by the command line; return its last event and the seconds it took."""
    command = [sys.executable, "-m", "catena", "run", str(RECIPE), "--json", "--workspace", str(workspace)]
    if seed is not None:
        command += ["--set", f"seed={seed}"]
    started = time.monotonic()
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1]), time.monotonic() - started


def measure(workspace: Path, seed: int | None) -> dict[str, Any]:
    """Run twice and collect what the README tells."""
    end, first = run_recipe(workspace, seed)
    peak_gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    _, second = run_recipe(workspace, seed)
    with c.open(workspace) as ws:
        base, small = ws.model("python-helper/tuned").version, ws.model("python-helper/int8").version
        definitions = ws.dataset("python-helper/definitions").version
        corpus = ws.dataset("python-helper/corpus").version
        pages = ws.dataset("python-helper/pages").version
        reports = {name: ws.resolve(f"python-helper/{name}") for name in REPORTS}
    scores = {
        name: {key: score.model_dump(exclude={"better", "unit"}) for key, score in report.scores.items()}
        for name, report in reports.items()
        if isinstance(report, c.Report)
    }
    return {
        "machine": f"{os.cpu_count()} cores, {processor()}, Python {platform.python_version()}",
        "seconds": round(first, 1),
        "seconds_again": round(second, 1),
        "seconds_by_step": end["seconds"],
        "peak_memory_gib": round(peak_gib, 2),
        "pages": pages.rows,
        "documents": corpus.rows,
        "functions": definitions.rows,
        "parameters": base.parameters,
        "bytes_full": base.size,
        "bytes_int8": small.size,
        "scores": scores,
    }


def processor() -> str:
    """Return what the processor calls itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def broken_promises(result: dict[str, Any]) -> list[str]:
    """Return what was promised and not kept."""
    answers = result["scores"]["answers-int8"]
    checks = {
        "at least 300 functions": result["functions"] >= 300,
        "held-out phrasings >= 90 %": answers["accuracy/held_out_phrasings"]["value"] >= 0.90,
        "unseen words >= 80 %": answers["accuracy/unseen_words"]["value"] >= 0.80,
        "within 8 minutes": result["seconds"] <= 480,
        "4 GB of memory": result["peak_memory_gib"] <= 4.0,
        "second run under 30 s": result["seconds_again"] < 30,
    }
    return [name for name, kept in checks.items() if not kept]


def main() -> int:
    """Measure, write the JSON, and say what was not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, help="where to run (default: a new temporary folder)")
    parser.add_argument("--seed", type=int, help="another seed than the recipe's")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = measure((arguments.workspace or Path(temporary)) / ".catena", arguments.seed)
    print(json.dumps(result, indent=2))
    if arguments.seed is None:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    broken = broken_promises(result)
    for promise in broken:
        print(f"NOT KEPT: {promise}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
