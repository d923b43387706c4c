"""A training that is killed again and again, for `test_kill.py`: python killed.py FOLDER SEED

It holds torch once and forks a child for each life of the training, so that a life costs milliseconds. Each life is
ended at a random moment after a few steps: by SIGKILL, and now and then by SIGTERM. Prints what happened as JSON.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save_file
from transformers.models.llama import modeling_llama

from catena.core.events import Events
from catena.core.stage import Context
from catena.models.adapters import AdapterConfig, attach
from catena.models.presets import build
from catena.train.batches import Batch, PackedDocuments
from catena.train.loop import Plan, train
from catena.train.settings import TrainConfig
from catena.train.speed import peak_flops
from catena.train.tokens import documents_in_memory

HELD = (peft, modeling_llama)  # imported here once, and not by each life
KILLS, TERMS = 20, 5
STEPS = 150
CONFIG = TrainConfig(batch_size=4, log_every=10, checkpoint_seconds=0, precision="float32", eval_every=25)
STOPPED = 75
DOCUMENTS = [[5 + (at * step) % 60 for at in range(40)] for step in range(1, 20)]


def make_plan() -> Plan:
    """48 packed windows of 16 tokens, 4 in a step: an epoch ends after every 12th step, in the middle of documents."""
    packed = PackedDocuments(documents_in_memory(DOCUMENTS, 1), 16, 4, (0,))
    assert 3 * packed.windows < STEPS * 4
    return Plan("killed", STEPS, packed.batch, lambda step: 5e-3, validation=packed.in_order(1), fingerprint="k")


def make_model() -> Any:
    """A model that draws random numbers in training, in its attention and in its adapter."""
    model = build("llama-nano", 70, 0)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    return attach(model, AdapterConfig(kind="lora", dropout=0.1), 0)


def live(workdir: Path, pipe: int, steps: int = STEPS) -> None:
    """Train to the end, writing a byte into a pipe as each batch is made."""
    plan = make_plan()

    def batch(step: int) -> Batch:
        os.write(pipe, b".")
        return plan.batch(step)

    workdir.mkdir(exist_ok=True)
    model = make_model()
    context = Context(None, workdir, 7, Events(workdir / "events.jsonl"))  # type: ignore[arg-type]
    train(context, model, Plan(**{**vars(plan), "batch": batch, "steps": steps}), CONFIG)
    trained = {name: held.detach().contiguous() for name, held in model.named_parameters() if held.requires_grad}
    save_file(trained, workdir / "trained.safetensors")


def fork(workdir: Path) -> tuple[int, int]:
    """Start a life; returns its process and the pipe of its steps."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    code = 1
    try:
        os.close(reading)
        live(workdir, writing)
        code = 0
    except KeyboardInterrupt:
        code = STOPPED
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait_for(pipe: int, count: int) -> int:
    """Read until so many steps have begun, or the life is over."""
    seen = 0
    while seen < count and (got := os.read(pipe, count - seen)):
        seen += len(got)
    return seen


def end(child: int, pipe: int) -> int:
    while os.read(pipe, 4096):
        pass
    os.close(pipe)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path, seed: int) -> dict[str, Any]:
    """Live once undisturbed and once with many ends; returns counts of how lives ended, and steps that were seen."""
    drawn = random.Random(seed)
    silent = os.open(os.devnull, os.O_WRONLY)
    live(folder / "warm", silent, 2)  # what is imported and built at the first use is then there for each life
    assert end(*fork(folder / "calm")) == 0
    signals = [signal.SIGKILL] * KILLS + [signal.SIGTERM] * TERMS
    drawn.shuffle(signals)
    codes = []
    for number in signals:
        child, pipe = fork(folder / "killed")
        wait_for(pipe, drawn.randint(2, 5))
        time.sleep(drawn.random() * 0.04)
        os.kill(child, number)
        codes.append(end(child, pipe))
    codes.append(end(*fork(folder / "killed")))
    return {"codes": codes}


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)  # forking is safe here: no thread was started yet
    torch.set_num_threads(1)
    peak_flops("float32", "cpu")
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))) + "\n")
