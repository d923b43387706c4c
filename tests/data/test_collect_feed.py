"""Feeds: RSS and Atom, conditional requests, entries that leave the feed and stay in the dataset."""

from __future__ import annotations

import pytest

from catena.core.errors import RemoteError
from catena.core.stage import Context

from .loopback import FAST, Asked, Reply, collect, counts, loopback, reasons, texts


def rss(*items: str) -> str:
    return f'<?xml version="1.0"?><rss version="2.0"><channel><title>c</title>{"".join(items)}</channel></rss>'


def entry(number: int, text: str = "") -> str:
    body = text or f"&lt;p&gt;text {number}&lt;/p&gt;"
    return (
        f"<item><guid isPermaLink='false'>g{number}</guid><link>http://h/{number}</link><title>Title {number}</title>"
        f"<description>{body}</description><pubDate>Mon, 05 Jan 2026 10:00:00 +0800</pubDate></item>"
    )


ATOM = """<feed xmlns="http://www.w3.org/2005/Atom"><title>新闻</title>
<entry><id>urn:1</id><title>标题</title><updated>2026-01-01T00:00:00Z</updated>
<summary>short</summary>
<content type="html">&lt;p&gt;正文第一段&lt;/p&gt;&lt;script&gt;x&lt;/script&gt;</content></entry></feed>"""


def test_rss_and_atom_become_documents(context: Context) -> None:
    feeds = {"/rss": rss(entry(1)), "/atom": ATOM}
    with loopback(lambda asked: Reply(feeds[asked.path])) as server:
        urls = [server.url + "/rss", server.url + "/atom"]
        version = collect(context, "data.collect_feed", urls=urls, license="CC0-1.0", http=FAST)
        first, second = context.store.open_dataset(version).samples()
    assert first.text == "标题\n\n正文第一段"
    assert first.metadata["updated"] == "2026-01-01T00:00:00+00:00"
    assert second.text == "Title 1\n\ntext 1"
    assert (second.source, second.license) == ("http://h/1", "CC0-1.0")
    assert second.metadata["published"] == "2026-01-05T02:00:00+00:00"


def test_an_unchanged_feed_is_not_sent_again_and_old_entries_stay(context: Context) -> None:
    feed = {"body": rss(entry(1), entry(2))}

    def answer(asked: Asked) -> Reply:
        etag = f'"{len(feed["body"])}"'
        same = asked.headers.get("if-none-match") == etag
        return Reply(status=304) if same else Reply(feed["body"], headers={"ETag": etag})

    with loopback(answer) as server:
        values = {"urls": [server.url], "http": FAST}
        first = collect(context, "data.collect_feed", **values)
        again = collect(context, "data.collect_feed", **values)
        assert again.digest == first.digest
        assert "if-none-match" in server.asked[1].headers
        feed["body"] = rss(entry(2, "new text"), entry(3))
        third = collect(context, "data.collect_feed", **values)
    assert counts(third) == {"changed": 1, "kept": 1, "new": 1}
    assert texts(context, third) == ["Title 1\n\ntext 1", "Title 2\n\nnew text", "Title 3\n\ntext 3"]


def test_one_feed_that_fails_is_a_reject_and_the_others_come(context: Context) -> None:
    feeds = {"/good": Reply(rss(entry(1))), "/down": Reply(status=500), "/page": Reply("<html><p>no feed</p></html>")}
    with loopback(lambda asked: feeds[asked.path]) as server:
        values = {"urls": [server.url + path for path in feeds], "http": FAST}
        version = collect(context, "data.collect_feed", **values)
        assert reasons(context, version) == {f"{server.url}/down ": "http_error", f"{server.url}/page ": "bad_feed"}
        feeds["/down"] = Reply(rss(entry(2)))
        later = collect(context, "data.collect_feed", **values)
        assert reasons(context, later) == {f"{server.url}/page ": "bad_feed"}
    assert later.rows == 2


def test_no_feed_at_all_is_an_error(context: Context) -> None:
    with loopback(lambda asked: Reply(status=404)) as server, pytest.raises(RemoteError, match="404"):
        collect(context, "data.collect_feed", urls=[server.url], http=FAST)


def test_entries_that_cannot_be_taken_are_rejects(context: Context) -> None:
    feed = rss(
        "<item><title>nameless</title></item>",
        "<item><guid>e</guid></item>",
        entry(1, "x" * 5000),
        entry(2),
    )
    with loopback(lambda asked: Reply(feed)) as server:
        version = collect(context, "data.collect_feed", urls=[server.url], max_entry_bytes=1000, http=FAST)
    assert sorted(reasons(context, version).values()) == ["empty", "missing_id", "too_large"]
    assert version.rows == 1


def test_a_feed_with_a_bomb_of_entities_is_a_reject_in_bounded_time(context: Context) -> None:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    bomb = f'<?xml version="1.0"?><!DOCTYPE r [<!ENTITY e0 "ha">{entities}]><rss><channel>&e9;</channel></rss>'
    feeds = {"/bomb": bomb, "/good": rss(entry(1))}
    with loopback(lambda asked: Reply(feeds[asked.path])) as server:
        urls = [server.url + path for path in feeds]
        version = collect(context, "data.collect_feed", urls=urls, http=FAST)
    assert version.rows == 1
