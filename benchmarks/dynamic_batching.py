"""Dynamic batching at 100 requests a second: the same server, with one request at a time and with up to 64.

    python benchmarks/dynamic_batching.py [--rate 100] [--requests 600] [--rounds 3]

A random model of the demo's shape (the preset `llama-4m`), answers of 24 tokens, over HTTP with streaming. The server
is a child process, the load comes from this one, and both modes take turns; the median round counts. One at a time is
`max_running=1`: the rest waits in the queue.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "dynamic_batching.json"
PRESET = "llama-4m"
MODES = {"one at a time": 1, "batched": 64}
WANTED = 1.3


def main() -> None:
    """Run, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    rounds: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
    for _ in range(arguments.rounds):
        for mode, most in MODES.items():
            level = measure(most, arguments.rate, arguments.requests)
            print(mode, level["requests_per_s"], level["e2el_ms"], file=sys.stderr, flush=True)
            rounds[mode].append(level)
    median = {
        mode: sorted(levels, key=lambda level: level["requests_per_s"])[len(levels) // 2]
        for mode, levels in rounds.items()
    }
    ratio = median["batched"]["requests_per_s"] / median["one at a time"]["requests_per_s"]
    for mode, level in median.items():
        print(
            f"{mode:14} {level['requests_per_s']:7.1f} requests/s  {level['output_tokens_per_s']:8.0f} tok/s  "
            f"TTFT P99 {level['ttft_ms']['p99']:8.0f} ms  E2EL P99 {level['e2el_ms']['p99']:8.0f} ms"
        )
    print(f"throughput, batched / one at a time: {ratio:.2f} (wanted {WANTED})")
    result = {
        "offered_per_s": arguments.rate,
        "model": PRESET,
        "load_average": os.getloadavg()[0],
        "median": median,
        "requests_per_s": {mode: [level["requests_per_s"] for level in levels] for mode, levels in rounds.items()},
        "ratio": round(ratio, 3),
        "ratio_of_means": round(
            statistics.mean(level["requests_per_s"] for level in rounds["batched"])
            / statistics.mean(level["requests_per_s"] for level in rounds["one at a time"]),
            3,
        ),
        "wanted": WANTED,
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


def measure(most: int, rate: float, requests: int) -> dict[str, Any]:
    """Start a server, load it, end it."""
    from catena.serve.load import LoadConfig, run_load

    command = [sys.executable, __file__, "--serve", str(most)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        url = child.stdout.readline().strip()
        asked = {"model": "demo", "max_tokens": 24, "ignore_end": True, "input_words": 8, "timeout_s": 300}
        run_load(url, LoadConfig(requests=20, concurrency=(4,), **asked))  # warm
        load = LoadConfig(requests=requests, rate=rate, concurrency=(requests,), **asked)
        level: dict[str, Any] = run_load(url, load)["levels"][0]
        return level
    finally:
        child.stdin.close()
        child.wait(60)


def serve(most: int) -> None:
    """Serve the random model until the standard input ends."""
    from catena.infer.capacity import EngineConfig
    from catena.infer.engine import Engine
    from catena.models.presets import build
    from catena.models.tokenizer import train_tokenizer
    from catena.serve.app import build_app
    from catena.serve.server import background

    tokenizer = train_tokenizer(["what does the function of this module return and why is it so " * 40], 512)
    model = build(PRESET, len(tokenizer), 0)
    engine = Engine(model.eval(), tokenizer, EngineConfig(max_running=most, max_waiting=5000, prefix_cache=False))
    with background(build_app({"demo": engine})) as url:
        print(url, flush=True)
        sys.stdin.read()
    engine.close()


if __name__ == "__main__":
    main()
