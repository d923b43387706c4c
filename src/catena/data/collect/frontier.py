"""The frontier of a crawl: which addresses belong to it, and which are asked next. Values only, no network.

A crawl goes in waves. A wave holds every address that the wave before led to, in alphabetical order, cut to what
`max_pages` still allows; so what is collected depends on the site and the limits, never on which answer came first.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from w3lib.url import canonicalize_url


def canonical(url: str) -> str:
    """Return the one form of an address: no fragment, sorted query, normal escapes."""
    return str(canonicalize_url(url))


def host_of(url: str) -> str:
    """Return host and port, or the scheme with its colon for addresses without a host (`pydoc:/json.html`)."""
    parts = urlsplit(url)
    return parts.netloc.lower() or f"{parts.scheme}:"


def path_of(url: str) -> str:
    """Return path and query, beginning with `/`."""
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


class Scope:
    """What belongs to a crawl. Patterns are globs over path and query; `*` also crosses `/`."""

    def __init__(
        self,
        hosts: Iterable[str],
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        only: Iterable[str] | None = None,
    ) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._allow = _any_of(allow)
        self._deny = _any_of(deny)
        self._only = None if only is None else frozenset(only)

    def admits(self, url: str) -> bool:
        """Tell whether a link to `url` is followed."""
        parts = urlsplit(url)
        if host_of(url) not in self._hosts or (parts.netloc and parts.scheme not in ("http", "https")):
            return False
        path = path_of(url)
        if self._only is not None and path not in self._only:
            return False
        if self._deny is not None and self._deny.fullmatch(path):
            return False
        return self._allow is None or self._allow.fullmatch(path) is not None


def _any_of(globs: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs)) if globs else None


@dataclass(frozen=True, slots=True)
class Visit:
    """One address to be asked."""

    url: str
    depth: int
    """Links from a start page to here; a redirect does not count."""
    chain: tuple[str, ...] = ()
    """The addresses that redirected here, first one first."""


class Frontier:
    """Hands out waves of visits until nothing is left or the limits are reached."""

    def __init__(self, start: Iterable[str], scope: Scope, max_depth: int, max_pages: int, max_redirects: int) -> None:
        self._scope = scope
        self._max_depth, self._max_pages, self._max_redirects = max_depth, max_pages, max_redirects
        self._waiting = {url: Visit(url, 0) for url in start}
        self._asked: set[str] = set()

    @property
    def waiting(self) -> int:
        """How many addresses are known and not handed out; after the last wave: how many the limit left out."""
        return len(self._waiting)

    def next_wave(self) -> list[Visit]:
        """Return the next visits, at most what `max_pages` still allows; empty at the end."""
        ordered = sorted(self._waiting.values(), key=lambda visit: (visit.depth, visit.url))
        wave = ordered[: self._max_pages - len(self._asked)]
        for visit in wave:
            del self._waiting[visit.url]
            self._asked.add(visit.url)
        return wave

    def found(self, visit: Visit, links: Iterable[str]) -> None:
        """Take up the links of a page."""
        if visit.depth < self._max_depth:
            for url in links:
                if self._scope.admits(url):
                    self._add(Visit(url, visit.depth + 1))

    def seed(self, urls: Iterable[str]) -> None:
        """Take up the pages that a sitemap names; they count as start pages."""
        for url in urls:
            if self._scope.admits(url):
                self._add(Visit(url, 0))

    def redirected(self, visit: Visit, target: str) -> str | None:
        """Take up the target of a redirect, or return the reason why it is not followed."""
        chain = (*visit.chain, visit.url)
        if target in chain or len(chain) > self._max_redirects:
            return "redirect_loop"
        if not self._scope.admits(target):
            return "redirect_offsite"
        self._add(Visit(target, visit.depth, chain))
        return None

    def _add(self, visit: Visit) -> None:
        known = self._waiting.get(visit.url)
        if visit.url not in self._asked and (known is None or visit.depth < known.depth):
            self._waiting[visit.url] = visit
