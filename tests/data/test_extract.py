"""Text out of pages: charsets, binary junk, the frame of a site, and the stage that puts it together."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest

from catena.core.sample import Sample, sample_id
from catena.core.stage import Context
from catena.core.types import DatasetVersion
from catena.data.decode import normalise
from catena.data.extract import ExtractConfig, extract, frame_lines, main_text, text_of, without_frame

CHINESE = "机器学习是人工智能的一个分支。它研究计算机怎样模拟或实现人类的学习行为，以获取新的知识或技能。"
ARTICLE = "<p>" + "The heap queue algorithm keeps the smallest item at the front of the list. " * 5 + "</p>"


def html(body: str, head: str = "") -> str:
    return f"<html><head><title> A  title </title>{head}</head><body><main><h1>Heading</h1>{body}</main></body></html>"


def pages(ctx: Context, bodies: Mapping[str, tuple[bytes, str, str]]) -> DatasetVersion:
    with ctx.store.new_dataset("media", license="CC0-1.0") as writer:
        for url, (body, media_type, charset) in bodies.items():
            data = {"content": body, "media_type": media_type}
            metadata = {"url": url, "charset": charset}
            writer.add(Sample(sample_id(url, body), data, metadata, url, "CC0-1.0"))
        return writer.commit()


@pytest.mark.parametrize(
    ("declared", "meta"), [("gb18030", ""), ("gb2312", ""), ("", '<meta charset="gbk">'), ("", ""), ("utf-8", "")]
)
def test_chinese_in_gb18030_is_read_however_it_is_declared(declared: str, meta: str) -> None:
    found = text_of(html(f"<p>{CHINESE * 3}</p>", meta).encode("gb18030"), "text/html", declared)
    assert CHINESE in found.text
    assert found.charset == "gb18030"


def test_heading_and_title_are_kept() -> None:
    found = text_of(html(ARTICLE).encode(), "text/html")
    assert found.title == "A title"
    assert found.text.startswith("Heading\n")
    assert found.extractor == "resiliparse"


def test_navigation_and_scripts_are_not_text() -> None:
    page = "<nav><a href=/>Home</a> <a href=/x>Subscribe</a></nav><script>let secret = 1</script>" + ARTICLE
    text = text_of(html(page).encode(), "text/html").text
    assert "secret" not in text
    assert "Subscribe" not in text


@pytest.mark.parametrize("extractor", ["resiliparse", "trafilatura"])
def test_either_extractor_can_be_asked_for(extractor: str) -> None:
    title, used, text = main_text(html(ARTICLE), extractor)  # type: ignore[arg-type]
    assert (title, used) == ("A title", extractor)
    assert "heap queue" in text


def test_union_asks_trafilatura_where_resiliparse_kept_little() -> None:
    # The whole article stands in an element whose class says "sidebar": resiliparse leaves those out.
    page = f'<html><body><p>Heading</p><div class="sidebar">{ARTICLE * 3}</div></body></html>'
    assert "heap queue" not in main_text(page, "resiliparse")[2]
    _, used, text = main_text(page, "union")
    assert used == "trafilatura"
    assert "heap queue" in text


@pytest.mark.parametrize(
    ("body", "media_type", "reason"),
    [
        (random.Random(1).randbytes(5000), "text/html", "binary"),
        (b"%PDF-1.7\n...", "text/plain", "binary"),
        (b"plain text\0with a NUL", "text/plain", "binary"),
        (b"", "text/html", "empty"),
        (b"  \n", "text/plain", "empty"),
        (b"x", "image/png", "unsupported_type"),
        (b"abcdefghijklmnopqrs \x81 " * 50, "text/plain", "undecodable"),
        ((CHINESE.encode() + CHINESE.encode("gb18030")) * 30, "text/plain", "undecodable"),
        ((CHINESE.encode() + CHINESE.encode("big5", "ignore")) * 30, "text/html", "undecodable"),
    ],
)
def test_what_is_no_text_is_refused_with_a_reason(body: bytes, media_type: str, reason: str) -> None:
    assert text_of(body, media_type).reason == reason


def test_a_few_bad_bytes_do_not_lose_a_page() -> None:
    body = (CHINESE * 10).encode() + b"\xff" + (CHINESE * 10).encode()
    found = text_of(body, "text/plain", "utf-8")
    assert found.changed == ("bad_bytes_replaced",)
    assert found.text.count("机器学习") == 20


def test_utf_16_with_a_mark_is_text() -> None:
    assert text_of(CHINESE.encode("utf-16"), "text/plain").text == CHINESE


def test_normal_form() -> None:
    text, changed = normalise("e\u0301a\u00a0b\x07\r\n\r\n\r\n\r\nc  \n")
    assert text == "éa b\n\nc"
    assert changed == ("controls_removed", "composed")


@pytest.mark.parametrize("end", ["\r", "\r\n", "\u2028", "\u2029", "\x0b", "\x0c", "\x85"])
def test_every_kind_of_line_end_ends_a_line(end: str) -> None:
    assert normalise(f"one{end}two") == ("one\ntwo", ())


@pytest.mark.parametrize("end", ["\u2028", "\x0b", "\x0c"])
def test_a_text_of_short_lines_with_rare_ends_is_text(end: str) -> None:
    assert text_of(f"A short line of text.{end}".encode() * 40, "text/plain").text == "\n".join(
        ["A short line of text."] * 40
    )


def test_frame_lines_go_from_the_edges_and_stay_in_the_middle() -> None:
    frame = frame_lines(Counter({"Home | About": 20, "Heading": 3}), 20)
    assert frame == {"Home | About"}
    assert without_frame("Home | About\n\nText\nHome | About\nmore\nHome | About", frame) == "Text\nHome | About\nmore"


def test_a_page_nested_beyond_reason_is_refused_before_it_costs_minutes() -> None:
    assert text_of(("<div>" * 50_000 + ARTICLE).encode(), "text/html").reason == "too_deep"
    assert text_of(("<p>x<li>" * 50_000 + ARTICLE).encode(), "text/html").reason == ""


def test_the_stage_keeps_order_source_licence_and_parent_and_every_reject(context: Context) -> None:
    source = pages(
        context,
        {
            "http://a/1": (html(ARTICLE).encode(), "text/html", ""),
            "http://a/2": (b"\0\0\0", "text/html", ""),
            "http://a/3": (f"{CHINESE}\x08".encode("gb18030"), "text/plain", "gb18030"),
            "http://a/4": (b"<html><body><script>1</script></body></html>", "text/html", ""),
        },
    )
    result = extract(context, ExtractConfig(), source=source)
    opened = context.store.open_dataset(result)
    rows = list(opened.samples())
    ids = [row.id for row in context.store.open_dataset(source).samples()]
    assert [row.source for row in rows] == ["http://a/1", "http://a/3"]
    assert [row.parents for row in rows] == [(ids[0],), (ids[2],)]
    assert rows[1].text == CHINESE
    assert rows[1].metadata == {
        "url": "http://a/3",
        "title": "",
        "extractor": "plain",
        "charset": "gb18030",
        "media_type": "text/plain",
    }
    assert {row.license for row in rows} == {"CC0-1.0"}
    assert [(row.id, why) for row, why, _ in opened.rejects()] == [(ids[1], "binary"), (ids[3], "empty")]
    assert result.funnel is not None
    assert result.funnel.changed == {"controls_removed": 1}
    assert (result.funnel.rows_in, result.funnel.rows_out) == (4, 2)
    assert extract(context, ExtractConfig(), source=source).digest == result.digest


def test_pages_are_the_same_whoever_takes_the_text(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = {
        f"http://one.test/{number}": (html(f"<p>Home</p>{ARTICLE}{number}").encode(), "text/html", "")
        for number in range(12)
    }
    source = pages(context, {**bodies, "http://one.test/x": (b"\x00\x01", "text/plain", "")})
    whole = extract(context, ExtractConfig(), source=source)
    monkeypatch.setattr("catena.data.extract.SHARD_PAGES", 5)
    shared = extract(replace(context, workers=2), ExtractConfig(), source=source)
    assert (shared.digest, shared.funnel) == (whole.digest, whole.funnel)
    assert (whole.rows, whole.rejects) == (12, 1)


def test_an_empty_dataset_gives_an_empty_dataset(context: Context) -> None:
    assert extract(context, ExtractConfig(), source=pages(context, {})).rows == 0
