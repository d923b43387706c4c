"""Facts about the guard's rules: what is a spike, when to go back, when to stop, how far to halve."""

import math

import pytest
import torch

from catena.train.guard import (
    GIVE_UP_AFTER,
    GuardConfig,
    GuardState,
    fitting,
    gone_back,
    halved,
    is_spike,
    judge,
    measured,
    new_phase,
    out_of_memory,
)
from catena.train.memory import MemoryWatch, free_memory

CONFIG = GuardConfig(window=10, spike_steps=2, rewinds=2)
CALM = [2.0, 2.1, 1.9, 2.0, 2.05]


def test_spike_stands_out_by_deviations_and_by_nats() -> None:
    assert is_spike(CALM, CONFIG, 4.0)
    assert not is_spike(CALM, CONFIG, 2.3)  # within six deviations
    assert not is_spike([0.01] * 5, CONFIG, 0.4)  # many deviations, but no great rise
    assert not is_spike(CALM[:4], CONFIG, 4.0)  # too little was seen
    assert not is_spike(CALM, CONFIG, 0.1)  # a fall is no spike


def test_one_hard_batch_does_not_send_back_and_does_not_count_as_calm() -> None:
    state = GuardState(losses=list(CALM))
    assert judge(state, CONFIG, 9.0, 1.0) == "go on"
    assert judge(state, CONFIG, 2.0, 1.0) == "go on"
    assert (state.spikes, state.spikes_in_a_row, state.losses) == (1, 0, [*CALM, 2.0])


def test_spikes_in_a_row_send_back_until_the_rewinds_are_used_up() -> None:
    state = GuardState(losses=list(CALM))
    assert [judge(state, CONFIG, 9.0, 1.0) for _ in range(2)] == ["go on", "go back"]
    state = GuardState(losses=list(CALM), rewinds=2)
    assert [judge(state, CONFIG, 9.0, 1.0) for _ in range(2)] == ["go on", "lost"]
    never = CONFIG.model_copy(update={"rewinds": 0})
    assert [judge(GuardState(losses=list(CALM)), never, 9.0, 1.0) for _ in range(5)] == ["go on"] * 5


def test_going_back_leaves_out_the_data_up_to_the_spike_and_keeps_what_was_counted() -> None:
    now = GuardState(shift=3, anchor=10, rewinds=1, skipped=4, spikes=2, micro_batch=2)
    state = gone_back(GuardState(shift=3, anchor=0), now, step=17)
    # Step 10 took batch 13 and step 16, the last one, batch 19: step 10 now takes batch 20.
    assert (state.shift, state.rewinds, state.skipped, state.micro_batch) == (10, 2, 4, 2)
    assert 10 + state.shift == 20


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (1.0, math.inf)])
def test_step_without_a_finite_gradient_is_passed_over_and_too_many_are_the_end(loss: float, norm: float) -> None:
    state = GuardState()
    verdicts = [judge(state, CONFIG, loss, norm) for _ in range(GIVE_UP_AFTER)]
    assert verdicts == ["pass over"] * (GIVE_UP_AFTER - 1) + ["lost"]
    assert judge(state, CONFIG, 1.0, 1.0) == "go on"
    assert (state.skipped, state.skipped_in_a_row) == (GIVE_UP_AFTER, 0)


def test_other_curves_and_new_phases_are_not_compared_with_what_was_before() -> None:
    state = GuardState(losses=list(CALM))
    assert judge(state, CONFIG, 9.0, 1.0, watched=False) == "go on"
    assert state.spikes == 0
    new_phase(state, 1)
    assert judge(state, CONFIG, 9.0, 1.0) == "go on"
    assert state.spikes == 0


def test_patience_counts_measurements_that_are_not_better_by_min_delta() -> None:
    config = GuardConfig(patience=2, min_delta=0.1)
    state = GuardState()
    assert [measured(state, config, step, loss) for step, loss in enumerate([3.0, 2.0, 1.95])] == [True, True, False]
    assert not state.ended
    assert not measured(state, config, 3, math.nan)
    assert state.ended
    assert (state.best, state.best_step) == (2.0, 1)


def test_rows_are_halved_until_one_is_left() -> None:
    rows: int | None = 10
    seen = []
    while rows is not None:
        seen.append(rows)
        rows = halved(rows)
    assert seen == [10, 5, 3, 2, 1]


def test_what_says_that_memory_has_run_out_is_known_by_type_or_text() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: can't allocate memory"))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("out of memory"))


def test_micro_batches_are_made_to_fit_into_what_is_free() -> None:
    assert fitting(16, 100, 10.0, 100_000) == 16
    assert fitting(16, 100, 10.0, 9_000) == 8
    assert fitting(16, 100, 10.0, 10) == 1


def test_memory_of_a_step_is_learnt_from_the_process_itself() -> None:
    free = free_memory()
    assert free is None or free > 1 << 20
    watch = MemoryWatch()
    assert watch.rows(64, 1000) == 64  # nothing is known yet
    with watch.measuring(1000):
        torch.ones(8_000_000).sum()  # 32 MB for 1000 tokens
    if watch.bytes_per_token:  # the system tells
        assert 20_000 < watch.bytes_per_token < 100_000
        assert watch.rows(1, 1000) == 1
        assert watch.rows(1 << 40, 1000) < 1 << 40
