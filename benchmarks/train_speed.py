"""Training speed and memory beside the Trainer of transformers (with PEFT for adapters), on the same model and data.

    python benchmarks/train_speed.py [--pairs 3] [--steps 12] [--cases full,lora,packed]

    full      all weights, documents of equal length: nothing to pad
    lora      LoRA (rank 8, all linear layers), likewise
    packed    all weights, conversations with lengths as chat data has them (log-normal, most short, a few long): theirs
              padded to the longest of a batch, as their collator does it; ours packed, none seeing another

Each measurement is a child process of its own, ours and theirs in turn; the ratio is the median over the pairs. What
counts is tokens that are not padding. On a processor they are divided by seconds of the processor (all threads), which
other work on the machine changes little; wall seconds stand in the results too. On a GPU by wall seconds, and told is
the share of its measured matrix speed (MFU, 6 x parameters x tokens).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "train_speed.json"
WARM = 3
"""Steps that are not timed."""
WANTED = {"full": 1.0, "lora": 1.0, "packed": 1.8}
WANTED_ON_GPU = {"full": 1.5, "lora": 1.5, "packed": 1.8}
VOCABULARY = 4096


@dataclass(frozen=True)
class Case:
    """What is trained in a case."""

    preset: str
    length: int
    batch: int


CASES = {"full": Case("llama-4m", 256, 8), "lora": Case("llama-4m", 256, 8), "packed": Case("llama-4m", 512, 16)}
CASES_ON_GPU = {
    "full": Case("llama-350m", 2048, 16),
    "lora": Case("llama-1b", 2048, 8),
    "packed": Case("llama-350m", 2048, 32),
}


class Clock:
    """Notes both clocks at the beginning of each step."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def tick(self) -> None:
        """Note one."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def spent(self) -> tuple[float, float]:
        """Return the seconds of the timed steps: wall, processor."""
        return self.wall[-1] - self.wall[WARM], self.cpu[-1] - self.cpu[WARM]


def rows_of(case: Case, name: str, count: int) -> list[tuple[list[int], list[bool]]]:
    """Return (ids, which are learnt) of so many rows, the same for both."""
    import numpy as np

    chance = np.random.default_rng(7)
    lengths = np.full(count, case.length)
    if name == "packed":
        lengths = np.exp(chance.normal(np.log(case.length / 8), 0.9, count)).astype(int).clip(8, case.length)
    rows = []
    for length in lengths.tolist():
        ids = chance.integers(5, VOCABULARY, length).tolist()
        asked = length // 3 if name == "packed" else 0
        rows.append((ids, [False] * asked + [True] * (length - asked)))
    return rows


def ours(name: str, case: Case, steps: int, model: Any, clock: Clock) -> int:
    """Train with Catena; returns the tokens of the timed steps."""
    import numpy as np

    from catena.core.events import Events
    from catena.core.stage import Context
    from catena.hub.store import init_store
    from catena.models.adapters import AdapterConfig, attach
    from catena.train.conversations import BucketedConversations, Pool
    from catena.train.loop import Plan, train
    from catena.train.packing import Filling, PackedRows
    from catena.train.settings import TrainConfig
    from catena.train.tokens import Tokens, make_shard

    rows = rows_of(case, name, case.batch * (steps + 1))
    tokens = Tokens([make_shard(rows, range(len(rows)), vocabulary=VOCABULARY)])
    pool, drawn = Pool(np.arange(len(rows))), None
    if name == "packed":
        # As many tokens in a step as theirs has on average.
        sequences = max(1, round(case.batch * float(tokens.lengths.mean()) / case.length))
        drawn = PackedRows(tokens, [pool], Filling(sequences, 0, case.length), (7,), 0)
    else:
        drawn = BucketedConversations(tokens, [pool], case.batch, (7,), 0)
        model = attach(model, AdapterConfig(kind="lora") if name == "lora" else AdapterConfig(), 7)
    real: list[int] = []

    def batch(step: int) -> Any:
        clock.tick()
        made = drawn.batch(step)
        real.append(made.real)
        return made

    config = TrainConfig(checkpoint_seconds=1e9, log_every=10_000, warmup_steps=1, precision=precision())
    with tempfile.TemporaryDirectory() as folder:
        store = init_store(Path(folder) / ".catena")
        plan = Plan("speed", steps + 1, batch, lambda step: 1e-4)
        train(Context(store, Path(folder), 7, Events()), model, plan, config)
        store.close()
    return sum(real[WARM:steps])


def theirs(name: str, case: Case, steps: int, model: Any, clock: Clock) -> int:
    """Train with the Trainer; returns the tokens of the timed steps."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    rows = rows_of(case, name, case.batch * (steps + 1))
    real: list[int] = []

    def collate(chosen: list[dict[str, Any]]) -> dict[str, Any]:
        longest = max(len(row["ids"]) for row in chosen)
        inputs = torch.zeros(len(chosen), longest, dtype=torch.int64)
        labels, mask = torch.full_like(inputs, -100), torch.zeros_like(inputs)
        for at, row in enumerate(chosen):
            ids = torch.tensor(row["ids"])
            inputs[at, : len(ids)], mask[at, : len(ids)] = ids, 1
            labels[at, : len(ids)] = torch.where(torch.tensor(row["mask"]), ids, -100)
        real.append(int(mask.sum()) - len(chosen))  # ours counts inputs that have a label to be: one less in a row
        return {"input_ids": inputs, "attention_mask": mask, "labels": labels}

    class Ticks(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.tick()

    if name == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    half = precision() == "bfloat16"
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=case.batch,
            max_steps=steps + 1,
            learning_rate=1e-4,
            optim="adamw_torch_fused",
            bf16=half,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        data = [{"ids": ids, "mask": mask} for ids, mask in rows]
        Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[Ticks()]).train()
    return sum(real[WARM:steps])


def precision() -> str:
    """Return the number format of both: bfloat16 on a GPU."""
    import torch

    return "bfloat16" if torch.cuda.is_available() else "float32"


SIDES: dict[str, Callable[..., int]] = {"ours": ours, "theirs": theirs}


def child(side: str, name: str, steps: int) -> None:
    """Measure one side of one case and print the numbers as JSON."""
    import torch

    from catena.core.cpu import guard
    from catena.models.measure import gemm
    from catena.models.presets import build

    guard()
    on_gpu = torch.cuda.is_available()
    case = (CASES_ON_GPU if on_gpu else CASES)[name]
    model = build(case.preset, VOCABULARY, 7, context=case.length)
    parameters = model.num_parameters()
    clock = Clock()
    tokens = SIDES[side](name, case, steps, model, clock)
    wall, cpu = clock.spent()
    told: dict[str, Any] = {"tokens": tokens, "wall_s": round(wall, 3), "cpu_s": round(cpu, 3)}
    told["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    if on_gpu:
        told["peak_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
        speed = gemm(torch.bfloat16, "cuda", 8192) or 0.0
        told["mfu"] = round(6 * parameters * tokens / wall / (speed * 1e9), 4) if speed else None
        told["gpu"] = torch.cuda.get_device_name()
    sys.stdout.write(json.dumps(told) + "\n")


def run_child(side: str, name: str, steps: int) -> dict[str, Any]:
    """Measure one side of one case in a process of its own."""
    command = [sys.executable, __file__, "--child", f"{side},{name}", "--steps", str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    told: dict[str, Any] = json.loads(output.splitlines()[-1])
    seconds = told["wall_s"] if "gpu" in told else told["cpu_s"]
    return {**told, "tokens_per_s": round(told["tokens"] / seconds, 1)}


def compare(name: str, pairs: int, steps: int) -> dict[str, Any]:
    """Measure both sides in turn; returns the medians and the ratios."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
    for number in range(pairs):
        for side in ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours"):
            found[side].append(run_child(side, name, steps))
    both = list(zip(found["ours"], found["theirs"], strict=True))
    return {
        "ratio": round(statistics.median(a["tokens_per_s"] / b["tokens_per_s"] for a, b in both), 3),
        "memory_ratio": round(statistics.median(a["peak_mb"] / b["peak_mb"] for a, b in both), 3),
        "wall_ratio": round(
            statistics.median(a["tokens"] / a["wall_s"] / (b["tokens"] / b["wall_s"]) for a, b in both), 3
        ),
        **found,
    }


def main() -> int:
    """Measure, print a table, write the JSON; returns 1 where a ratio is below what is wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child.split(","), arguments.steps)
        return 0
    load = os.getloadavg()[0]
    cases = {name: compare(name, arguments.pairs, arguments.steps) for name in arguments.cases.split(",")}
    on_gpu = any("gpu" in run for case in cases.values() for run in case["ours"])
    wanted = WANTED_ON_GPU if on_gpu else WANTED
    unit = "real tokens per " + ("s" if on_gpu else "s of a processor")
    print(f"{'case':8} {'ours':>9} {'Trainer':>9} {'ratio':>6} {'wanted':>6} {'memory':>7}   ({unit})")
    for name, case in cases.items():
        mine, other = (statistics.median(run["tokens_per_s"] for run in case[side]) for side in ("ours", "theirs"))
        ratio, memory = case["ratio"], case["memory_ratio"]
        print(f"{name:8} {mine:9.0f} {other:9.0f} {ratio:6.2f} {wanted[name]:6.1f} {memory:7.2f}")
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    told = {"machine": machine, "load_average": round(load, 1), "on_gpu": on_gpu, "cases": cases}
    RESULTS.write_text(json.dumps(told, indent=2) + "\n")
    return 0 if all(case["ratio"] >= wanted[name] for name, case in cases.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
