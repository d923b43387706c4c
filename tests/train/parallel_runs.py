"""What the processes of test_parallel do: `python -m tests.train.parallel_runs FOLDER`.

Four processes are started once. A case that wants two takes the first two of them; the reference runs in the first.
Process 0 leaves what it found in `FOLDER/found.json`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from catena.core.events import Events
from catena.core.stage import Context
from catena.models.presets import Preset, build
from catena.train import checkpoint
from catena.train.batches import Batch
from catena.train.loop import Plan, train
from catena.train.objectives import next_token_loss
from catena.train.parallel import rendezvous
from catena.train.parallel.contract import ProcessLost
from catena.train.parallel.make import make_strategy
from catena.train.parallel.settings import ParallelConfig
from catena.train.parallel.strategy import WorkerDone
from catena.train.precision import prepare
from catena.train.settings import TrainConfig
from tests.train.team import LIMIT_S, become, work_together

STEPS = 8
HALF = 5
LONG = 80
SHAPE = Preset(hidden=32, layers=4, feed_forward=64, heads=4, key_value_heads=2, context=64)


@dataclass(frozen=True)
class Case:
    """A training: on how many processes, shared how."""

    world: int = 1
    parallel: dict[str, Any] = field(default_factory=dict)
    tied: bool = True
    packed: bool = False
    frozen: bool = False
    micro: int = 2
    steps: int = STEPS
    optimizer: str = "adamw"
    rate: float = 1e-2
    again: bool = False
    """Gradient checkpointing."""

    @property
    def reference(self) -> str:
        """The name of the same training on one process."""
        kind = "packed" if self.packed else "tied" if self.tied else "untied"
        kind += ", frozen" if self.frozen else ""
        return f"{kind}, micro {self.micro}, {self.steps} steps, {self.optimizer} at {self.rate}"


EXACT = {
    "ddp": Case(2),
    "ddp on 4": Case(4),
    "zero1": Case(2, {"data": "zero1"}),
    "zero1, lion": Case(2, {"data": "zero1"}, optimizer="lion", rate=1e-3),
    "zero2": Case(2, {"data": "zero2"}),
    "zero2 on 4, untied": Case(4, {"data": "zero2"}, tied=False),
    "zero3": Case(2, {"data": "zero3"}),
    "zero3 on 4, computed again": Case(4, {"data": "zero3"}, again=True),
    "tensor": Case(2, {"tensor": 2}),
    "pipeline": Case(2, {"pipeline": 2}),
    "pipeline, packed": Case(2, {"pipeline": 2}, packed=True),
    "pipeline of 4": Case(4, {"pipeline": 4}),
    "context": Case(2, {"context": 2}),
    "context, packed": Case(2, {"context": 2}, packed=True),
    "ddp with tensor": Case(4, {"tensor": 2}),
    "zero3 with tensor, the first layer frozen": Case(4, {"data": "zero3", "tensor": 2}, frozen=True),
    "zero1 with tensor": Case(4, {"data": "zero1", "tensor": 2}),
    "zero2 with tensor, untied": Case(4, {"data": "zero2", "tensor": 2}, tied=False),
    "ddp with pipeline": Case(4, {"pipeline": 2}),
    "zero1 with pipeline": Case(4, {"data": "zero1", "pipeline": 2}),
    "ddp with context": Case(4, {"context": 2}),
    "zero1 with context": Case(4, {"data": "zero1", "context": 2}),
    "zero2 with context, packed": Case(4, {"data": "zero2", "context": 2}, packed=True),
    "zero3 with context": Case(4, {"data": "zero3", "context": 2}),
    "tensor with pipeline, computed again": Case(4, {"pipeline": 2, "tensor": 2}, again=True),
    "tensor with context": Case(4, {"context": 2, "tensor": 2}),
    "context with pipeline": Case(4, {"pipeline": 2, "context": 2}),
}
SMALL = {
    "float16": Case(2, {"compression": "float16"}, rate=2e-3),
    "bfloat16": Case(2, {"compression": "bfloat16"}, rate=2e-3),
    "float16, zero1": Case(2, {"compression": "float16", "data": "zero1"}, rate=2e-3),
}
LEARNING = {
    "none": Case(2, steps=LONG),
    "powersgd": Case(2, {"compression": "powersgd", "rank": 4}, steps=LONG),
}
RESUMED = {
    "zero3 on 2, then 1": (Case(2, {"data": "zero3"}), Case()),
    "1, then tensor on 2": (Case(), Case(2, {"tensor": 2})),
    "pipeline on 2, then zero1 on 4": (Case(2, {"pipeline": 2}), Case(4, {"data": "zero1"})),
    "zero3 with tensor on 4, then 1": (Case(4, {"data": "zero3", "tensor": 2}), Case()),
}
CASES = {**EXACT, **SMALL, **LEARNING}


def batches(count: int, packed: bool) -> list[Batch]:
    """Make batches of counting sequences; six rows do not divide by four, and not every token is learnt."""
    chance = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        start, step = torch.randint(0, 50, (6, 1), generator=chance), torch.randint(1, 5, (6, 1), generator=chance)
        ids = (start + step * torch.arange(18)) % 50
        labels = ids[:, 1:].clone()
        labels[number % 6, 5:] = -100
        rest: dict[str, Any] = {}
        if packed:
            places = torch.arange(17).expand(6, -1)
            rest = {"positions": torch.where(places < 8, places, places - 8), "documents": (places >= 8).long()}
            rest = {name: tensor.contiguous() for name, tensor in rest.items()}
            labels[:, 7] = -100
        learnt = int(labels.ne(-100).sum())
        made.append(Batch(ids[:, :-1].contiguous(), labels, learnt, labels.numel(), **rest))
    return made


def config_of(case: Case) -> TrainConfig:
    return TrainConfig(
        batch_size=6,
        micro_batch_size=case.micro,
        optimizer=case.optimizer,
        learning_rate=case.rate,
        precision="float32",
        device="cpu",
        clip=0.5,
        checkpoint_seconds=0,
        log_every=1,
        gradient_checkpointing=case.again,
        parallel=ParallelConfig(patience_s=LIMIT_S, **case.parallel),
    )


def untrained(case: Case) -> Any:
    model = build(SHAPE.model_copy(update={"tied": case.tied}), 50, 0)
    if case.frozen:
        model.model.layers[0].requires_grad_(False)
    return model


def run(case: Case) -> dict[str, Any] | None:
    """Train by hand; returns losses, norms and weights on the main process."""
    config = config_of(case)
    strategy = make_strategy(config, torch.device("cpu"))
    whole = untrained(case)
    model = strategy.place(whole)
    prepare(model, config, torch.device("cpu"), case.steps)
    optimizer = strategy.optimizer(model)
    given = batches(case.steps, case.packed)
    losses, norms = [], []
    for batch in given:
        losses.append(strategy.backward(model, batch, next_token_loss, case.micro))
        norms.append(strategy.clip(model, config.clip))
        optimizer.step()
        model.zero_grad(set_to_none=True)
    validation = strategy.measure(model, given[:2])
    wire = strategy.wire.bytes
    strategy.gather(model)
    strategy.close()
    if not strategy.main:
        return None
    weights = {name: tensor.detach().clone() for name, tensor in whole.named_parameters()}
    return {"losses": losses, "norms": norms, "validation": validation, "wire": wire, "weights": weights}


class Died(Exception):
    """The end of a training before its time."""


def run_loop(case: Case, folder: Path, until: int) -> list[dict[str, Any]]:
    """Train with the loop and its checkpoints in a folder; dies before step `until`. Returns the events."""
    given, events = batches(STEPS, False), []

    def batch(step: int) -> Batch:
        if step == until:
            raise Died
        return given[step]

    folder.mkdir(exist_ok=True)
    model = untrained(case)
    plan = Plan("test", STEPS, batch, lambda step: 1e-2, fingerprint="same")
    context = Context(None, folder, 7, Events(listeners=[events.append]))  # type: ignore[arg-type]
    try:
        train(context, model, plan, config_of(case))
    except (Died, WorkerDone):
        pass
    return events


def curve(events: list[dict[str, Any]]) -> dict[int, float]:
    return {event["at_step"]: event["value"] for event in events if event.get("name") == "loss"}


def work(process: int, folder: Path) -> None:
    """Do a process's part of all cases; one that a case does not want goes on to the next."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    references: dict[str, Any] = {}

    def enter(world: int, word: str) -> bool:
        become(process, world, word)
        return process < world

    for name, case in CASES.items():
        if process == 0 and case.reference not in references:
            become(0, 1, "alone")
            references[case.reference] = run(replace(case, world=1, parallel={}, again=False))
        if enter(case.world, name):
            done = run(case)
            if done is not None:
                found[name] = compared(done, references[case.reference])
    alone = curve(run_loop(Case(), folder / "alone", -1)) if enter(1, "alone") else {}
    for number, (name, (before, after)) in enumerate(RESUMED.items()):
        place = folder / f"resumed-{number}"
        first = run_loop(before, place, HALF) if enter(before.world, f"{name}: before") else []
        meet(process, f"{name}: between")
        second = run_loop(after, place, -1) if enter(after.world, f"{name}: after") else []
        if process == 0:
            found[name] = {"alone": alone, "before": curve(first), "after": curve(second)}
    served = run_loop(Case(2, {"data": "server"}), folder / "served", -1) if enter(2, "served") else []
    short = run_short(process, folder / "short") if enter(2, "short") else ""
    left = run_left(process, folder / "left") if enter(2, "left") else ""
    if process == 0:
        found |= {"server": curve(served), "left": left, "short": short}
        (folder / "found.json").write_text(json.dumps(found))


def run_short(process: int, place: Path) -> str:
    """Train on two, of which the second has memory for two rows only; returns how it went."""

    def short_there(model: Any, batch: Batch) -> torch.Tensor:
        if process == 1 and len(batch.inputs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return next_token_loss(model, batch)

    given, said = batches(2, False), []
    place.mkdir(exist_ok=True)
    plan = Plan("short", 2, given.__getitem__, lambda step: 1e-3, objective=short_there)
    context = Context(None, place, 7, Events(listeners=[said.append]))  # type: ignore[arg-type]
    try:
        counters = train(context, untrained(Case()), plan, config_of(Case(2, micro=3)))
    except WorkerDone:
        return ""
    told = [event["message"] for event in said if "memory ran out" in event.get("message", "")]
    return f"{counters.step} steps, {counters.guard.micro_batch} rows: {told}"


def run_left(process: int, place: Path) -> str:
    """Train on two, the second of which ends in the middle without a word; returns what the first says."""
    given = batches(STEPS, False)

    def batch(step: int) -> Batch:
        if process == 1 and step == HALF:
            sys.stdout.flush()
            os._exit(0)
        return given[step]

    place.mkdir(exist_ok=True)
    checkpoint.GRACE_S = 0.1
    context = Context(None, place, 7, Events())  # type: ignore[arg-type]
    try:
        train(context, untrained(Case()), Plan("left", STEPS, batch, lambda step: 1e-2), config_of(Case(2)))
    except ProcessLost as error:
        return str(error)
    return "nothing"


def meet(process: int, word: str) -> None:
    """Wait for all four."""
    become(process, 4, word)
    rendezvous.begin("gloo", LIMIT_S)
    dist.barrier()
    dist.destroy_process_group()


def compared(done: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """Return how far a training is from its reference, and what of it the tests look at."""

    def apart(key: str) -> float:
        return max(abs(one - other) for one, other in zip(done[key], reference[key], strict=True))

    assert list(done["weights"]) == list(reference["weights"])
    weights = max(float((done["weights"][name] - held).abs().max()) for name, held in reference["weights"].items())
    return {
        "losses": apart("losses"),
        "norms": apart("norms"),
        "validation": abs(done["validation"] - reference["validation"]),
        "weights": weights,
        "wire": done["wire"],
        "first": done["losses"][0],
        "last": done["losses"][-1],
        "reference": reference["losses"][-1],
    }


if __name__ == "__main__":
    work_together(4, lambda process: work(process, Path(sys.argv[1])))
