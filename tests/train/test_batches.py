"""Facts about batches: order depends on seed and step alone, each row comes once in an epoch, little is padding."""

import numpy as np
import pytest

from catena.core.errors import DataError
from catena.models.chat import Encoded
from catena.train.batches import (
    IGNORED,
    PackedDocuments,
    pack_rows,
    pad_rows,
    permutation,
)
from catena.train.tokens import documents_in_memory


def row(length: int, learnt: int = 2, start: int = 10) -> Encoded:
    return Encoded(list(range(start, start + length)), [False] * (length - learnt) + [True] * learnt)


def test_permutation_is_one_of_all_and_depends_on_every_part_of_the_seed() -> None:
    assert sorted(permutation(10, 1, 2)) == list(range(10))
    assert permutation(50, 1, 2).tolist() == permutation(50, 1, 2).tolist()
    assert permutation(50, 1, 2).tolist() != permutation(50, 1, 3).tolist()
    assert permutation(50, 1, 2).tolist() != permutation(50, 2, 2).tolist()


def test_packed_windows_hold_every_token_and_labels_are_the_next_ones() -> None:
    packed = PackedDocuments(documents_in_memory([[5, 6, 7], [8, 9], [], [10, 11, 12]], 1), 4, 1, (0,))
    assert packed.tokens.read(0, 100).tolist() == [5, 6, 7, 1, 8, 9, 1, 10, 11, 12, 1]
    rows = sorted(packed.batch(step).inputs[0].tolist() for step in range(2))
    assert rows == [[5, 6, 7, 1], [8, 9, 1, 10]]
    first = packed.in_order(1)[0]
    assert first.labels.tolist() == [[6, 7, 1, 8]]


def test_packed_batch_of_a_step_is_the_same_however_one_got_there() -> None:
    documents = [list(range(5, 105))] * 3
    straight = PackedDocuments(documents_in_memory(documents, 1), 8, 4, (3,))
    batches = [straight.batch(step).inputs.tolist() for step in range(40)]
    assert PackedDocuments(documents_in_memory(documents, 1), 8, 4, (3,)).batch(33).inputs.tolist() == batches[33]


def test_packed_epoch_sees_each_window_once() -> None:
    packed = PackedDocuments(documents_in_memory([list(range(2, 98))], 1), 8, 3, (0,))
    assert packed.windows == 12
    starts = [int(first) for step in range(4) for first in packed.batch(step).inputs[:, 0]]
    assert sorted(starts) == list(range(2, 98, 8))


def test_too_little_text_for_one_sequence_is_refused() -> None:
    with pytest.raises(DataError, match="fewer than one sequence of 64"):
        PackedDocuments(documents_in_memory([[5, 6, 7]], 1), 64, 1, (0,))


def test_padded_labels_stand_one_before_the_learnt_token() -> None:
    batch = pad_rows([row(5), row(3, learnt=1, start=20)], pad=0)
    assert batch.inputs.tolist() == [[10, 11, 12, 13], [20, 21, 0, 0]]
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 13, 14], [IGNORED, 22, IGNORED, IGNORED]]
    assert (batch.learnt, batch.real) == (3, 6)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_shares_of_a_batch_hold_each_row_once_and_about_equal_tokens(ranks: int) -> None:
    lengths = np.random.default_rng(1).lognormal(4.5, 0.8, 64).astype(int).clip(8, 1000)
    batch = pad_rows([row(int(length), start=1000 * at) for at, length in enumerate(lengths)], 0)
    shares = [batch.share(rank, ranks) for rank in range(ranks)]
    tokens = [share.real for share in shares]
    assert sum(tokens) == batch.real
    assert sum(share.learnt for share in shares) == batch.learnt
    assert (max(tokens) - min(tokens)) / max(tokens) < 0.05
    assert (
        sorted(int(first) for share in shares for first in share.inputs[:, 0]) == batch.inputs[:, 0].sort()[0].tolist()
    )
    assert all(share.inputs.shape[1] == int(share.sizes.max()) for share in shares if share.sizes is not None)


def test_share_of_a_packed_batch_keeps_documents_and_positions() -> None:
    batch = pack_rows([[row(4), row(3)], [row(3), row(3)], [row(6)], [row(2)]], 0)
    shares = [batch.share(rank, 2) for rank in range(2)]
    assert [share.real for share in shares] == [9, 6]
    for share in shares:
        assert share.positions is not None
        assert share.positions.shape == share.inputs.shape == share.labels.shape


def test_process_without_a_row_computes_one_and_learns_nothing() -> None:
    batch = pad_rows([row(5)], 0)
    spare = batch.share(1, 2)
    assert (spare.learnt, spare.inputs.tolist()) == (0, batch.inputs.tolist())
    assert spare.labels.eq(IGNORED).all()
    assert batch.share(0, 2).learnt == batch.learnt


def test_pieces_cut_every_field_by_rows() -> None:
    batch = pack_rows([[row(4), row(3)], [row(3)], [row(6)]], 0)
    first, second = batch.pieces(2)
    assert (len(first.inputs), len(second.inputs)) == (2, 1)
    assert first.learnt + second.learnt == batch.learnt
    assert first.real + second.real == batch.real
    assert second.positions is not None
    assert second.positions.tolist() == [[0, 1, 2, 3, 4]]


def test_positions_of_packed_rows_begin_again_at_each_document_and_at_the_padding() -> None:
    batch = pack_rows([[row(4), row(2, start=20), row(3, start=30)], [row(7, start=40)]], 0)
    assert batch.positions is not None
    assert batch.documents is not None
    assert batch.inputs.tolist() == [[10, 11, 12, 20, 30, 31], [40, 41, 42, 43, 44, 45]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5]]
    assert batch.documents.tolist() == [[0, 0, 0, 1, 2, 2], [0] * 6]
    shorter = pack_rows([[row(3)], [row(7)]], 0)
    assert shorter.positions is not None
    assert shorter.positions[0].tolist() == [0, 1, 0, 1, 2, 3]
