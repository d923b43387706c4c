"""Search beside random search at the same number of trials, seed by seed.

    python benchmarks/search.py [--trials N] [--seeds N] [--real-trials N] [--real-seeds N]

Two problems. `surrogate`: a formula that behaves as the loss of a training does (a valley whose place depends on the
batch, divergence beyond it, noise of 0.01), judged without the noise. `training`: a llama-nano trained on the topics of
Python's documentation for a fixed number of tokens, over learning rate, batch, warm-up and weight decay; each trial is
an ordinary run of `train.pretrain` and the loss is that of the validation split. Pairs share their seed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import catena as c
from catena.core.sample import Sample
from catena.flow.search import Trial, is_over, phase_of, propose, ranked
from catena.flow.space import TuneConfig

RESULTS = Path(__file__).parent / "results" / "search.json"
SPACE = {
    "learning_rate": {"kind": "log", "low": 1e-4, "high": 1e-1},
    "batch_size": {"kind": "int", "low": 4, "high": 32, "step": 4},
    "warmup_steps": {"kind": "int", "low": 0, "high": 20},
    "weight_decay": {"kind": "log", "low": 1e-3, "high": 1.0},
}
RECIPE = """\
name: search
steps:
  tokenizer: {stage: train.tokenizer, use: {source: topics}, with: {vocab_size: 512}}
  base:
    stage: train.pretrain
    use: {tokenizer: tokenizer, data: topics}
    with: {preset: llama-nano, sequence_length: 64, tokens: 32768, eval_every: 1000, eval_batches: 8}
"""


def surrogate(values: Any) -> float:
    """Return the loss that a training with these values would have, without noise."""
    ideal = 3e-3 * math.sqrt(values["batch_size"] / 8)
    off = math.log10(values["learning_rate"] / ideal)
    warm = abs(values["warmup_steps"] - 8) / 20
    decay = math.log10(values["weight_decay"] / 0.1)
    steps = 0.05 * math.log2(values["batch_size"] / 8) ** 2
    diverged = 3.0 if off > 1.2 else 0.0
    return 2.5 + 0.6 * off**2 + 0.25 * warm**2 + 0.03 * decay**2 + steps + diverged


def on_surrogate(method: str, trials: int, seed: int) -> float:
    """Search the formula; return the true loss of what the search calls best."""
    tune = TuneConfig.model_validate({"step": "base", "space": SPACE, "trials": trials, "method": method})
    known: list[Trial] = []
    while not is_over(tune, len(known), known):
        values = propose(tune, seed, len(known), known)
        noise = random.Random(f"{seed} {sorted(values.items())}").gauss(0, 0.01)
        known.append(Trial(len(known), phase_of(tune, len(known)), values, (surrogate(values) + noise,)))
    return surrogate(ranked(tune, known)[0].values)


def fill(ws: c.Workspace) -> None:
    """Put the topics of Python's documentation into the workspace, every eighth for validation."""
    from pydoc_data.topics import topics

    with ws.store.new_dataset("document", license="PSF-2.0") as out:
        for number, (name, text) in enumerate(sorted(topics.items())):
            split = "validation" if number % 8 == 0 else "train"
            out.add(Sample(id=name, data={"text": text}, source=f"pydoc:{name}", split=split))
        made = out.commit()
    ws.store.index.add_artifact(made)
    ws.store.index.add_name("topics", made.digest)


def on_training(ws: c.Workspace, method: str, trials: int, seed: int) -> tuple[float, int]:
    """Search a real training; return the best validation loss and how many trials it took."""
    recipe = ws.store.root / "search.yaml"
    recipe.write_text(RECIPE)
    found = ws.tune(recipe, overrides=[f"seed={seed}"], step="base", space=SPACE, trials=trials, method=method)
    return found.best.scores[0], len(found.trials)


def compare(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Return medians, and how often the first of a pair is lower."""
    return {
        "pairs": len(pairs),
        "search_median": round(statistics.median(one for one, _ in pairs), 4),
        "random_median": round(statistics.median(other for _, other in pairs), 4),
        "search_wins": sum(one < other for one, other in pairs),
        "ties": sum(one == other for one, other in pairs),
        "search": [round(one, 4) for one, _ in pairs],
        "random": [round(other, 4) for _, other in pairs],
    }


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--real-trials", type=int, default=20)
    parser.add_argument("--real-seeds", type=int, default=5)
    arguments = parser.parse_args()
    result: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    result["machine"] = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    if arguments.seeds:
        pairs = [
            (on_surrogate("tpe", arguments.trials, seed), on_surrogate("random", arguments.trials, seed))
            for seed in range(arguments.seeds)
        ]
        result["surrogate"] = {"trials": arguments.trials, **compare(pairs)}
    if arguments.real_seeds:
        started, pairs, used = time.monotonic(), [], []
        with tempfile.TemporaryDirectory() as folder, c.open(folder) as ws:
            fill(ws)
            for seed in range(arguments.real_seeds):
                best, count = on_training(ws, "tpe", arguments.real_trials, seed)
                pairs.append((best, on_training(ws, "random", count, seed)[0]))
                used.append(count)
                print(
                    f"seed {seed}: search {pairs[-1][0]:.4f}  random {pairs[-1][1]:.4f}  ({count} trials each)",
                    flush=True,
                )
        seconds = round(time.monotonic() - started)
        result["training"] = {"trials": used, "seconds": seconds, **compare(pairs)}
    for name in ("surrogate", "training"):
        if name in result:
            row = result[name]
            print(
                f"{name:<10} search {row['search_median']:<8} random {row['random_median']:<8} "
                f"better in {row['search_wins']} of {row['pairs']} pairs"
            )
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
