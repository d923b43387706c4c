"""Facts about the loop: it learns, it goes on bit-exactly after any end, and it passes broken steps over."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from catena.core.errors import DataError, EnvironmentProblem
from catena.core.events import Events
from catena.core.stage import Context
from catena.models.presets import build
from catena.train import checkpoint
from catena.train.batches import Batch, PackedDocuments
from catena.train.guard import GuardConfig
from catena.train.loop import Plan, train
from catena.train.objectives import next_token_loss
from catena.train.settings import TrainConfig
from catena.train.tokens import documents_in_memory
from tests.train.conftest import Recorded

MakeContext = Callable[[str], Recorded]
CONFIG = TrainConfig(
    batch_size=4, log_every=4, checkpoint_seconds=0, eval_every=8, learning_rate=5e-3, precision="float32"
)
DOCUMENTS = [[5 + (at * step) % 60 for at in range(40)] for step in range(1, 20)]


def make_plan(steps: int = 16, fingerprint: str = "a") -> Plan:
    packed = PackedDocuments(documents_in_memory(DOCUMENTS, 1), 16, 4, (0,))
    return Plan(
        label="test",
        steps=steps,
        batch=packed.batch,
        rate=lambda step: 5e-3 * (1 - step / 100),
        validation=packed.in_order(2),
        phase_ends=frozenset([steps]),
        fingerprint=fingerprint,
    )


def guarded(**values: Any) -> TrainConfig:
    """The config, with these values of its guard."""
    return CONFIG.model_copy(update={"guard": GuardConfig(**values)})


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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[torch.Tensor]:
    model = build("llama-nano", 70, 0)
    context: Any = Context(None, tmp_path_factory.mktemp("undisturbed"), 7, Events())  # type: ignore[arg-type]
    train(context, model, make_plan(), CONFIG)
    return weights(model)


def test_computing_again_keeps_less_and_changes_nothing(recorded: MakeContext, undisturbed: list[torch.Tensor]) -> None:
    kept: list[int] = []

    def note(held: torch.Tensor) -> torch.Tensor:
        kept[-1] += held.numel()
        return held

    for again in (False, True):
        kept.append(0)
        model = build("llama-nano", 70, 0)
        config = CONFIG.model_copy(update={"gradient_checkpointing": again})
        with torch.autograd.graph.saved_tensors_hooks(note, lambda held: held):
            train(recorded(f"again-{again}").context, model, make_plan(), config)
        assert same(weights(model), undisturbed)
        assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert kept[1] < kept[0] / 2


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


def test_training_that_had_ended_is_not_done_again(recorded: MakeContext) -> None:
    ended, model = build("llama-nano", 70, 0), build("llama-nano", 70, 99)
    train(recorded("ended").context, ended, make_plan(4), CONFIG)
    train(recorded("ended").context, model, stopping(make_plan(4), 3, die), CONFIG)
    assert same(weights(model), weights(ended))


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
    with (newest / "rank-0000.safetensors").open("r+b") as stream:
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
    files = ["rank-0000.json", "rank-0000.safetensors", "state.json"]
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
    assert counters.guard.skipped == 1
    assert made.values("skipped_steps") == [1]
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_training_that_diverges_is_given_up_with_a_hint(recorded: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catena.train.guard.GIVE_UP_AFTER", 3)
    plan = replace(make_plan(), objective=lambda model, batch: next_token_loss(model, batch) * float("inf"))
    with pytest.raises(DataError, match="diverged") as caught:
        train(recorded("j").context, build("llama-nano", 70, 0), plan, CONFIG)
    assert "learning_rate" in caught.value.hint


def with_dropout() -> Any:
    model = build("llama-nano", 70, 0)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.2
    return model


def test_model_with_dropout_goes_on_to_the_same_bits(recorded: MakeContext) -> None:
    plan = make_plan(8)
    expected = with_dropout()
    train(recorded("dropout").context, expected, plan, CONFIG)
    with pytest.raises(Died):
        train(recorded("dropped").context, with_dropout(), stopping(plan, 5, die), CONFIG)
    torch.manual_seed(1234)
    model = with_dropout()
    train(recorded("dropped").context, model, plan, CONFIG)
    assert same(weights(model), weights(expected))


def test_step_that_runs_out_of_memory_is_done_again_in_smaller_pieces_with_the_same_random_numbers(
    recorded: MakeContext,
) -> None:
    def short(model: Any, batch: Batch) -> torch.Tensor:
        loss = next_token_loss(model, batch)
        if len(batch.inputs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss

    plan = replace(make_plan(5), validation=())
    expected = with_dropout()
    train(recorded("small").context, expected, plan, CONFIG.model_copy(update={"micro_batch_size": 2}))
    made = recorded("halved")
    model = with_dropout()
    counters = train(made.context, model, replace(plan, objective=short), CONFIG)
    assert counters.guard.micro_batch == 2
    assert made.values("micro_batch") == [2]
    assert "memory ran out with 4 rows at once; step 0 again with 2" in made.said()
    assert same(weights(model), weights(expected))


def test_memory_that_runs_out_with_one_row_is_an_error_with_a_hint(recorded: MakeContext) -> None:
    def short(model: Any, batch: Batch) -> torch.Tensor:
        raise MemoryError

    plan = replace(make_plan(5), validation=(), objective=short)
    with pytest.raises(EnvironmentProblem, match="single sequence") as caught:
        train(recorded("short").context, build("llama-nano", 70, 0), plan, CONFIG)
    assert "shorter sequences" in caught.value.hint
    with pytest.raises(MemoryError):
        train(recorded("unguarded").context, build("llama-nano", 70, 0), plan, guarded(memory=False))


def test_early_end_returns_the_best_weights_and_is_not_gone_on_from(recorded: MakeContext) -> None:
    config = guarded(patience=2, min_delta=50.0, keep_best=True).model_copy(update={"eval_every": 2})
    best = build("llama-nano", 70, 0)
    train(recorded("best").context, best, make_plan(2), CONFIG)
    for seed in (0, 9):  # the second finds the training ended
        made = recorded("early")
        model = build("llama-nano", 70, seed)
        counters = train(made.context, model, make_plan(30), config)
        assert (counters.step, counters.guard.best_step) == (6, 2)
        assert "the weights of step 2 are kept" in made.said()
        assert same(weights(model), weights(best))
    kept = sorted(path.name for path in recorded("early").context.workdir.glob("checkpoint-*"))
    assert kept == ["checkpoint-00000002", "checkpoint-00000005", "checkpoint-00000006"]


def test_float16_goes_on_with_the_scale_that_it_had(recorded: MakeContext) -> None:
    config = CONFIG.model_copy(update={"precision": "float16"})
    expected = build("llama-nano", 70, 0)
    counters = train(recorded("half").context, expected, make_plan(10), config)
    assert counters.guard.skipped < 10
    assert counters.scale.finite_in_a_row > 0
    with pytest.raises(Died):
        train(recorded("half-died").context, build("llama-nano", 70, 0), stopping(make_plan(10), 6, die), config)
    model = build("llama-nano", 70, 9)
    assert train(recorded("half-died").context, model, make_plan(10), config).scale == counters.scale
    assert same(weights(model), weights(expected))


def test_figures_of_speed_checkpoints_and_recovery_are_recorded(recorded: MakeContext) -> None:
    with pytest.raises(Died):
        train(recorded("figures").context, build("llama-nano", 70, 0), stopping(make_plan(8), 5, die), CONFIG)
    made = recorded("figures")
    train(made.context, build("llama-nano", 70, 0), make_plan(8), CONFIG)
    assert len(made.values("time_to_recover_s")) == 1
    assert made.values("time_to_recover_s")[0] > 0
    assert len(made.values("checkpoint_stall_ms")) == 3
    assert made.values("checkpoint_save_s")
    assert all(0 < value < 10 for value in made.values("mfu"))
    shown = [event for event in made.events if event["event"] == "progress"]
    assert {"loss", "norm"} <= set(shown[0])


def test_without_validation_nothing_is_measured_or_stopped(recorded: MakeContext) -> None:
    plan = replace(make_plan(4), validation=())
    counters = train(recorded("blind").context, build("llama-nano", 70, 0), plan, guarded(patience=1))
    assert (counters.step, counters.validation_loss) == (4, None)
