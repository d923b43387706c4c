"""Sitemaps, Crawl-delay and Retry-After, against a real server."""

from __future__ import annotations

import gzip
import time
from typing import Any

import pytest

from catena.core.stage import Context
from catena.data.collect.sitemap import MAX_BYTES, Sitemap, read_sitemap

from .conftest import LocalSite, Page
from .loopback import Asked, Reply, collect, loopback

CALM = {"delay_s": 0, "retries": 0, "timeout_s": 5}


def sitemap(*urls: str, name: str = "url") -> bytes:
    entries = "".join(f"<{name}><loc> {url} </loc><lastmod>2026-01-01</lastmod></{name}>" for url in urls)
    root = "urlset" if name == "url" else "sitemapindex"
    return (
        f'<?xml version="1.0"?><{root} xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{entries}</{root}>'.encode()
    )


def paths(ctx: Context, version: Any, site: LocalSite) -> list[str]:
    return [row.source.removeprefix(site.url) for row in ctx.store.open_dataset(version).samples()]


def test_pages_that_no_link_leads_to_come_from_the_sitemaps_of_robots_txt(context: Context, site: LocalSite) -> None:
    site.pages["/robots.txt"] = Page(
        f"User-agent: *\nDisallow: /no\nSitemap: {site.url}/index.xml\n".encode(), type="text/plain"
    )
    index = sitemap(f"{site.url}/a.xml.gz", f"{site.url}/gone.xml", name="sitemap")
    site.pages["/index.xml"] = Page(index, type="application/xml")
    inner = sitemap(f"{site.url}/hidden", f"{site.url}/no", "http://elsewhere.example/x")
    site.pages["/a.xml.gz"] = Page(gzip.compress(inner), type="application/gzip")
    for path in ("/", "/hidden", "/no"):
        site.link(path)
    version = collect(context, "data.crawl", start=[site.url + "/"], **CALM)
    assert paths(context, version, site) == ["/", "/hidden"]
    rejects = {row.source: why for row, why, _ in context.store.open_dataset(version).rejects()}
    assert rejects == {site.url + "/no": "robots", site.url + "/gone.xml": "http_error"}
    assert site.times("/robots.txt") == 1
    site.forget()
    assert collect(context, "data.crawl", start=[site.url + "/"], **CALM).digest == version.digest
    assert not [path for path in site.sent if path in ("/", "/hidden")]
    alone = collect(context, "data.crawl", start=[site.url + "/"], robots_sitemaps=False, **CALM)
    assert paths(context, alone, site) == ["/"]


def test_a_sitemap_of_the_config_is_enough_to_begin(context: Context, site: LocalSite) -> None:
    site.pages["/map.txt"] = Page(f"{site.url}/x\n{site.url}/y\n".encode(), type="text/plain")
    site.pages["/bad.xml"] = Page(b"<urlset><url>", type="application/xml")
    site.link("/x", "/z")
    site.link("/y")
    site.link("/z")
    maps = [site.url + "/map.txt", site.url + "/bad.xml"]
    version = collect(context, "data.crawl", sitemaps=maps, **CALM)
    assert paths(context, version, site) == ["/x", "/y", "/z"]
    assert [why for _, why, _ in context.store.open_dataset(version).rejects()] == ["bad_sitemap"]


def test_a_crawl_delay_is_kept_and_one_too_long_keeps_us_out(context: Context, site: LocalSite) -> None:
    site.pages["/robots.txt"] = Page(b"User-agent: *\nCrawl-delay: 0.4\n", type="text/plain")
    site.link("/", "/a", "/b")
    site.link("/a")
    site.link("/b")
    began = time.monotonic()
    assert collect(context, "data.crawl", start=[site.url + "/"], **CALM).rows == 3
    assert time.monotonic() - began > 0.8
    site.pages["/robots.txt"] = Page(b"User-agent: *\nCrawl-delay: 3600\n", type="text/plain")
    with pytest.raises(Exception, match="asks for 3600 s"):
        collect(context, "data.crawl", start=[site.url + "/"], max_pages=2, **CALM)


def test_a_page_is_asked_again_after_the_time_that_its_server_names(context: Context) -> None:
    times: list[float] = []

    def answer(asked: Asked) -> Reply:
        if asked.path == "/robots.txt":
            return Reply(status=404)
        times.append(time.monotonic())
        if len(times) == 1:
            return Reply(status=429, headers={"Retry-After": "1"})
        return Reply("<p>there</p>", headers={"Content-Type": "text/html"})

    with loopback(answer) as server:
        version = collect(context, "data.crawl", start=[server.url + "/"], **{**CALM, "retries": 1})
    assert version.rows == 1
    assert times[1] - times[0] > 0.9


def test_sitemaps_of_every_kind_are_read_and_bombs_are_not() -> None:
    assert read_sitemap(sitemap("http://h/a")) == Sitemap(("http://h/a",))
    assert read_sitemap(sitemap("http://h/a", name="sitemap")) == Sitemap((), ("http://h/a",))
    assert read_sitemap(b"http://h/a\n\nnot one\n") == Sitemap(("http://h/a",))
    for bad in (
        b"<urlset>",
        gzip.compress(b"0" * (MAX_BYTES + 1)),
        b"\x1f\x8bxx",
        b'<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>',
    ):
        with pytest.raises(ValueError):
            read_sitemap(bad)
