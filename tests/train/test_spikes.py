"""Facts about going back behind a spike of the loss: what is left out, when it is given up, and where phases end."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from catena.core.errors import DataError
from catena.models.presets import build
from catena.train.batches import Batch
from catena.train.loop import Plan, train
from catena.train.objectives import next_token_loss
from tests.train.test_loop import Died, MakeContext, guarded, make_plan, same, weights


def spiked(plan: Plan, steps: set[int]) -> Plan:
    """The same plan, with a loss that is far too high on the data of some steps."""

    def objective(model: Any, batch: Batch) -> torch.Tensor:
        return next_token_loss(model, batch) + (20.0 * batch.learnt if batch.real == 1 else 0.0)

    def batch(step: int) -> Batch:
        return replace(plan.batch(step), real=1) if step in steps else plan.batch(step)

    return replace(plan, batch=batch, objective=objective)


def test_spike_sends_back_to_the_checkpoint_before_and_its_data_is_left_out(recorded: MakeContext) -> None:
    config = guarded(window=8, spike_steps=2).model_copy(update={"checkpoint_every": 5, "checkpoint_seconds": 1000.0})
    plan = replace(make_plan(24), validation=())
    expected = build("llama-nano", 70, 0)
    # Steps 17 and 18 spike. Step 15, the last of a checkpoint, then takes the batch of step 19.
    shifted = replace(plan, batch=lambda step: plan.batch((step + (4 if step >= 15 else 0)) % 24))
    train(recorded("shifted").context, expected, shifted, guarded(spike_z=0))

    poisoned = spiked(plan, {17, 18})
    made = recorded("spiked")
    model = build("llama-nano", 70, 0)
    counters = train(made.context, model, poisoned, config)
    assert (counters.guard.rewinds, counters.guard.shift, counters.guard.spikes) == (1, 4, 2)
    assert "back to step 15, leaving out the data of 4 steps" in made.said()
    assert made.values("rewinds") == [1]
    assert same(weights(model), weights(expected))

    for calls in (18, 21):  # dies before and after going back
        seen: list[int] = []

        def batch(step: int, seen: list[int] = seen, calls: int = calls) -> Batch:
            seen.append(step)
            if len(seen) == calls:
                raise Died
            return poisoned.batch(step)

        with pytest.raises(Died):
            train(recorded(f"died-{calls}").context, build("llama-nano", 70, 0), replace(poisoned, batch=batch), config)
        model = build("llama-nano", 70, 9)
        train(recorded(f"died-{calls}").context, model, poisoned, config)
        assert same(weights(model), weights(expected))


def test_training_that_spikes_again_and_again_is_given_up(recorded: MakeContext) -> None:
    config = guarded(window=8, spike_steps=1, rewinds=2).model_copy(update={"checkpoint_every": 4})
    plan = spiked(replace(make_plan(20), validation=()), set(range(6, 20)))
    with pytest.raises(DataError, match="went back 2 times"):
        train(recorded("lost").context, build("llama-nano", 70, 0), plan, config)


def test_data_of_another_phase_is_never_compared_with_that_before(recorded: MakeContext) -> None:
    config = guarded(window=8, spike_steps=2).model_copy(update={"checkpoint_every": 5, "checkpoint_seconds": 1000.0})
    plan = replace(make_plan(28), validation=(), phase_ends=frozenset([20, 28]))
    dear = spiked(plan, {17, 18, *range(20, 28)})  # two spikes, and then a phase whose loss is higher
    seen: list[int] = []
    watched = replace(dear, batch=lambda step: (seen.append(step), dear.batch(step))[1])
    counters = train(recorded("phases").context, build("llama-nano", 70, 0), watched, config)
    assert counters.guard.rewinds == 1
    assert seen[19:] == [19, *range(20, 28), *range(20, 24)]  # at the end the last phase begins again

    def broken(model: Any, batch: Batch) -> torch.Tensor:
        return dear.objective(model, batch) * (float("nan") if seen[-1] == 19 else 1.0)

    calm = spiked(plan, set(range(20, 28)))
    plan = replace(calm, batch=lambda step: (seen.append(step), calm.batch(step))[1], objective=broken)
    counters = train(recorded("passed").context, build("llama-nano", 70, 0), plan, config)
    assert (counters.guard.skipped, counters.guard.rewinds) == (1, 0)
