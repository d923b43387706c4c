from __future__ import annotations

import pytest

from catena.infer.blocks import BlockPool, names_of


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


def test_a_block_is_found_by_all_the_tokens_before_its_end() -> None:
    pool = BlockPool(4, 2)
    table: list[int] = []
    pool.grow(table, 4)
    names = names_of([1, 2, 3, 4, 5], 2)
    assert len(names) == 2
    assert names[1:] == names_of([1, 2, 3, 4], 2, names[:1])
    for block, name in zip(table, names, strict=True):
        pool.name(block, name)
    shared: list[int] = []
    assert pool.match(shared, names_of([1, 2, 3, 9], 2)) == 1
    assert shared == table[:1]
    assert pool.match([], names_of([1, 2], 2, salt=b"adapter")) == 0
    pool.release(table)
    assert pool.free == 3, "the shared block still has an owner"
    pool.release(shared)
    assert pool.free == 4


def test_kept_blocks_give_way_the_longest_unused_first() -> None:
    pool = BlockPool(3, 1)
    for token in (7, 8):
        table: list[int] = []
        pool.grow(table, 1)
        pool.name(table[0], names_of([token], 1)[0])
        pool.release(table)
    table = []
    assert pool.grow(table, 2), "one was never used, one must give way"
    assert pool.match([], names_of([7], 1)) == 0
    found: list[int] = []
    assert pool.match(found, names_of([8], 1)) == 1
    assert not pool.grow(table, 3)


def test_names_that_no_longer_hold_are_forgotten() -> None:
    pool = BlockPool(1, 1)
    table: list[int] = []
    pool.grow(table, 1)
    pool.name(table[0], names_of([7], 1)[0])
    pool.release(table)
    pool.forget()
    assert pool.free == 1
    assert pool.match([], names_of([7], 1)) == 0
