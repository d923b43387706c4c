"""A MediaWiki over its Action API: all pages at first, later what its recent changes name.

    first run   generator=allpages (+ revisions, info)           continue... until the end
    later runs  list=recentchanges since the last run's time  ->  ids  ->  pageids=1|2|3 (+ revisions, info)

The wiki's own clock (`curtimestamp`) is the cursor: it is taken before anything is listed, so nothing falls in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from catena.core.errors import RemoteError
from catena.core.types import Shape
from catena.data.collect.client import Answer, Client, HttpError
from catena.data.collect.cursor import Past
from catena.data.collect.journal import Batch, Item
from catena.data.collect.mediawiki import MediawikiConfig, identity_of, item_of, key_of
from catena.data.collect.wikidump import Page

CONTENT = {
    "prop": "revisions|info",
    "rvprop": "ids|timestamp|content",
    "rvslots": "main",
    "inprop": "url",
}
LATER = frozenset({"maxlag", "ratelimited", "readonly"})
MAX_IDS = 50
"""Page ids that a wiki takes in one request from someone without special rights."""


@dataclass
class ApiConnector:
    """One wiki. The cursor holds the time of the last run, by the wiki's clock, and its licence."""

    cfg: MediawikiConfig
    client: Client
    name: str = "collect_mediawiki"
    shape: Shape = "document"
    passing: frozenset[str] = frozenset()
    license: str | None = field(init=False)
    identity: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.license = self.cfg.license
        self.identity = identity_of(self.cfg)

    def batches(self, past: Past) -> Iterator[Batch]:
        """List all pages, or what changed since the cursor."""
        position = past.position or self._begin(past)
        if position["way"] == "changes":
            yield from self._changes(past, dict(position))
        else:
            yield from self._all(past, dict(position))

    def _begin(self, past: Past) -> dict[str, Any]:
        """Ask for the wiki's clock and licence, and decide between all pages and recent changes."""
        found = self._ask({"meta": "siteinfo", "siprop": "rightsinfo", "curtimestamp": 1})
        now = str(found.get("curtimestamp", ""))
        rights = found.get("query", {}).get("rightsinfo", {})
        since = past.cursor.get("time")
        start: dict[str, Any] = {
            "time": now,
            "license": rights.get("text") or rights.get("url") or None,
            "continue": {},
        }
        if since and _moment(now) - _moment(since) < timedelta(days=self.cfg.recent_days):
            return {**start, "way": "changes", "since": since}
        return {**start, "way": "all", "namespace": 0}

    def _all(self, past: Past, position: dict[str, Any]) -> Iterator[Batch]:
        """Yield every page, namespace after namespace."""
        for number in range(position["namespace"], len(self.cfg.namespaces)):
            position["namespace"] = number
            asked = {
                "generator": "allpages",
                "gapnamespace": self.cfg.namespaces[number],
                "gaplimit": self.cfg.page_size,
                **CONTENT,
            }
            while True:
                found = self._ask({**asked, **position["continue"]})
                position["continue"] = found.get("continue", {})
                items = tuple(self._items(found))
                if not position["continue"]:
                    break
                yield Batch(items, dict(position))
            position = {**position, "namespace": number + 1}
            yield Batch(items, dict(position))
        # Deleted pages show in the recent changes only; after a pause longer than those reach, they are asked for here.
        yield from self._deleted(past, position)
        yield Batch((), position, self._cursor(position))

    def _deleted(self, past: Past, position: dict[str, Any]) -> Iterator[Batch]:
        known = [page for page in past.known("page").values() if page]
        for at in range(0, len(known), MAX_IDS):
            ids = "|".join(str(page) for page in known[at : at + MAX_IDS])
            found = self._ask({"prop": "info", "pageids": ids})
            gone = tuple(item for item in self._items(found) if item.outcome == "gone")
            if gone:
                yield Batch(gone, position)

    def _changes(self, past: Past, position: dict[str, Any]) -> Iterator[Batch]:
        """Yield every page that was made, changed, moved or deleted since the cursor."""
        asked = {
            "list": "recentchanges",
            "rcdir": "newer",
            "rcstart": position["since"],
            "rcnamespace": "|".join(str(number) for number in self.cfg.namespaces),
            "rcprop": "title|ids|timestamp|loginfo",
            "rctype": "edit|new|log",
            "rclimit": self.cfg.page_size,
        }
        while True:
            found = self._ask({**asked, **position["continue"]})
            changes = found.get("query", {}).get("recentchanges", [])
            position = {**position, "continue": found.get("continue", {})}
            pages = sorted({int(change["pageid"]) for change in changes if change.get("pageid")})
            # The log of a deletion names a title and no page: what had that title before is asked for by its number.
            titles = {str(change["title"]) for change in changes if not change.get("pageid") and "title" in change}
            before = self._known(past, titles)
            pages += sorted({page for _, page in before} - set(pages))
            fresh = sorted(titles - {title for title, _ in before})
            items = (*self._contents("pageids", pages), *self._contents("titles", fresh))
            last = not position["continue"]
            yield Batch(items, dict(position), self._cursor(position) if last else None)
            if last:
                return

    def _known(self, past: Past, titles: set[str]) -> list[tuple[str, int]]:
        """Return (title, page number) of rows that had one of these titles."""
        if not titles:
            return []
        pages = past.known("page")
        found = [(str(title), pages[key]) for key, title in past.known("title").items() if title in titles]
        return [(title, int(page)) for title, page in found if page]

    def _contents(self, name: str, values: list[Any]) -> Iterator[Item]:
        for at in range(0, len(values), MAX_IDS):
            asked: dict[str, Any] = {name: "|".join(str(value) for value in values[at : at + MAX_IDS]), **CONTENT}
            more: dict[str, Any] = {}
            while True:
                found = self._ask({**asked, **more})
                yield from self._items(found)
                more = found.get("continue", {})
                if not more:
                    break

    def _items(self, found: Mapping[str, Any]) -> Iterator[Item]:
        """Yield the items of the pages in an answer; a page whose content comes in a later answer is passed over."""
        for page in found.get("query", {}).get("pages", []):
            if page.get("missing") or page.get("invalid"):
                if page.get("pageid"):
                    yield Item(key_of(int(page["pageid"])), "gone")
                continue
            if page.get("ns") not in self.cfg.namespaces:
                yield Item(key_of(int(page["pageid"])), "gone")  # moved to where it is not collected
                continue
            revision = next(iter(page.get("revisions", [])), None)
            if revision is None:
                continue
            main = revision.get("slots", {}).get("main", {})
            yield item_of(
                self.cfg,
                Page(
                    id=int(page["pageid"]),
                    title=str(page.get("title", "")),
                    namespace=int(page.get("ns", 0)),
                    revision=int(revision.get("revid", 0)),
                    timestamp=str(revision.get("timestamp", "")),
                    redirect=bool(page.get("redirect")),
                    model=str(main.get("contentmodel", "wikitext")),
                    text=str(main.get("content", "")),
                ),
                str(page.get("canonicalurl") or page.get("fullurl") or f"{self.cfg.url}?curid={page['pageid']}"),
            )

    def _cursor(self, position: Mapping[str, Any]) -> dict[str, Any]:
        return {"time": position["time"], "license": position["license"]}

    def _ask(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Ask the API; raises `RemoteError` for an error that it names."""
        fixed = {"action": "query", "format": "json", "formatversion": 2, "maxlag": 5}
        answer = self.client.get(self.cfg.url, {**fixed, **params}, busy=_is_busy)
        found = answer.json()
        if not isinstance(found, dict):
            raise RemoteError(f"{self.cfg.url} does not answer like a MediaWiki", hint="The address ends in api.php.")
        if "error" in found:
            error = found["error"]
            bad_place = str(error.get("code", "")).startswith("bad") and "continue" in str(error)
            raise HttpError(f"{self.cfg.url} says: {error.get('info', error)}", status=400 if bad_place else 0)
        return found


def _is_busy(answer: Answer) -> bool:
    """Tell whether the wiki asks to come back later, which it says with status 200."""
    if "mediawiki-api-error" not in answer.headers and b'"error"' not in answer.body[:200]:
        return False
    found = answer.json()
    return isinstance(found, dict) and found.get("error", {}).get("code") in LATER


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise RemoteError(f"the wiki's clock says {text!r}", hint="See whether it is a MediaWiki.") from error
