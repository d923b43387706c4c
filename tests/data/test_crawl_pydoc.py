"""The documentation server of the standard library, crawled as a real site."""

from __future__ import annotations

from dataclasses import replace

import pytest

from catena.core.stage import Context
from catena.data.collect.crawl import CrawlConfig, crawl
from catena.data.collect.pydoc import PydocSite, listed_names
from catena.data.extract import ExtractConfig, extract

CHOSEN = ("heapq", "bisect", "json", "json.decoder", "keyword", "shlex", "string", "textwrap", "threading", "queue")
START = tuple(f"/{name}.html" for name in CHOSEN)


def test_ten_modules_come_in_with_addresses_that_do_not_name_a_port(context: Context) -> None:
    config = CrawlConfig(site="pydoc", start=(*START, "/topic?key=FUNCTIONS"), max_depth=0, delay_s=0)
    pages = crawl(context, config)
    rows = list(context.store.open_dataset(pages).samples())
    assert [row.source for row in rows] == sorted(f"pydoc:{path}" for path in config.start)
    assert not any(b"127.0.0.1" in row.data["content"] for row in rows)
    # A second server, another port, other addresses in memory: the same content.
    again = crawl(replace(context, name="again"), config)
    assert again.digest == pages.digest
    documents = {
        row.source: row for row in context.store.open_dataset(extract(context, ExtractConfig(), source=pages)).samples()
    }
    heapq = documents["pydoc:/heapq.html"]
    assert "heappush(heap, item, /)\nPush item onto heap, maintaining the heap invariant." in heapq.text
    assert "\nFunctions\n" in heapq.text
    assert "\u00a0" not in heapq.text
    assert "Linux" not in heapq.text
    assert heapq.metadata["title"] == "Pydoc: module heapq"
    assert heapq.parents == (next(row.id for row in rows if row.source == heapq.source),)
    assert '"func(argument-list)"' in documents["pydoc:/topic?key=FUNCTIONS"].text


def test_an_error_page_that_comes_with_status_200_is_rejected(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PydocSite, "paths", lambda self: frozenset({"/heapq.html", "/no_such_module.html"}))
    config = CrawlConfig(site="pydoc", start=("/heapq.html", "/no_such_module.html"), max_depth=0, delay_s=0)
    pages = crawl(context, config)
    assert pages.rows == 1
    assert [(row.source, why) for row, why, _ in context.store.open_dataset(pages).rejects()] == [
        ("pydoc:/no_such_module.html", "error_page")
    ]


def test_modules_that_act_on_import_are_not_listed() -> None:
    names = listed_names()
    assert len(names) == len(set(names))
    assert 300 <= len(names) <= 500
    acting = ("antigravity", "this", "idlelib", "tkinter", "turtledemo", "test", "lib2to3", "__main__")
    assert not [name for name in names if name.partition(".")[0] in acting]
