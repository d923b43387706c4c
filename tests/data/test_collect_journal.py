"""The journal: a batch counts whole or not at all, wherever the writer was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from catena.core.sample import dig
from catena.data.collect.cursor import in_batches, later
from catena.data.collect.journal import Batch, Item, Journal, storable

BASIS = {"identity": "a", "before": ""}


def batch(*keys: str, place: int = 0) -> Batch:
    items = tuple(Item(key, data={"content": key.encode() * 3, "media_type": "text/plain"}) for key in keys)
    return Batch(items, {"place": place})


def test_what_was_written_is_there_again_in_the_order_of_keys(tmp_path: Path) -> None:
    Journal(tmp_path / "j", BASIS).write(batch("b", "a", place=1))
    journal = Journal(tmp_path / "j", BASIS)
    journal.write(batch("c", place=2))
    index = Journal(tmp_path / "j", BASIS).index()
    assert list(index) == ["a", "b", "c"]
    assert [item.data["content"] for item in journal.read(index.values())] == [b"aaa", b"bbb", b"ccc"]
    assert (journal.position, journal.items) == ({"place": 2}, 3)


def test_the_last_item_of_a_key_is_the_one_that_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", BASIS)
    journal.write(batch("a"))
    journal.write(Batch((Item("a", "gone"),), {}))
    assert [item.outcome for item in journal.read(journal.index().values())] == ["gone"]


def test_cut_off_at_any_byte_only_whole_batches_count(tmp_path: Path) -> None:
    folder = tmp_path / "j"
    journal = Journal(folder, BASIS)
    journal.write(batch("a", "b", place=1))
    first = (folder / "journal.jsonl").stat().st_size
    journal.write(batch("c", place=2))
    whole, bodies = (folder / "journal.jsonl").read_bytes(), (folder / "bodies.bin").read_bytes()
    for size in range(first, len(whole), 7):
        (folder / "journal.jsonl").write_bytes(whole[:size])
        (folder / "bodies.bin").write_bytes(bodies)
        opened = Journal(folder, BASIS)
        assert (opened.position, list(opened.index())) == ({"place": 1}, ["a", "b"])
        assert (folder / "bodies.bin").stat().st_size == 6
        opened.write(batch("d", place=3))
        assert [item.data["content"] for item in opened.read(opened.index().values())][-1] == b"ddd"


def test_bodies_that_are_missing_make_the_journal_worthless(tmp_path: Path) -> None:
    Journal(tmp_path / "j", BASIS).write(batch("a"))
    (tmp_path / "j" / "bodies.bin").write_bytes(b"a")
    assert Journal(tmp_path / "j", BASIS).position is None


def test_the_journal_of_other_work_is_thrown_away(tmp_path: Path) -> None:
    Journal(tmp_path / "j", BASIS).write(batch("a"))
    assert Journal(tmp_path / "j", {**BASIS, "before": "x"}).items == 0


@pytest.mark.parametrize("text", ["\ud800", 1 << 70])
def test_what_no_table_can_hold_is_told_before_it_is_written(text: object) -> None:
    assert storable(Item("a", metadata={"x": text}))
    assert not storable(Item("a", metadata={"x": "\x00 is fine"}))


def test_batches_are_bounded_and_keep_the_place_behind_their_last_item() -> None:
    stream = (((Item(str(number)),), {"n": number}) for number in range(600))
    sizes = [(len(made.items), made.position["n"]) for made in in_batches(stream)]
    assert sizes == [(256, 255), (256, 511), (88, 599)]
    large = [((Item("a", data={"text": "x" * (5 << 20)}),), {"n": number}) for number in range(3)]
    assert [len(made.items) for made in in_batches(iter(large))] == [2, 1]


def test_a_dotted_path_leads_through_objects_and_lists() -> None:
    value = {"data": {"items": [{"id": 7}]}}
    assert dig(value, "data.items.0.id") == 7
    assert dig(value, "data.items.1.id") is None
    assert dig(value, "") is value


@pytest.mark.parametrize(
    ("early", "late"),
    [
        (9, 10),
        ("2026-01-01T08:00:00+09:00", "2026-01-01T00:00:00Z"),
        ("2026-01-01", "2026-01-01T00:00:01"),
        (None, "a"),
        ("a", "b"),
    ],
)
def test_the_later_of_two_cursor_values(early: object, late: object) -> None:
    assert later(early, late) == late
    assert later(late, early) == late
