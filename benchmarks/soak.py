"""Random traffic against the engine, 10,000 requests: what came of them, and whether anything was left behind.

    python benchmarks/soak.py [--requests 10000] [--kind ngram ...]

Cancels, listeners that fail, overlong prompts, missed deadlines and bursts over the queue's length, from six threads,
on a tiny model with a cache too small for all. Every answer is compared with that of `generate`. Three times: with
guesses by look-up, with guesses by a copy of the model, and in bfloat16 by the step in C (compared there with what each
request gets alone). What is measured of some of them only leaves the results of the others as they are.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.infer.soak import KINDS, Tally, soak

RESULT = Path(__file__).parent / "results" / "soak.json"


def main() -> None:
    """Run, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--kind", action="append", choices=KINDS)
    arguments = parser.parse_args()
    logging.getLogger("catena.infer.engine").setLevel(logging.CRITICAL)
    results: dict[str, dict[str, Any]] = json.loads(RESULT.read_text()) if arguments.kind else {}
    for kind in arguments.kind or KINDS:
        began = time.monotonic()
        tally = soak(arguments.requests, kind=kind)
        results[kind] = told(tally, arguments.requests, time.monotonic() - began)
        print(f"-- {kind}")
        for name, value in results[kind].items():
            print(f"{name:28} {value}")
    RESULT.write_text(json.dumps(results, indent=2) + "\n")
    bad = ("wrong_answers", "blocks_left", "requests_left")
    sys.exit(any(result[name] for result in results.values() for name in bad))


def told(tally: Tally, requests: int, seconds: float) -> dict[str, Any]:
    """Return what came of one run."""
    quarter = max(1, len(tally.memory) // 4)
    return {
        "requests": requests,
        "seconds": round(seconds, 1),
        "ends": dict(tally.ends),
        "wrong_answers": len(tally.wrong),
        "blocks_left": tally.stats["cache_blocks_used"],
        "requests_left": tally.stats["running"] + tally.stats["waiting"],
        "preemptions": tally.stats["preemptions_total"],
        "tokens_from_prefix_cache": tally.stats["cached_tokens_total"],
        "guesses": tally.stats["guessed_total"],
        "guesses_right": tally.stats["guessed_right_total"],
        # The first quarter warms up allocators; from then on it must be flat.
        "mib_after_a_quarter": round(max(tally.memory[:quarter]) / 2**20, 1),
        "mib_at_the_end": round(max(tally.memory[-quarter:]) / 2**20, 1),
    }


if __name__ == "__main__":
    main()
