"""A training of two processes, the second of which runs out of memory; for `test_short_of_memory`: FOLDER PORT"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers.models.llama import modeling_llama

from catena.core.events import Events
from catena.core.stage import Context
from catena.models.presets import build
from catena.train.batches import Batch, PackedDocuments
from catena.train.loop import Plan, train
from catena.train.objectives import next_token_loss
from catena.train.parallel.strategy import WorkerDone
from catena.train.settings import TrainConfig
from catena.train.tokens import documents_in_memory

HELD = modeling_llama  # imported once, for both


def short_there(model: Any, batch: Batch) -> torch.Tensor:
    """The loss, where memory is enough for two rows on the second process."""
    if os.environ["RANK"] == "1" and len(batch.inputs) > 2:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return next_token_loss(model, batch)


def rank(number: int, workdir: Path) -> None:
    """Train as one of the two, and print how it ended."""
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    packed = PackedDocuments(documents_in_memory([list(range(5, 69))] * 4, 1), 16, 8, (0,))
    plan = Plan("short", 3, packed.batch, lambda step: 1e-3, objective=short_there)
    context = Context(None, workdir, 7, Events(workdir / "events.jsonl"))  # type: ignore[arg-type]
    try:
        counters = train(context, build("llama-nano", 70, 0), plan, TrainConfig(batch_size=8, precision="float32"))
        sys.stdout.write(f"{counters.step} steps, {counters.guard.micro_batch} rows\n")
    except WorkerDone:
        sys.stdout.write("done\n")
    sys.stdout.flush()


if __name__ == "__main__":
    os.environ["MASTER_PORT"] = sys.argv[2]
    if child := os.fork():
        rank(0, Path(sys.argv[1]))
        os.waitpid(child, 0)
    else:
        try:
            rank(1, Path(sys.argv[1]))
        finally:
            os._exit(0)
