"""Facts about batches: order depends on seed and step alone, each row comes once in an epoch, little is padding."""

import numpy as np
import pytest

from catena.core.errors import DataError
from catena.models.chat import Encoded
from catena.train.batches import (
    IGNORED,
    SORTED_BATCHES,
    BucketedConversations,
    PackedDocuments,
    Pool,
    fit,
    pad_rows,
    permutation,
)


def row(length: int, learnt: int = 2, start: int = 10) -> Encoded:
    return Encoded(list(range(start, start + length)), [False] * (length - learnt) + [True] * learnt)


def test_permutation_is_one_of_all_and_depends_on_every_part_of_the_seed() -> None:
    assert sorted(permutation(10, 1, 2)) == list(range(10))
    assert permutation(50, 1, 2).tolist() == permutation(50, 1, 2).tolist()
    assert permutation(50, 1, 2).tolist() != permutation(50, 1, 3).tolist()
    assert permutation(50, 1, 2).tolist() != permutation(50, 2, 2).tolist()


def test_packed_windows_hold_every_token_and_labels_are_the_next_ones() -> None:
    packed = PackedDocuments([[5, 6, 7], [8, 9], [], [10, 11, 12]], 1, 4, 1, (0,))
    assert packed.tokens.tolist() == [5, 6, 7, 1, 8, 9, 1, 10, 11, 12, 1]
    rows = sorted(packed.batch(step).inputs[0].tolist() for step in range(2))
    assert rows == [[5, 6, 7, 1], [8, 9, 1, 10]]
    first = packed.in_order(1)[0]
    assert first.labels.tolist() == [[6, 7, 1, 8]]


def test_packed_batch_of_a_step_is_the_same_however_one_got_there() -> None:
    documents = [list(range(5, 105))] * 3
    straight = PackedDocuments(documents, 1, 8, 4, (3,))
    batches = [straight.batch(step).inputs.tolist() for step in range(40)]
    assert PackedDocuments(documents, 1, 8, 4, (3,)).batch(33).inputs.tolist() == batches[33]


def test_packed_epoch_sees_each_window_once() -> None:
    packed = PackedDocuments([list(range(2, 98))], 1, 8, 3, (0,))
    assert packed.windows == 12
    starts = [int(first) for step in range(4) for first in packed.batch(step).inputs[:, 0]]
    assert sorted(starts) == list(range(2, 98, 8))


def test_too_little_text_for_one_sequence_is_refused() -> None:
    with pytest.raises(DataError, match="fewer than one sequence of 64"):
        PackedDocuments([[5, 6, 7]], 1, 64, 1, (0,))


def test_padded_labels_stand_one_before_the_learnt_token() -> None:
    batch = pad_rows([row(5), row(3, learnt=1, start=20)], pad=0)
    assert batch.inputs.tolist() == [[10, 11, 12, 13], [20, 21, 0, 0]]
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 13, 14], [IGNORED, 22, IGNORED, IGNORED]]
    assert (batch.learnt, batch.real) == (3, 6)


def test_conversations_of_an_epoch_come_once_each_in_buckets_with_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(10, 60, 320)
    rows = [row(int(length), start=1000 + 100 * at) for at, length in enumerate(lengths)]
    drawn = BucketedConversations(rows, [Pool(np.arange(320))], 8, (0, 0), 0)
    batches = [drawn.batch(step) for step in range(40)]
    assert sorted(int(batch.inputs[at, 0]) for batch in batches for at in range(8)) == sorted(
        item.ids[0] for item in rows
    )
    padding = 1 - sum(batch.real for batch in batches) / sum(batch.inputs.numel() for batch in batches)
    assert padding < 0.1


def test_conversation_batch_of_a_step_is_the_same_however_one_got_there() -> None:
    rows = [row(5 + at % 7, start=100 * at + 10) for at in range(30)]
    pools = [Pool(np.arange(10), 0.25), Pool(np.arange(10, 30), 0.75)]
    straight = BucketedConversations(rows, pools, 4, (1, 0), 0)
    batches = [straight.batch(step).inputs.tolist() for step in range(50)]
    again = BucketedConversations(rows, pools, 4, (1, 0), 0)
    assert [again.batch(step).inputs.tolist() for step in (49, 3, 20)] == [batches[49], batches[3], batches[20]]


def test_shares_of_pools_are_kept() -> None:
    rows = [row(5, start=10 if at < 10 else 1000) for at in range(30)]
    pools = [Pool(np.arange(10), 0.25), Pool(np.arange(10, 30), 0.75)]
    drawn = BucketedConversations(rows, pools, 4, (1, 0), 0)
    firsts = [int(first) for step in range(SORTED_BATCHES) for first in drawn.batch(step).inputs[:, 0]]
    assert firsts.count(10) == SORTED_BATCHES


def test_rows_that_take_turns_are_spread_over_the_epoch() -> None:
    turns = np.repeat(np.arange(5), 4)
    order = Pool(np.arange(20), 1.0, turns).order(0, 0, 0)
    for start in range(0, 20, 5):
        assert sorted(turns[order[start : start + 5]]) == [0, 1, 2, 3, 4]


def test_overlong_conversations_are_cut_dropped_or_refused_and_counted() -> None:
    rows = [row(5), row(12, learnt=2), row(12, learnt=8), row(4, learnt=0)]
    kept, fitted, counts = fit(rows, 8, "cut")
    assert kept == [0, 2]
    assert [len(item.ids) for item in fitted] == [5, 8]
    assert counts == {"cut": 2, "too_long": 0, "nothing_to_learn": 2}
    assert fit(rows, 8, "drop")[2] == {"cut": 0, "too_long": 2, "nothing_to_learn": 1}
    with pytest.raises(DataError, match="12 tokens, the model takes 8"):
        fit(rows, 8, "refuse")
