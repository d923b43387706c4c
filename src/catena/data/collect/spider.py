"""The crawling child process: scrapy's downloader (robots.txt, rate, retries, limits) driven by our frontier.

    python -m catena.data.collect.spider SPOOL

A process of its own because Twisted's reactor cannot be started twice. It reads the job from the spool, writes every
finished address there, says `<done> <waiting>` after each, and leaves when its parent does.
"""

from __future__ import annotations

import asyncio
import http
import sys
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import scrapy
from scrapy import signals
from scrapy.crawler import AsyncCrawlerProcess, Crawler
from scrapy.downloadermiddlewares.robotstxt import RobotsTxtMiddleware
from scrapy.exceptions import (
    CannotResolveHostError,
    DownloadCancelledError,
    DownloadConnectionRefusedError,
    DownloadFailedError,
    DownloadTimeoutError,
    IgnoreRequest,
    ResponseDataLossError,
    StopDownload,
)
from scrapy.http import HtmlResponse, Request, Response, TextResponse
from scrapy.utils.response import get_base_url

from catena.data.collect.child import end_with_parent
from catena.data.collect.client import retry_after
from catena.data.collect.downloader import LATER, settings_of
from catena.data.collect.frontier import Frontier, Scope, Visit, canonical, host_of
from catena.data.collect.sitemap import MAX_BYTES, Sitemap, read_sitemap
from catena.data.collect.spool import Record, Spool

REDIRECTS = frozenset({301, 302, 303, 307, 308})
GONE = frozenset({404, 410})
MAX_SITEMAPS = 1000


@dataclass(frozen=True, slots=True)
class Job:
    """What is crawled and how; made by the stage, carried by `job.json`."""

    start: list[str]
    sitemaps: list[str]
    robots_sitemaps: bool
    hosts: list[str]
    allow: list[str]
    deny: list[str]
    only: list[str] | None
    """The only paths that may be asked, where a site has such a list."""
    max_depth: int
    max_pages: int
    max_redirects: int
    max_bytes: int
    media_types: list[str]
    delay_s: float
    max_delay_s: float
    concurrency: int
    timeout_s: float
    retries: int
    obey_robots: bool
    user_agent: str
    public: str
    """What rows carry in place of the server's address; empty when addresses are what they are."""

    def frontier(self) -> Frontier:
        """Return the frontier at its start."""
        scope = Scope(self.hosts, self.allow, self.deny, self.only)
        return Frontier(self.start, scope, self.max_depth, self.max_pages, self.max_redirects)


class PageSpider(scrapy.Spider):  # type: ignore[misc]
    """Fetches wave after wave; holds no more in memory than the bodies under way."""

    name = "catena"

    def __init__(self, job: Job, spool: Spool, base: str) -> None:
        super().__init__()
        self.job, self.spool, self.base = job, spool, base
        self.done = spool.settled()
        self.known = {url: record for url, record in spool.known().items() if spool.has_body(record.sha256)}
        self.seen: set[str] = set()
        """What this try came across, taken from the journal or asked."""
        self.complete = False
        self._slots = asyncio.Semaphore(job.concurrency)
        self._delays: dict[str, float] = {}
        """Crawl-delay by host, where robots.txt names one."""
        self._named: list[str] = []
        """Sitemaps that robots.txt names."""
        self._not_before: dict[str, float] = {}

    @classmethod
    def from_crawler(cls, crawler: Crawler, *args: Any, **kwargs: Any) -> PageSpider:
        """Connect the check of media types, which has to happen before a body is downloaded."""
        spider: PageSpider = super().from_crawler(crawler, *args, **kwargs)
        crawler.signals.connect(spider.headers_received, signals.headers_received)
        crawler.signals.connect(spider.robots_parsed, signals.robots_parsed)
        return spider

    async def start(self) -> AsyncIterator[Any]:
        """Crawl. Nothing is yielded: requests go straight to the downloader, and results to the spool."""
        frontier = self.job.frontier()
        await self._read_sitemaps(frontier)
        while wave := frontier.next_wave():
            records = await asyncio.gather(*(self._visit(visit, frontier) for visit in wave))
            # In the order of the wave, not of the answers: see the frontier.
            for visit, record in zip(wave, records, strict=True):
                if record.outcome == "redirect":
                    reason = frontier.redirected(visit, record.location)
                    if reason is not None:
                        self.spool.append(replace(record, outcome="reject", reason=reason, detail=record.location))
                else:
                    frontier.found(visit, record.links)
        self.spool.finish(frontier.waiting, self.seen)
        self.complete = True
        nothing: tuple[Request, ...] = ()
        for request in nothing:
            yield request

    async def _read_sitemaps(self, frontier: Frontier) -> None:
        """Ask every start host's robots.txt first, and take up what the sitemaps name, one after the other."""
        if self.job.obey_robots and not self.job.public:
            robots = self.crawler.get_downloader_middleware(RobotsTxtMiddleware)
            for home in sorted({urljoin(url, "/robots.txt") for url in (*self.job.start, *self.job.sitemaps)}):
                await robots.robot_parser(Request(home))
        waiting = [*self.job.sitemaps, *(sorted(self._named) if self.job.robots_sitemaps else ())]
        asked: set[str] = set()
        while waiting and len(asked) < MAX_SITEMAPS and frontier.waiting < self.job.max_pages:
            url = canonical(waiting.pop(0))
            if url in asked:
                continue
            asked.add(url)
            self.seen.add(url)
            record, found = await self._sitemap(url)
            if record is not None:
                self.spool.append(record)
            frontier.seed(self._public(page) for page in found.pages)
            waiting += found.sitemaps

    async def _sitemap(self, url: str) -> tuple[Record | None, Sitemap]:
        """Return what a sitemap names, or the reject that says why it could not be read."""
        try:
            request = Request(self._real(url), meta={"download_maxsize": MAX_BYTES})
            response = await self.crawler.engine.download_async(request)
            if not 200 <= response.status < 300:
                detail = _phrase(response.status)
                return Record(url, "reject", status=response.status, reason="http_error", detail=detail), Sitemap()
            return None, read_sitemap(response.body)
        except ValueError as error:
            return Record(url, "reject", reason="bad_sitemap", detail=str(error)), Sitemap()
        except Exception as error:  # noqa: BLE001  as for a page: the journal says how it failed
            reason, detail = why(error, self.job)
            return Record(url, "reject", reason=reason, detail=detail), Sitemap()

    def robots_parsed(self, robotparser: Any, request: Request) -> None:
        """Keep what a robots.txt says beside its rules: the delay it asks for, and its sitemaps."""
        rules = getattr(robotparser, "rp", None)
        if rules is None:
            return
        self._named += [url for url in rules.sitemaps if url.startswith(("http://", "https://"))]
        delay = float(rules.crawl_delay(self.job.user_agent.partition("/")[0]) or 0)
        if delay <= self.job.delay_s:
            return
        self._delays[host_of(request.url)] = delay
        downloader = self.crawler.engine.downloader
        slot = urlsplit(request.url).hostname or ""
        # For the slot that is there, and for the one that scrapy makes when this one was idle for a minute.
        downloader.per_slot_settings[slot] = {"delay": min(delay, self.job.max_delay_s)}
        if slot in downloader.slots:
            downloader.slots[slot].delay = min(delay, self.job.max_delay_s)

    async def _visit(self, visit: Visit, frontier: Frontier) -> Record:
        self.seen.add(visit.url)
        async with self._slots:
            record = self.done.get(visit.url)
            if record is None:
                record = await self._fetch(visit)
                self.spool.append(record)
                self.done[visit.url] = record
        sys.stdout.write(f"{len(self.done)} {frontier.waiting}\n")
        sys.stdout.flush()
        return record

    async def _fetch(self, visit: Visit) -> Record:
        known = self.known.get(visit.url)
        headers = {}
        if known is not None and known.etag:
            headers["If-None-Match"] = known.etag
        if known is not None and known.last_modified:
            headers["If-Modified-Since"] = known.last_modified
        delay = self._delays.get(host_of(visit.url), 0.0)
        if delay > self.job.max_delay_s:
            detail = f"robots.txt asks for {delay:g} s between requests, more than max_delay_s"
            return Record(visit.url, "reject", visit.depth, reason="robots", detail=detail)
        try:
            response = await self._download(self._real(visit.url), headers)
            return self._answered(visit, response, known)
        except Exception as error:  # noqa: BLE001  a server can fail in any way; the journal says how, the crawl goes on
            reason, detail = why(error, self.job)
            return Record(visit.url, "reject", visit.depth, reason=reason, detail=detail)

    async def _download(self, url: str, headers: dict[str, str]) -> Response:
        """Ask for a page; when its host says to come back later, nothing of that host is asked before then."""
        clock, host = asyncio.get_running_loop().time, host_of(url)
        attempt = 0
        while True:
            while (left := self._not_before.get(host, 0.0) - clock()) > 0:
                await asyncio.sleep(left)
            request = Request(url, headers=headers, meta={"dont_redirect": True, "page": True}, dont_filter=True)
            response = await self.crawler.engine.download_async(request)
            asked = retry_after(_header(response, "Retry-After"), datetime.now(UTC))
            wait = max(self.job.delay_s, 0.1) * 2**attempt if asked is None else asked
            if response.status not in LATER or attempt == self.job.retries or wait > self.job.max_delay_s:
                return response
            attempt += 1
            self._not_before[host] = max(self._not_before.get(host, 0.0), clock() + wait)

    def _answered(self, visit: Visit, response: Response, known: Record | None) -> Record:
        status = response.status
        record = Record(visit.url, "reject", visit.depth, status)
        if status == 304 and known is not None:
            record = replace(known, outcome="not_modified", depth=visit.depth, status=304, size=0)
            if "html" not in known.media_type:
                return record
            body = self.spool.body(known.sha256)
            page = HtmlResponse(self._real(visit.url), body=body, encoding=known.charset or None)
            return replace(record, links=self._links_of(page))
        if status in REDIRECTS and "Location" in response.headers:
            target = join(response.url, _header(response, "Location"))
            return replace(record, outcome="redirect", location=self._public(target))
        if status in GONE:
            return replace(record, reason="gone", detail=_phrase(status))
        if not 200 <= status < 300:
            return replace(record, reason="http_error", detail=_phrase(status))
        media_type, charset = content_type(response)
        if media_type not in self.job.media_types:
            return replace(record, reason="unsupported_type", detail=media_type)
        return replace(
            record,
            outcome="page",
            sha256=self.spool.put_body(response.body),
            size=len(response.body),
            media_type=media_type,
            charset=charset,
            etag=_header(response, "ETag"),
            last_modified=_header(response, "Last-Modified"),
            links=self._links_of(response) if visit.depth < self.job.max_depth else (),
        )

    def _links_of(self, response: Response) -> tuple[str, ...]:
        if not isinstance(response, HtmlResponse):
            return ()
        wanted = "[not(contains(@rel, 'nofollow'))]" if self.job.obey_robots else ""
        targets = response.xpath(f"//a{wanted}/@href | //area{wanted}/@href").getall()
        # Thousands of links of a page may differ only in the fragment: that goes before the costly part.
        plain = {target.partition("#")[0].strip() for target in targets} - {""}
        base = get_base_url(response)
        return tuple(sorted({self._public(url) for target in plain if (url := join(base, target))}))

    def _real(self, url: str) -> str:
        return self.base + url.removeprefix(self.job.public) if self.job.public else url

    def _public(self, url: str) -> str:
        plain = canonical(url)
        if self.job.public and plain.startswith(self.base + "/"):
            return self.job.public + plain.removeprefix(self.base)
        return plain

    def headers_received(self, headers: Any, request: Request) -> None:
        """Stop before the body of a page whose type is not asked for."""
        declared = (headers.get("Content-Type") or b"").decode("latin-1")
        if request.meta.get("page") and declared and _parse_type(declared)[0] not in self.job.media_types:
            raise StopDownload(fail=False)


def join(base: str, target: str) -> str:
    """Return the address that a link leads to, or nothing where it is none (`mailto:`, `http://[`)."""
    try:
        url = urljoin(base, target)
    except ValueError:
        return ""
    return url if url.startswith(("http://", "https://")) else ""


def why(error: Exception, job: Job) -> tuple[str, str]:
    """Return reason and detail for a page that gave no answer; nothing in them changes from run to run."""
    match error:
        case IgnoreRequest() if "robots.txt" in str(error):
            return "robots", "robots.txt does not allow it"
        case IgnoreRequest() | DownloadCancelledError():
            return "too_large", f"the body has more than {job.max_bytes} bytes"
        case DownloadTimeoutError():
            return "timeout", f"no whole answer within {job.timeout_s:g} s"
        case DownloadConnectionRefusedError():
            return "unreachable", "the connection was refused"
        case CannotResolveHostError():
            return "unreachable", "the host has no address"
        case DownloadFailedError():
            return "unreachable", "the connection was lost"
        case ResponseDataLossError():
            return "incomplete", "the body ended early"
        case _:
            return "failed", type(error).__name__


def content_type(response: Response) -> tuple[str, str]:
    """Return media type and declared charset; a type that is not declared is told from the body, as browsers do."""
    declared = _header(response, "Content-Type")
    if declared:
        return _parse_type(declared)
    if isinstance(response, HtmlResponse):
        return "text/html", ""
    return ("text/plain" if isinstance(response, TextResponse) else "application/octet-stream"), ""


def _parse_type(declared: str) -> tuple[str, str]:
    message = Message()
    message["Content-Type"] = declared
    return message.get_content_type(), (message.get_content_charset() or "")


def _header(response: Response, name: str) -> str:
    return (response.headers.get(name) or b"").decode("latin-1").strip()


def _phrase(status: int) -> str:
    known = {item.value: item.phrase for item in http.HTTPStatus}
    return f"{status} {known.get(status, '')}".strip()


def main(arguments: Iterable[str]) -> int:
    """Crawl what the spool's job says; returns 0 when it is complete."""
    (folder,) = arguments
    end_with_parent()
    spool = Spool(Path(folder))
    values = spool.job() or {}
    job = Job(**values)
    # The address of a site that we serve ourselves is another one each time, so it is not part of the job.
    base = (spool.folder / "base").read_text() if job.public else ""
    process = AsyncCrawlerProcess(settings_of(job))
    crawler = process.create_crawler(PageSpider)
    process.crawl(crawler, job=job, spool=spool, base=base)
    process.start(install_signal_handlers=False)
    return 0 if crawler.spider is not None and crawler.spider.complete else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
