"""Peak memory of the loss: `next_token_loss` against the plain cross-entropy over all logits, each in its own process.

    python benchmarks/loss_memory.py [--tokens 4096] [--vocabulary 32000]

One Llama layer of width 256, one batch, forward and backward. What is told is how far the highest resident size of the
process rises above what it held before the step: gradients, the layer's activations, and above all the logits.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "loss_memory.json"
ROW = 512
GOAL = 0.25


def make(tokens: int, vocabulary: int) -> tuple[Any, Any]:
    """Return the model and the batch, the same in every process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from catena.train.batches import Batch

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=ROW,
    )
    ids = torch.randint(0, vocabulary, (tokens // ROW, ROW + 1))
    learnt = tokens // ROW * ROW
    return LlamaForCausalLM(config), Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), learnt, learnt)


def resident(name: str) -> int:
    """Return a size from /proc/self/status in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def measure(contestant: str, tokens: int, vocabulary: int) -> dict[str, float]:
    """Do one step in this process; returns its loss, the norm of its gradient, its peak and its seconds."""
    import torch

    from catena.train.objectives import next_token_loss

    model, batch = make(tokens, vocabulary)
    Path("/proc/self/clear_refs").write_bytes(b"5")
    before, began = resident("VmRSS"), time.perf_counter()
    if contestant == "catena":
        loss = next_token_loss(model, batch) / batch.learnt
    else:
        logits = model(input_ids=batch.inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
    loss.backward()
    seconds = time.perf_counter() - began
    peak = resident("VmHWM") - before
    norm = float(torch.nn.utils.get_total_norm([item.grad for item in model.parameters()]))
    return {"loss": float(loss), "norm": norm, "peak_mb": peak / 1e6, "seconds": seconds}


def main() -> None:
    """Run both in turn, twice, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--contestant", choices=["catena", "plain"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contestant:
        sys.stdout.write(json.dumps(measure(given.contestant, given.tokens, given.vocabulary)))
        return
    found: dict[str, list[dict[str, float]]] = {"catena": [], "plain": []}
    for _ in range(2):
        for name, rounds in found.items():
            sizes = ["--tokens", str(given.tokens), "--vocabulary", str(given.vocabulary)]
            command = [sys.executable, __file__, "--contestant", name, *sizes]
            rounds.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    best = {name: min(rounds, key=lambda one: one["peak_mb"]) for name, rounds in found.items()}
    ratio = best["catena"]["peak_mb"] / best["plain"]["peak_mb"]
    sys.stdout.write(f"{given.tokens} tokens, vocabulary {given.vocabulary}, width 256, on {platform.machine()}\n")
    for name, one in best.items():
        sys.stdout.write(
            f"  {name:8} peak {one['peak_mb']:8.1f} MB  {one['seconds']:6.2f} s  loss {one['loss']:.6f}"
            f"  gradient {one['norm']:.6f}\n"
        )
    sys.stdout.write(f"  ratio {ratio:.3f} (goal: at most {GOAL})\n")
    RESULTS.parent.mkdir(exist_ok=True)
    result = {"tokens": given.tokens, "vocabulary": given.vocabulary, "ratio": ratio, "goal": GOAL, "rounds": found}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
