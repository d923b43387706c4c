"""The audit by pages, newest first, and the word on how far a check is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from catena.govern.audit.forget import erase
from catena.govern.audit.log import Log
from catena.govern.audit.reading import Page, Query, entries, newest
from catena.govern.audit.verify import verify
from catena.govern.config import AuditConfig

CONFIG = AuditConfig()
COUNT = 60


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace's folder with acts of two people in the audit."""
    root = tmp_path / "w"
    (root / "locks").mkdir(parents=True)
    with Log(root, CONFIG) as log:
        for number in range(COUNT):
            said = "a rare marmot" if number in (3, 41) else "something usual"
            log.act({"act": "test", "number": number, "said": said}, ("lovelace", "hopper")[number % 2])
    return root


def pages(root: Path, query: Query = Query(), **options: Any) -> Iterator[Page]:
    page = newest(root, CONFIG, query, **options)
    yield page
    while page.next:
        page = newest(root, CONFIG, query, start=page.next, **options)
        yield page


def numbers(page: Page) -> list[int]:
    return [one["number"] for one in page.entries]


def test_pages_together_are_all_entries_newest_first(root: Path) -> None:
    found = [number for page in pages(root, limit=7) for number in numbers(page)]
    assert found == list(reversed(range(COUNT)))
    assert [one for page in pages(root, limit=7) for one in page.entries] == list(entries(root, CONFIG))[::-1]


def test_a_page_begins_where_the_one_before_ended_whatever_was_written_since(root: Path) -> None:
    first = newest(root, CONFIG, limit=5)
    with Log(root, CONFIG) as log:
        log.act({"act": "test", "number": 999})
    assert numbers(newest(root, CONFIG, start=first.next, limit=5)) == [54, 53, 52, 51, 50]
    assert numbers(newest(root, CONFIG, limit=1)) == [999]


def test_a_query_is_kept_to_on_every_page(root: Path) -> None:
    found = [
        number for page in pages(root, Query(subject="hopper", text="MARMOT"), limit=1) for number in numbers(page)
    ]
    assert found == [41, 3]
    assert not newest(root, CONFIG, Query(until=datetime.now(UTC) - timedelta(days=2))).entries


def test_a_search_for_what_is_rare_stops_and_says_where(root: Path) -> None:
    page = newest(root, CONFIG, Query(text="marmot"), most=30)
    assert (numbers(page), page.looked) == ([41], 30)
    assert page.next
    assert page.until == list(entries(root, CONFIG))[30]["time"]
    following = newest(root, CONFIG, Query(text="marmot"), start=page.next, most=30)
    assert (numbers(following), following.next) == ([3], following.next)
    assert not newest(root, CONFIG, Query(text="marmot"), start=following.next).entries


def test_what_was_erased_or_damaged_has_its_place(root: Path) -> None:
    with Log(root, CONFIG) as log:
        erase(log, "hopper", reason="asked", by="me")
    kinds = [one["kind"] for page in pages(root, limit=10) for one in page.entries]
    assert kinds.count("erased") == COUNT // 2
    [path] = (root / "audit" / "segments").glob("*.log")
    data = bytearray(path.read_bytes())
    middle = data.find(b"CTA1", len(data) // 2)
    data[middle : middle + 4] = b"XXXX"
    path.write_bytes(bytes(data))
    left = [one["seq"] for page in pages(root, limit=10) for one in page.entries]
    assert left == sorted(left, reverse=True)
    assert set(range(1, COUNT + 2)) - set(left) == {next(seq for seq in range(1, COUNT + 2) if seq not in left)}


def test_a_place_that_is_none_shows_what_there_is(root: Path) -> None:
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    for start in (f"{day}:17", f"{day}:x", "9999-01-01:5", f"{day}:99999999"):
        assert len(newest(root, CONFIG, start=start, limit=1000).entries) in (0, COUNT)


def test_a_check_says_how_far_it_is_and_can_be_ended(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catena.govern.audit.verify.TELL_EVERY", 10)
    told: list[tuple[int, int]] = []
    assert verify(root, CONFIG, on_progress=lambda done, of: told.append((done, of))).sound
    size = sum(path.stat().st_size for path in (root / "audit" / "segments").glob("*.log"))
    assert [of for _, of in told] == [size] * 6
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1][0] == size

    def stop(done: int, of: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        verify(root, CONFIG, on_progress=stop)
