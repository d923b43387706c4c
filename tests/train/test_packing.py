"""Facts about packing: rows are full, each conversation comes once in an epoch, none sees another."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from catena.core.errors import DataError, UsageError
from catena.models.chat import Encoded
from catena.models.presets import build
from catena.train.batches import Batch, pack_rows, pad_rows
from catena.train.conversations import SORTED_BATCHES, BucketedConversations, Pool
from catena.train.objectives import check_packable, next_token_loss
from catena.train.packing import Filling, PackedRows, best_fit_decreasing, by_tokens
from catena.train.tokens import conversations_in_memory


def row(length: int, learnt: int = 2, start: int = 10) -> Encoded:
    return Encoded(list(range(start, start + length)), [False] * (length - learnt) + [True] * learnt)


def chats(count: int, seed: int = 0) -> list[Encoded]:
    """Lengths as chat data has them: many short, a few long."""
    lengths = np.random.default_rng(seed).lognormal(3.6, 0.7, count).astype(int).clip(6, 250)
    return [row(int(length), start=1000 * at) for at, length in enumerate(lengths)]


def firsts(batch: Batch) -> list[int]:
    """Return which conversations a packed batch holds, by the thousands of their tokens."""
    assert batch.positions is not None
    assert batch.sizes is not None
    real = torch.arange(batch.inputs.shape[1]) < batch.sizes[:, None]
    return [int(token) // 1000 for token in batch.inputs[batch.positions.eq(0) & real]]


def test_conversations_of_an_epoch_come_once_each_in_buckets_with_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(10, 60, 320)
    rows = [row(int(length), start=1000 + 100 * at) for at, length in enumerate(lengths)]
    drawn = BucketedConversations(conversations_in_memory(rows), [Pool(np.arange(320))], 8, (0, 0), 0)
    batches = [drawn.batch(step) for step in range(40)]
    assert sorted(int(batch.inputs[at, 0]) for batch in batches for at in range(8)) == sorted(
        item.ids[0] for item in rows
    )
    padding = 1 - sum(batch.real for batch in batches) / sum(batch.inputs.numel() for batch in batches)
    assert padding < 0.1


def test_conversation_batch_of_a_step_is_the_same_however_one_got_there() -> None:
    rows = [row(5 + at % 7, start=100 * at + 10) for at in range(30)]
    pools = [Pool(np.arange(10), 0.25), Pool(np.arange(10, 30), 0.75)]
    straight = BucketedConversations(conversations_in_memory(rows), pools, 4, (1, 0), 0)
    batches = [straight.batch(step).inputs.tolist() for step in range(50)]
    again = BucketedConversations(conversations_in_memory(rows), pools, 4, (1, 0), 0)
    assert [again.batch(step).inputs.tolist() for step in (49, 3, 20)] == [batches[49], batches[3], batches[20]]


def test_shares_of_pools_are_kept() -> None:
    rows = [row(5, start=10 if at < 10 else 1000) for at in range(30)]
    pools = [Pool(np.arange(10), 0.25), Pool(np.arange(10, 30), 0.75)]
    drawn = BucketedConversations(conversations_in_memory(rows), pools, 4, (1, 0), 0)
    firsts = [int(first) for step in range(SORTED_BATCHES) for first in drawn.batch(step).inputs[:, 0]]
    assert firsts.count(10) == SORTED_BATCHES


def test_rows_that_take_turns_are_spread_over_the_epoch() -> None:
    turns = np.repeat(np.arange(5), 4)
    order = Pool(np.arange(20), 1.0, turns).order(0, 0, 0)
    for start in range(0, 20, 5):
        assert sorted(turns[order[start : start + 5]]) == [0, 1, 2, 3, 4]


def test_bins_are_filled_and_hold_each_item_once() -> None:
    sizes = [len(item.ids) for item in chats(500)]
    bins = best_fit_decreasing(sizes, 256)
    assert sorted(at for held in bins for at in held) == list(range(500))
    assert all(sum(sizes[at] for at in held) <= 256 for held in bins)
    assert sum(sizes) / (256 * len(bins)) > 0.97
    assert best_fit_decreasing([5, 4, 3, 3, 5], 10) == [[0, 4], [1, 2, 3]]
    with pytest.raises(ValueError, match="does not fit"):
        best_fit_decreasing([11], 10)


def test_batches_by_tokens_stay_within_the_budget_but_for_a_row_that_is_wider() -> None:
    widths = [2, 3, 3, 8, 9, 50]
    batches = by_tokens(widths, 20)
    assert [list(batch) for batch in batches] == [[0, 1, 2], [3, 4], [5]]


def test_packed_epoch_holds_each_conversation_once_in_full_rows() -> None:
    rows = conversations_in_memory(chats(300))
    drawn = PackedRows(rows, [Pool(np.arange(300))], Filling(4, 0, 256), (7,), 0)
    steps = drawn.steps(1.0)
    batches = [drawn.batch(step) for step in range(2 * steps)]
    assert sorted(at for batch in batches[:steps] for at in firsts(batch)) == list(range(300))
    assert sorted(at for batch in batches[steps:] for at in firsts(batch)) == list(range(300))
    full = sum(batch.real for batch in batches) / sum(batch.inputs.numel() for batch in batches)
    assert full > 0.95
    assert drawn.steps(2.0) == 2 * steps
    assert drawn.steps(0.5) == round(steps / 2)


def test_packed_batch_of_a_step_is_the_same_however_one_got_there() -> None:
    rows = conversations_in_memory(chats(60))
    pools = [Pool(np.arange(20), 0.25), Pool(np.arange(20, 60), 0.75)]
    for filling in (Filling(2, 0, 256), Filling(2, 700, 256), Filling(2, 400)):
        straight = PackedRows(rows, pools, filling, (1, 0), 0)
        batches = [straight.batch(step).inputs.tolist() for step in range(30)]
        again = PackedRows(rows, pools, filling, (1, 0), 0)
        assert [again.batch(step).inputs.tolist() for step in (29, 3, 20)] == [batches[29], batches[3], batches[20]]


def test_token_budget_gives_batches_of_about_equal_work_with_little_padding() -> None:
    rows = conversations_in_memory(chats(400))
    drawn = PackedRows(rows, [Pool(np.arange(400))], Filling(1, 2000), (7,), 0)
    batches = [drawn.batch(step) for step in range(drawn.steps(1.0))]
    assert max(batch.inputs.numel() for batch in batches) <= 2000
    assert sum(len(batch.inputs) for batch in batches) == 400
    assert sum(batch.real for batch in batches) / sum(batch.inputs.numel() for batch in batches) > 0.8


def test_row_longer_than_a_sequence_is_refused() -> None:
    rows = conversations_in_memory([row(50)])
    with pytest.raises(DataError, match="does not fit into a sequence of 32"):
        PackedRows(rows, [Pool(np.arange(1))], Filling(1, 0, 32), (0,), 0)


def gradients(preset: str, batches: Sequence[Batch], dtype: torch.dtype) -> tuple[float, list[torch.Tensor]]:
    model = build(preset, 400, 3, context=64).to(dtype)
    loss = torch.stack([next_token_loss(model, batch) for batch in batches]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("preset", ["llama-nano", "qwen3-nano", "gpt2-nano"])
def test_packed_rows_cost_and_teach_what_the_conversations_do_alone(
    preset: str, dtype: torch.dtype, close: float
) -> None:
    items = [row(9, 3, 20), row(2, 1, 60), row(14, 5, 100), row(5, 2, 200), row(30, 9, 300)]
    loss, found = gradients(preset, [pack_rows([items[:3], items[3:]], 0)], dtype)
    alone, wanted = gradients(preset, [pad_rows([item], 0) for item in items], dtype)
    assert loss == pytest.approx(alone, rel=close)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=close, atol=close)


def test_joined_rows_do_see_each_other() -> None:
    items = [row(9, 3, 20), row(14, 5, 100)]
    packed = pack_rows([items], 0)
    loss, _ = gradients("llama-nano", [packed], torch.float64)
    blind = Batch(packed.inputs, packed.labels, packed.learnt, packed.real)
    assert abs(gradients("llama-nano", [blind], torch.float64)[0] - loss) > 1e-4


def test_model_without_positions_is_refused() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(UsageError, match="would see each other"):
        check_packable(model)
    check_packable(build("llama-nano", 50, 0))
