from __future__ import annotations

import pytest

from catena.infer.blocks import BlockPool


def test_a_table_grows_to_the_blocks_that_its_tokens_need() -> None:
    pool = BlockPool(4, 8)
    table: list[int] = []
    assert pool.grow(table, 8)
    assert len(table) == 1
    assert pool.grow(table, 9)
    assert len(table) == 2
    assert pool.free == 2


def test_growing_is_all_or_nothing() -> None:
    pool = BlockPool(2, 8)
    table: list[int] = []
    assert not pool.grow(table, 17)
    assert table == []
    assert pool.free == 2


def test_released_blocks_can_be_had_again_and_no_block_has_two_owners() -> None:
    pool = BlockPool(3, 4)
    first: list[int] = []
    second: list[int] = []
    pool.grow(first, 8)
    pool.grow(second, 4)
    assert sorted(first + second) == [0, 1, 2]
    pool.release(first)
    assert first == []
    assert pool.grow(second, 12)
    assert sorted(second) == [0, 1, 2]


def test_a_block_that_is_freed_twice_is_noticed() -> None:
    pool = BlockPool(1, 4)
    table: list[int] = []
    pool.grow(table, 4)
    copy = list(table)
    pool.release(table)
    with pytest.raises(AssertionError, match="twice"):
        pool.release(copy)
