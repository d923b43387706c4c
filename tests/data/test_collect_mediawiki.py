"""MediaWiki: a wiki's API on loopback, dumps, and wikitext to text."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path
from typing import Any

import pytest

from catena.core.errors import DataError, NotFound, RemoteError
from catena.core.stage import Context
from catena.data.collect.wikitext import TooComplex, plain_text

from .loopback import FAST, Asked, Reply, collect, counts, loopback, reasons, texts


class Wiki:
    """As much of the Action API as is used: pages by number, and a log of changes."""

    def __init__(self) -> None:
        self.pages: dict[int, dict[str, Any]] = {}
        self.changes: list[dict[str, Any]] = []
        self.now = "2026-01-01T00:00:00Z"
        self.busy = 0
        self.dead_from = ""

    def edit(self, page: int, title: str, text: str, at: str, **more: Any) -> None:
        revision = self.pages.get(page, {}).get("revision", page * 10) + 1
        self.pages[page] = {"title": title, "text": text, "revision": revision, "at": at, **more}
        self.changes.append({"type": "edit", "title": title, "pageid": page, "timestamp": at})

    def delete(self, page: int, at: str) -> None:
        title = self.pages.pop(page)["title"]
        self.changes.append({"type": "log", "logtype": "delete", "title": title, "pageid": 0, "timestamp": at})

    def answer(self, asked: Asked) -> Reply:
        query = asked.query
        assert (query["action"], query["format"], query["formatversion"]) == ("query", "json", "2")
        if self.busy:
            self.busy -= 1
            return Reply({"error": {"code": "maxlag", "info": "lagged"}}, headers={"Retry-After": "0"})
        if "curtimestamp" in query:
            rights = {"url": "http://cc/by-sa", "text": "CC BY-SA 4.0"}
            return Reply({"curtimestamp": self.now, "query": {"rightsinfo": rights}})
        if query.get("list") == "recentchanges":
            found = [change for change in self.changes if change["timestamp"] >= query["rcstart"]]
            return self.paged(query, found, "rccontinue", "rclimit", "recentchanges")
        if query.get("generator") == "allpages":
            if self.dead_from and query.get("gapcontinue", "") >= self.dead_from:
                return Reply(status=503)
            return self.paged(
                query, [self.shown(page) for page in sorted(self.pages)], "gapcontinue", "gaplimit", "pages"
            )
        if "pageids" in query:
            return Reply({"query": {"pages": [self.shown(int(page)) for page in query["pageids"].split("|")]}})
        by_title = {entry["title"]: page for page, entry in self.pages.items()}
        titles = query["titles"].split("|")
        pages = [self.shown(by_title[t]) if t in by_title else {"title": t, "missing": True} for t in titles]
        return Reply({"query": {"pages": pages}})

    def paged(self, query: dict[str, str], found: list[Any], name: str, limit: str, key: str) -> Reply:
        first, size = int(query.get(name, 0)), int(query[limit])
        body: dict[str, Any] = {"query": {key: found[first : first + size]}}
        if first + size < len(found):
            body["continue"] = {name: str(first + size), "continue": "-||"}
        return Reply(body)

    def shown(self, page: int) -> dict[str, Any]:
        if page not in self.pages:
            return {"pageid": page, "missing": True}
        entry = self.pages[page]
        main = {"contentmodel": entry.get("model", "wikitext"), "content": entry["text"]}
        revision = {"revid": entry["revision"], "timestamp": entry["at"], "slots": {"main": main}}
        shown = {"pageid": page, "ns": entry.get("ns", 0), "title": entry["title"], "revisions": [revision]}
        if entry.get("redirect"):
            shown["redirect"] = True
        return {**shown, "canonicalurl": f"http://wiki/{entry['title']}"}


@pytest.fixture
def wiki() -> Wiki:
    made = Wiki()
    for number in range(1, 8):
        made.edit(number, f"Page {number}", f"'''Page {number}''' is a [[thing|page]].", "2025-12-01T00:00:00Z")
    return made


def values_of(url: str, **more: Any) -> dict[str, Any]:
    return {"url": f"{url}/w/api.php", "page_size": 3, "http": FAST, **more}


def test_a_second_run_asks_only_for_what_recent_changes_name(context: Context, wiki: Wiki) -> None:
    with loopback(wiki.answer) as server:
        first = collect(context, "data.collect_mediawiki", **values_of(server.url))
        assert texts(context, first) == [f"Page {number} is a page." for number in range(1, 8)]
        row = next(iter(context.store.open_dataset(first).samples()))
        assert (first.license, row.license, row.source) == ("CC BY-SA 4.0", "CC BY-SA 4.0", "http://wiki/Page 1")
        wiki.edit(3, "Page 3", "Mended.", "2026-01-02T00:00:00Z")
        wiki.edit(8, "Page 8", "New.", "2026-01-03T00:00:00Z")
        wiki.delete(5, "2026-01-03T00:00:00Z")
        wiki.now = "2026-01-04T00:00:00Z"
        server.asked.clear()
        second = collect(context, "data.collect_mediawiki", **values_of(server.url))
        assert not [entry for entry in server.asked if "generator" in entry.query]
        assert counts(second) == {"changed": 1, "gone": 1, "kept": 5, "new": 1}
        assert reasons(context, second) == {"000000000005": "gone"}
        third = collect(context, "data.collect_mediawiki", **values_of(server.url))
    assert third.digest == second.digest


def test_after_a_long_pause_all_pages_are_listed_again(context: Context, wiki: Wiki) -> None:
    with loopback(wiki.answer) as server:
        collect(context, "data.collect_mediawiki", **values_of(server.url))
        wiki.pages.pop(2)
        wiki.pages[4]["text"] = "Changed long ago."
        wiki.pages[4]["revision"] += 1
        wiki.now = "2026-06-01T00:00:00Z"
        second = collect(context, "data.collect_mediawiki", **values_of(server.url))
    assert counts(second) == {"changed": 1, "gone": 1, "unchanged": 5}


def test_a_wiki_that_is_busy_or_dies_is_gone_on_with(context: Context, wiki: Wiki) -> None:
    wiki.busy, wiki.dead_from = 1, "3"
    with loopback(wiki.answer) as server:
        with pytest.raises(RemoteError):
            collect(context, "data.collect_mediawiki", **values_of(server.url))
        wiki.dead_from = ""
        server.asked.clear()
        version = collect(context, "data.collect_mediawiki", **values_of(server.url))
        assert [entry.query.get("gapcontinue") for entry in server.asked] == ["3", "6"]
    assert version.rows == 7


def test_pages_that_are_no_articles_are_rejects(context: Context, wiki: Wiki) -> None:
    at = "2025-12-01T00:00:00Z"
    wiki.edit(11, "R", "#REDIRECT [[Page 1]]", at, redirect=True)
    wiki.edit(12, "S", "local x = 1", at, model="Scribunto")
    wiki.edit(13, "E", "{{stub}}", at)
    wiki.edit(14, "L", "x" * 5000, at)
    wiki.edit(15, "T", "{{" * 30_000, at)
    with loopback(wiki.answer) as server:
        version = collect(context, "data.collect_mediawiki", **values_of(server.url, max_page_bytes=100_000))
        found = {int(key): why for key, why in reasons(context, version).items()}
        assert found == {11: "redirect", 12: "unsupported_model", 13: "empty", 15: "too_complex"}
        small = collect(context, "data.collect_mediawiki", **values_of(server.url, max_page_bytes=1000))
        assert reasons(context, small)["000000000014"] == "too_large"


def test_an_address_that_is_no_wiki_says_so(context: Context) -> None:
    with loopback(lambda asked: Reply([1])) as server, pytest.raises(RemoteError, match="like a MediaWiki"):
        collect(context, "data.collect_mediawiki", **values_of(server.url))
    refused = Reply({"error": {"code": "x", "info": "no such"}})
    with loopback(lambda asked: refused) as server, pytest.raises(RemoteError, match="no such"):
        collect(context, "data.collect_mediawiki", **values_of(server.url))


def dump(*pages: str) -> bytes:
    head = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="zh"><siteinfo/>'
    return f"{head}{''.join(pages)}</mediawiki>".encode()


def page(number: int, text: str, ns: int = 0, title: str = "", extra: str = "") -> str:
    return (
        f"<page><title>{title or f'Page {number}'}</title><ns>{ns}</ns><id>{number}</id>{extra}<revision>"
        f"<id>{number * 10}</id><timestamp>2025-12-01T00:00:00Z</timestamp><model>wikitext</model>"
        f"<text xml:space='preserve'>{text}</text></revision></page>"
    )


@pytest.mark.parametrize(("ending", "pack"), [(".xml", bytes), (".xml.bz2", bz2.compress), (".xml.gz", gzip.compress)])
def test_a_dump_is_read_and_a_later_one_brings_the_changes(
    context: Context, tmp_path: Path, ending: str, pack: Any
) -> None:
    path = tmp_path / f"wiki{ending}"
    pages = [page(1, "'''数学'''是[[科学]]。", title="数学"), page(2, "Two."), page(3, "Talk.", ns=1), page(4, "Four.")]
    path.write_bytes(pack(dump(*pages)))
    values = {"dump": str(path), "site": "https://zh.wikipedia.org/wiki/", "license": "CC-BY-SA-4.0"}
    first = collect(context, "data.collect_mediawiki", **values)
    assert texts(context, first) == ["数学是科学。", "Two.", "Four."]
    row = next(iter(context.store.open_dataset(first).samples()))
    assert (row.source, row.metadata["revision"]) == ("https://zh.wikipedia.org/wiki/数学", 10)
    assert collect(context, "data.collect_mediawiki", **values).digest == first.digest
    path.write_bytes(pack(dump(pages[0], page(2, "Two, changed."), page(5, "Five."))))
    second = collect(context, "data.collect_mediawiki", **values)
    assert counts(second) == {"changed": 1, "gone": 1, "new": 1, "unchanged": 1}


def test_a_dump_that_ends_early_keeps_its_pages_and_is_read_again_when_it_is_whole(
    context: Context, tmp_path: Path
) -> None:
    whole = dump(*(page(number, f"Text {number}.") for number in range(1, 9)))
    (tmp_path / "wiki.xml").write_bytes(whole[: len(whole) // 2])
    values = {"dump": str(tmp_path / "wiki.xml")}
    first = collect(context, "data.collect_mediawiki", **values)
    assert 0 < first.rows < 8
    assert reasons(context, first) == {" dump": "truncated"}
    (tmp_path / "wiki.xml").write_bytes(whole)
    second = collect(context, "data.collect_mediawiki", **values)
    assert (second.rows, reasons(context, second)) == (8, {})


def test_a_dump_is_gone_on_with_and_bombs_are_refused(context: Context, tmp_path: Path) -> None:
    (tmp_path / "wiki.xml").write_bytes(dump(*(page(number, f"Text {number}.") for number in range(1, 601))))
    rows = [
        collect(context, "data.collect_mediawiki", dump=str(tmp_path / "wiki.xml"), max_records=200).rows
        for _ in range(3)
    ]
    assert rows == [256, 512, 600]
    (tmp_path / "huge.xml").write_bytes(dump(page(1, "Fine."), page(2, "x" * 8_000_000)))
    values = {"dump": str(tmp_path / "huge.xml"), "max_page_bytes": 1_000_000}
    assert reasons(context, collect(context, "data.collect_mediawiki", **values)) == {" dump": "truncated"}
    (tmp_path / "bomb.xml").write_text('<!DOCTYPE x [<!ENTITY a "ha">]><mediawiki><page>&a;</page></mediawiki>')
    with pytest.raises(DataError, match="entities"):
        collect(context, "data.collect_mediawiki", dump=str(tmp_path / "bomb.xml"))
    with pytest.raises(NotFound):
        collect(context, "data.collect_mediawiki", dump=str(tmp_path / "none.xml"))


ARTICLE = """{{Infobox|name={{nested|x}}}}
'''Python''' ({{lang|en|x}}) is a [[programming language|language]].<ref name="a">Cite {{cite}}</ref>
<!-- hidden -->[[File:Logo.svg|thumb|The [[logo]] of it]]
{| class="wikitable"
! a
| {| nested |}
|}
== History ==
* first [http://example.com version]
* second
__NOTOC__
[[Category:Languages]][[分类:语言]]
It is ''good''&nbsp;and H<sub>2</sub>O."""


def test_what_a_reader_sees_is_kept_and_the_rest_leaves() -> None:
    text = plain_text(ARTICLE)
    lines = [line for line in text.split("\n") if line]
    assert lines == ["Python is a language.", "History", "first version", "second", "It is good and H2O."]


def test_a_page_of_marks_is_refused_in_bounded_time() -> None:
    with pytest.raises(TooComplex):
        plain_text("[[a|" * 50_000)
    assert plain_text("{| never ends") == ""
    assert plain_text("") == ""
