"""A real web site on loopback for the crawl: pages that a test writes, and a count of what was asked."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

ZEROS = bytes(1 << 16)


@dataclass
class Page:
    """What the server sends for one path."""

    body: bytes = b""
    type: str = "text/html; charset=utf-8"
    status: int = 200
    location: str = ""
    stream: int = 0
    """Bytes of zeros to send after the body, as long as somebody reads them."""
    drip_s: float = 0.0
    """Send the body one byte at a time, with this pause."""


@dataclass
class LocalSite:
    """Pages by path; `asked` and `sent` are filled by the server."""

    pages: dict[str, Page] = field(default_factory=dict)
    any: Callable[[str], Page | None] = lambda path: None
    etags: bool = True
    delay_s: float = 0.0
    url: str = ""
    asked: list[str] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    unchanged: int = 0

    def link(self, path: str, *targets: str, text: str = "") -> None:
        """Put up an HTML page with links."""
        links = "".join(f'<a href="{target}">{target}</a> ' for target in targets)
        self.pages[path] = Page(f"<html><body><h1>{path}</h1><p>{text}</p>{links}</body></html>".encode())

    def times(self, path: str) -> int:
        """How often a path was asked."""
        return self.asked.count(path)

    def forget(self) -> None:
        """Begin counting anew."""
        self.asked.clear()
        self.sent.clear()
        self.unchanged = 0


def handler_of(site: LocalSite) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.path)
            time.sleep(site.delay_s)
            page = site.pages.get(self.path) or site.any(self.path) or Page(b"not here", status=404)
            etag = '"' + hashlib.sha256(page.body).hexdigest()[:16] + '"'
            if site.etags and page.status == 200 and self.headers.get("If-None-Match") == etag:
                site.unchanged += 1
                self.send_response(304)
                self.end_headers()
                return
            self.send_response(page.status)
            self.send_header("Content-Type", page.type)
            if page.location:
                self.send_header("Location", page.location)
            if site.etags and page.status == 200:
                self.send_header("ETag", etag)
            self.end_headers()
            site.sent.append(self.path)
            try:
                self.send_body(page)
            except OSError:
                return  # the crawler has seen enough

        def send_body(self, page: Page) -> None:
            if page.drip_s:
                for index in range(len(page.body)):
                    self.wfile.write(page.body[index : index + 1])
                    time.sleep(page.drip_s)
                return
            self.wfile.write(page.body)
            for _ in range(page.stream // len(ZEROS)):
                self.wfile.write(ZEROS)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


class QuietServer(ThreadingHTTPServer):
    """Threads end with the test run; a connection that the crawler cut off is no news."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[LocalSite]:
    """An empty site that is up."""
    site = LocalSite()
    server = QuietServer(("127.0.0.1", 0), handler_of(site))
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def numbered() -> Callable[[str], Page | None]:
    """A generator of pages that link to the next two for ever: `/n/1` to `/n/2` and `/n/3`."""

    def page(path: str) -> Page | None:
        found = re.fullmatch(r"/n/(\d+)", path)
        if found is None:
            return None
        first = 2 * int(found[1])
        return Page(f'<p>{path}</p><a href="/n/{first}">a</a><a href="/n/{first + 1}">b</a>'.encode())

    return page
