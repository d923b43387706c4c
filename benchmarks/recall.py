"""Recall over many windows: solved through the memory tokens of `local_global` attention, and not without them.

    python benchmarks/recall.py [--steps N] [--seeds N]

A document begins with eight facts in random order, each a token that stands for a key and one of 16 values. Then comes
noise: more than four windows of it, and more than all layers together can carry something from window to window. Then
each key is asked, and its value is to be said. A model that sees the first eight tokens as memory can look the values
up; one that sees its window alone can only guess. No token before the last eight tells a value a second time.
Prints a table and writes `benchmarks/results/recall.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from catena.core.cpu import guard

guard()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

from catena.models.attention import use_local_global  # noqa: E402
from catena.models.attention_settings import LocalGlobal  # noqa: E402
from catena.models.presets import Preset, build  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "recall.json"
KEYS, VALUES, NOISE = 8, 16, 32
WINDOW, WINDOWS, LAYERS = 16, 6, 2
MEMORY = KEYS
LENGTH = MEMORY + WINDOWS * WINDOW + KEYS
FIRST_KEY = VALUES
FIRST_NOISE = FIRST_KEY + KEYS
FIRST_FACT = FIRST_NOISE + NOISE
VOCABULARY = FIRST_FACT + KEYS * VALUES
SHAPE = Preset(hidden=64, layers=LAYERS, feed_forward=128, heads=2, context=LENGTH)
assert WINDOWS > 4
assert WINDOWS * WINDOW > LAYERS * (WINDOW - 1)


def batch(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return documents [rows, LENGTH], and at the asked keys the value to say (elsewhere -100)."""
    keys = torch.rand(rows, KEYS, generator=generator).argsort(dim=1)
    values = torch.randint(0, VALUES, (rows, KEYS), generator=generator)
    noise = torch.randint(0, NOISE, (rows, WINDOWS * WINDOW), generator=generator)
    order = torch.rand(rows, KEYS, generator=generator).argsort(dim=1)
    facts = FIRST_FACT + keys * VALUES + values
    labels = torch.full((rows, LENGTH), -100)
    labels[:, -KEYS:] = values.gather(1, order)
    return torch.cat([facts, FIRST_NOISE + noise, FIRST_KEY + keys.gather(1, order)], dim=1), labels


def train(memory: int, seed: int, steps: int) -> dict[str, Any]:
    """Train one model, and return the share of values it recalls in new documents."""
    model = build(SHAPE, VOCABULARY, seed)
    use_local_global(model, LocalGlobal(window=WINDOW, memory=memory))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    started = time.process_time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 50)
        ids, labels = batch(32, generator)
        asked = labels.ge(0)
        logits = model.lm_head(model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[asked])
        loss = cross_entropy(logits, labels[asked])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if float(loss.detach()) < 0.02:
            break
    return {"recall": round(recall(model), 4), "steps": step + 1, "seconds": round(time.process_time() - started, 1)}


@torch.no_grad()
def recall(model: Any) -> float:
    """Return the share of asked values that the model says, in 512 documents that it has not seen."""
    ids, labels = batch(512, torch.Generator().manual_seed(10**6))
    asked = labels.ge(0)
    said = model(input_ids=ids, use_cache=False).logits[asked].argmax(dim=-1)
    return float((said == labels[asked]).float().mean())


def main() -> None:
    """Train with and without memory, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[int, list[dict[str, Any]]] = {MEMORY: [], 0: []}
    print("memory  recall  steps  processor seconds")
    for memory, found in rows.items():
        for seed in range(arguments.seeds):
            row = train(memory, seed, arguments.steps)
            found.append(row)
            print(f"{memory:<8}{row['recall']:<8.3f}{row['steps']:<7}{row['seconds']}", flush=True)
    result = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}",
        "window": WINDOW,
        "layers": LAYERS,
        "distance_tokens": WINDOWS * WINDOW,
        "chance": 1 / VALUES,
        "runs": rows,
    }
    print(f"chance: {1 / VALUES:.3f}; mean with memory {statistics.mean(row['recall'] for row in rows[MEMORY]):.3f}")
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
