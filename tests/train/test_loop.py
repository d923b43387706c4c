"""Facts about the loop: it learns, it goes on bit-exactly after any end, and it passes broken steps over."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from catena.core.errors import DataError, EnvironmentProblem
from catena.models.presets import build
from catena.train import checkpoint, loop
from catena.train.batches import Batch, PackedDocuments
from catena.train.loop import Plan, train
from catena.train.objectives import next_token_loss
from catena.train.precision import choose_device
from catena.train.settings import TrainConfig
from tests.train.conftest import Recorded

MakeContext = Callable[[str], Recorded]
CONFIG = TrainConfig(batch_size=4, log_every=4, checkpoint_seconds=0, eval_every=8, learning_rate=5e-3)
DOCUMENTS = [[5 + (at * step) % 60 for at in range(40)] for step in range(1, 20)]


def make_plan(steps: int = 16, fingerprint: str = "a") -> Plan:
    packed = PackedDocuments(DOCUMENTS, 1, 16, 4, (0,))
    return Plan(
        label="test",
        steps=steps,
        batch=packed.batch,
        rate=lambda step: 5e-3 * (1 - step / 100),
        validation=packed.in_order(2),
        phase_ends=frozenset([steps]),
        fingerprint=fingerprint,
    )


def stopping(plan: Plan, at: int, how: Callable[[], None]) -> Plan:
    """The same plan, in which something happens while the batch of step `at` is made."""

    def batch(step: int) -> Batch:
        if step == at:
            how()
        return plan.batch(step)

    return replace(plan, batch=batch)


def weights(model: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def undisturbed(recorded: MakeContext) -> list[torch.Tensor]:
    model = build("llama-nano", 70, 0)
    train(recorded("undisturbed").context, model, make_plan(), CONFIG)
    return weights(model)


class Died(Exception):
    pass


def die() -> None:
    raise Died


def test_loss_falls_and_curves_are_recorded(recorded: MakeContext) -> None:
    made = recorded("a")
    rarely = CONFIG.model_copy(update={"checkpoint_seconds": 1000.0})
    counters = train(made.context, build("llama-nano", 70, 0), make_plan(40), rarely)
    losses = made.values("loss")
    assert len(losses) == 10
    assert losses[-1] < losses[0] - 0.3
    assert made.values("val_loss")[-1] < made.values("val_loss")[0]
    assert counters.tokens == 40 * 4 * 16
    assert {"learning_rate", "grad_norm", "tokens_per_s", "skipped_steps"} <= {
        event.get("name") for event in made.events
    }
    assert made.events[-2]["event"] == "progress"


@pytest.mark.parametrize("at", [1, 7, 15])
def test_training_that_died_goes_on_to_the_same_bits(
    recorded: MakeContext, undisturbed: list[torch.Tensor], at: int
) -> None:
    with pytest.raises(Died):
        train(recorded("b").context, build("llama-nano", 70, 0), stopping(make_plan(), at, die), CONFIG)
    made = recorded("b")
    model = build("llama-nano", 70, 99)  # other weights: everything must come from the checkpoint
    train(made.context, model, make_plan(), CONFIG)
    assert f"going on from step {at} of 16" in made.said()
    assert same(weights(model), undisturbed)


def test_training_that_had_ended_is_not_done_again(recorded: MakeContext, undisturbed: list[torch.Tensor]) -> None:
    model = build("llama-nano", 70, 99)
    plan = stopping(make_plan(), 15, die)
    train(recorded("undisturbed").context, model, plan, CONFIG)
    assert same(weights(model), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_lets_the_step_end_and_leaves_a_checkpoint(
    recorded: MakeContext, undisturbed: list[torch.Tensor], number: signal.Signals
) -> None:
    rarely = CONFIG.model_copy(update={"checkpoint_seconds": 1000.0})
    handler = signal.getsignal(number)
    plan = stopping(make_plan(), 5, lambda: os.kill(os.getpid(), number))
    with pytest.raises(KeyboardInterrupt, match="after step 6"):
        train(recorded("c").context, build("llama-nano", 70, 0), plan, rarely)
    assert signal.getsignal(number) == handler
    model = build("llama-nano", 70, 99)
    train(recorded("c").context, model, make_plan(), rarely)
    assert same(weights(model), undisturbed)


KILLED = """
import os, signal, sys
from pathlib import Path
from catena.core.events import Events
from catena.core.stage import Context
from catena.models.presets import build
from catena.train.loop import train
from tests.train.test_loop import CONFIG, make_plan, stopping
workdir, steps = Path(sys.argv[1]), int(sys.argv[2])
seen = []
def note(event):  # kill -9 in the middle of whatever follows this event
    seen.append(event)
    if event["event"] == "progress" and event["done"] >= steps:
        os.kill(os.getpid(), signal.SIGKILL)
plan = stopping(make_plan(), steps, lambda: os.kill(os.getpid(), signal.SIGKILL))
train(Context(None, workdir, 7, Events(listeners=[note])), build("llama-nano", 70, 0), plan, CONFIG)
"""


def test_killed_process_goes_on_to_the_same_bits(
    recorded: MakeContext, undisturbed: list[torch.Tensor], tmp_path: Path
) -> None:
    made = recorded("d")
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", KILLED, str(made.context.workdir), "9"], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    model = build("llama-nano", 70, 99)
    train(made.context, model, make_plan(), CONFIG)
    assert "going on from step" in made.said()
    assert same(weights(model), undisturbed)


def test_death_in_the_middle_of_writing_a_checkpoint_loses_that_one_only(
    recorded: MakeContext, undisturbed: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = checkpoint.sync_folder, []

    def die_the_sixth_time(folder: Path) -> None:
        calls.append(folder)
        if len(calls) == 6:
            raise Died
        real(folder)

    monkeypatch.setattr(checkpoint, "sync_folder", die_the_sixth_time)
    with pytest.raises(Died):
        train(recorded("k").context, build("llama-nano", 70, 0), make_plan(), CONFIG)
    made = recorded("k")
    model = build("llama-nano", 70, 99)
    train(made.context, model, make_plan(), CONFIG)
    assert "going on from step 5" in made.said()
    assert same(weights(model), undisturbed)


def test_damaged_checkpoint_is_passed_over_for_the_one_before(
    recorded: MakeContext, undisturbed: list[torch.Tensor]
) -> None:
    made = recorded("e")
    with pytest.raises(Died):
        train(made.context, build("llama-nano", 70, 0), stopping(make_plan(), 10, die), CONFIG)
    newest = sorted(made.context.workdir.glob("checkpoint-*"))[-1]
    with (newest / "optimizer.safetensors").open("r+b") as stream:
        stream.truncate(1000)
    made = recorded("e")
    model = build("llama-nano", 70, 99)
    train(made.context, model, make_plan(), CONFIG)
    assert "checkpoint-00000010 is damaged" in made.said()
    assert "going on from step 9" in made.said()
    assert same(weights(model), undisturbed)


def test_when_all_checkpoints_are_damaged_training_starts_over_and_says_so(
    recorded: MakeContext, undisturbed: list[torch.Tensor]
) -> None:
    made = recorded("f")
    with pytest.raises(Died):
        train(made.context, build("llama-nano", 70, 0), stopping(make_plan(), 3, die), CONFIG)
    for path in made.context.workdir.glob("checkpoint-*/state.json"):
        path.write_text('{"counters": {')
    made = recorded("f")
    model = build("llama-nano", 70, 0)
    train(made.context, model, make_plan(), CONFIG)
    assert "starting over" in made.said()
    assert same(weights(model), undisturbed)


def test_checkpoint_of_another_training_is_not_used(recorded: MakeContext) -> None:
    train(recorded("g").context, build("llama-nano", 70, 0), make_plan(4), CONFIG)
    made = recorded("g")
    train(made.context, build("llama-nano", 70, 0), make_plan(4, "another"), CONFIG)
    assert "left by another training" in made.said()


def test_two_newest_checkpoints_are_kept_and_hold_no_pickle(recorded: MakeContext) -> None:
    made = recorded("h")
    train(made.context, build("llama-nano", 70, 0), make_plan(6), CONFIG)
    names = sorted(path.relative_to(made.context.workdir).as_posix() for path in made.context.workdir.rglob("*.*"))
    files = ["model.safetensors", "optimizer.safetensors", "state.json"]
    assert names == [f"checkpoint-0000000{step}/{name}" for step in (5, 6) for name in files]
    state = json.loads((made.context.workdir / "checkpoint-00000006" / "state.json").read_text())
    assert state["counters"]["step"] == 6


def test_step_that_is_not_finite_is_passed_over_and_counted(recorded: MakeContext) -> None:
    calls: list[int] = []

    def broken_once(model: Any, batch: Batch) -> torch.Tensor:
        calls.append(1)
        return next_token_loss(model, batch) * (float("nan") if len(calls) == 3 else 1.0)

    made = recorded("i")
    model = build("llama-nano", 70, 0)
    plan = replace(make_plan(6), validation=(), objective=broken_once)
    counters = train(made.context, model, plan, CONFIG)
    assert counters.skipped == 1
    assert made.values("skipped_steps") == [1]
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_training_that_diverges_is_given_up_with_a_hint(recorded: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "GIVE_UP_AFTER", 3)
    plan = replace(make_plan(), objective=lambda model, batch: next_token_loss(model, batch) * float("inf"))
    with pytest.raises(DataError, match="diverged") as caught:
        train(recorded("j").context, build("llama-nano", 70, 0), plan, CONFIG)
    assert "learning_rate" in caught.value.hint


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="the machine has a GPU")
def test_missing_gpu_is_said_plainly() -> None:
    with pytest.raises(EnvironmentProblem, match="no CUDA GPU"):
        choose_device(TrainConfig(device="cuda"))
