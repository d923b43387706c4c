"""The frontier and the spool of a crawl: pure values and a small folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from catena.data.collect.frontier import Frontier, Scope, Visit, canonical, host_of, path_of
from catena.data.collect.spool import Record, Spool

BASE = "http://a.example"


def frontier(*start: str, **limits: int) -> Frontier:
    values = {"max_depth": 9, "max_pages": 100, "max_redirects": 2, **limits}
    return Frontier([BASE + path for path in start or ("/",)], Scope(["a.example"]), **values)


def test_waves_are_alphabetical_whatever_order_links_came_in() -> None:
    one = frontier()
    (root,) = one.next_wave()
    one.found(root, [BASE + "/b", BASE + "/a", BASE + "/", BASE + "/b"])
    assert [visit.url for visit in one.next_wave()] == [BASE + "/a", BASE + "/b"]
    assert one.next_wave() == []


def test_max_pages_cuts_a_wave_and_counts_what_is_left() -> None:
    one = frontier(max_pages=2)
    (root,) = one.next_wave()
    one.found(root, [BASE + "/c", BASE + "/b", BASE + "/a"])
    assert [visit.url for visit in one.next_wave()] == [BASE + "/a"]
    assert one.next_wave() == []
    assert one.waiting == 2


def test_a_redirect_keeps_the_depth_and_ends_in_a_circle() -> None:
    one = frontier()
    (root,) = one.next_wave()
    assert one.redirected(root, BASE + "/x") is None
    (second,) = one.next_wave()
    assert second == Visit(BASE + "/x", 0, (BASE + "/",))
    assert one.redirected(second, BASE + "/") == "redirect_loop"
    assert one.redirected(second, "http://b.example/") == "redirect_offsite"


@pytest.mark.parametrize(
    ("url", "admitted"),
    [
        (BASE + "/docs/a", True),
        (BASE + "/docs/a?x=1", True),
        (BASE + "/docs/secret/a", False),
        (BASE + "/blog", False),
        ("http://b.example/docs/a", False),
        ("http://a.example:8080/docs/a", False),
        ("ftp://a.example/docs/a", False),
        ("file:///docs/a", False),
    ],
)
def test_scope(url: str, admitted: bool) -> None:
    assert Scope(["a.example"], allow=["/docs/*"], deny=["*/secret/*"]).admits(url) is admitted


def test_a_site_without_host_has_addresses_too() -> None:
    assert host_of("pydoc:/json.html") == "pydoc:"
    assert path_of("pydoc:/topic?key=DEL") == "/topic?key=DEL"
    assert canonical("pydoc:/topic?key=DEL") == "pydoc:/topic?key=DEL"
    scope = Scope(["pydoc:"], only=["/json.html"])
    assert scope.admits("pydoc:/json.html")
    assert not scope.admits("pydoc:/antigravity.html")


def spool_at(folder: Path) -> Spool:
    spool = Spool(folder)
    folder.mkdir()
    spool.begin({"start": []}, [])
    return spool


def test_a_line_cut_short_by_a_kill_is_not_done_and_the_next_one_is_readable(tmp_path: Path) -> None:
    spool = spool_at(tmp_path / "crawl")
    spool.append(Record("http://a/", "page", sha256=spool.put_body(b"a"), links=("http://b/",)))
    with (spool.folder / "journal.jsonl").open("ab") as stream:
        stream.write(b'{"url": "http://b/", "outc')
    assert set(spool.records()) == {"http://a/"}
    spool.append(Record("http://c/", "redirect", location="http://a/"))
    assert set(spool.records()) == {"http://a/", "http://c/"}
    assert spool.records()["http://a/"].links == ("http://b/",)


def test_a_page_whose_body_is_damaged_is_asked_again(tmp_path: Path) -> None:
    spool = spool_at(tmp_path / "crawl")
    digest = spool.put_body(b"body")
    spool.append(Record("http://a/", "page", sha256=digest))
    (spool.folder / "bodies" / digest).write_bytes(b"bo")
    assert spool.records() == {}
