"""The stage `data.collect_feed`: entries of RSS and Atom feeds become documents.

    feed addresses -> conditional requests (ETag, Last-Modified) -> feedparser -> entries -> what is new

An entry that has fallen out of its feed stays in the dataset: a feed shows only its newest entries.
"""

from __future__ import annotations

import calendar
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from catena.core.config import Config
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, Shape
from catena.data.collect.client import Answer, AuthConfig, Client, HttpConfig, HttpError, plain_url
from catena.data.collect.cursor import Past, collect
from catena.data.collect.fragment import fragment_text
from catena.data.collect.journal import Batch, Item

ACCEPT = "application/atom+xml, application/rss+xml, application/xml;q=0.9, text/xml;q=0.8"


class FeedConfig(Config):
    """Which feeds to read, and what of an entry becomes the text."""

    urls: Annotated[tuple[Annotated[str, AfterValidator(plain_url)], ...], Field(min_length=1)]
    """Addresses of the feeds."""
    text: Literal["content", "summary", "title"] = "content"
    """`content`: the whole text where the feed has it, or the summary; the title stands above either."""
    max_records: int = Field(100_000, ge=1)
    """About the most entries of one run; the next run goes on with the next feed."""
    max_entry_bytes: int = Field(2_000_000, ge=1)
    """Largest text of an entry, in bytes of HTML; a larger one is rejected."""
    auth: AuthConfig = Field(default_factory=AuthConfig)
    """Who asks; the secret goes only to the server of the first feed."""
    http: HttpConfig = Field(default_factory=HttpConfig)
    """How patiently and how gently."""
    license: str | None = None
    """Licence of what is collected, for example an SPDX identifier."""


@stage("data.collect_feed", volatile=True)
def collect_feed(ctx: Context, cfg: FeedConfig) -> DatasetVersion:
    """Collect entries of RSS and Atom feeds, and later only new and changed ones; entries that left a feed stay.

    `metadata`: feed, guid, title, published, updated (ISO 8601, UTC), author. Reasons of rejects: `missing_id`,
    `empty`, `too_large`; for a whole feed `bad_feed`, `http_error`, `timeout`, `unreachable`. Raises `RemoteError` when
    no feed answers at all.
    """
    return collect(ctx, FeedConnector(cfg, Client(cfg.http, cfg.auth, home=cfg.urls[0])), cfg.max_records)


@dataclass
class FeedConnector:
    """Some feeds. The cursor holds each feed's ETag and Last-Modified."""

    cfg: FeedConfig
    client: Client
    name: str = "collect_feed"
    shape: Shape = "document"
    passing: frozenset[str] = frozenset()
    license: str | None = field(init=False)
    identity: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.license = self.cfg.license
        # Feeds may be added: those that are there already keep their place.
        only = {"text", "license", "max_entry_bytes"}
        self.identity = {"connector": self.name, **self.cfg.model_dump(mode="json", include=only)}

    def batches(self, past: Past) -> Iterator[Batch]:
        """Ask feed after feed."""
        position = past.position or {"done": [], "marks": past.cursor.get("marks", {}), "failed": []}
        done, marks, failed = list(position["done"]), dict(position["marks"]), list(position["failed"])
        waiting = [url for url in dict.fromkeys(self.cfg.urls) if url not in done]
        for number, url in enumerate(waiting, 1):
            try:
                items, mark = self._read(url, marks.get(url, {}))
                marks[url] = mark
            except HttpError as error:
                failed.append(url)
                if len(failed) == len(self.cfg.urls):
                    raise
                items = [Item(f"{url} ", "reject", source=url, reason=error.reason, detail=str(error))]
            done.append(url)
            position = {"done": done, "marks": marks, "failed": failed}
            yield Batch(tuple(items), position, {"marks": marks} if number == len(waiting) else None)

    def _read(self, url: str, mark: Mapping[str, str]) -> tuple[list[Item], dict[str, str]]:
        """Return the entries of one feed and what to ask with the next time."""
        asked = {"If-None-Match": mark.get("etag"), "If-Modified-Since": mark.get("modified")}
        headers = {"Accept": ACCEPT, **{name: value for name, value in asked.items() if value}}
        answer = self.client.get(url, headers=headers, allow=frozenset({304}))
        # The feed answers: whatever an earlier run had to say against it is over.
        well = Item(f"{url} ", "gone")
        if answer.status == 304:
            return [well], dict(mark)
        found, problem = entries_of(answer)
        if problem:
            return [Item(f"{url} ", "reject", source=url, reason="bad_feed", detail=problem)], {}
        new = {"etag": answer.headers.get("etag", ""), "modified": answer.headers.get("last-modified", "")}
        return [well, *(self._item(url, entry) for entry in found)], new

    def _item(self, url: str, entry: Mapping[str, Any]) -> Item:
        """Make a document of an entry, or a reject."""
        title = fragment_text(str(entry.get("title", "")))
        guid = str(entry.get("id") or entry.get("link") or "")
        link = str(entry.get("link") or url)
        body = html_of(entry, self.cfg.text)
        facts = {
            "feed": url,
            "guid": guid,
            "title": title,
            "author": str(entry.get("author", "")),
            "published": _moment(entry.get("published_parsed")),
            "updated": _moment(entry.get("updated_parsed")),
        }
        key = f"{url} {guid or title}"
        if not guid:
            return Item(key, "reject", {"text": title}, facts, link, reason="missing_id", detail="no guid, id or link")
        size = len(body.encode("utf-8", "replace"))
        if size > self.cfg.max_entry_bytes:
            return Item(key, "reject", {}, facts, link, reason="too_large", detail=f"{size} bytes")
        text = "\n\n".join(part for part in (title, fragment_text(body)) if part)
        if not text:
            return Item(key, "reject", {}, facts, link, reason="empty", detail="no text in the entry")
        return Item(key, data={"text": text}, metadata=facts, source=link)


def entries_of(answer: Answer) -> tuple[list[Mapping[str, Any]], str]:
    """Return the entries of a feed, or why it is none. A broken one is read as far as it goes."""
    import feedparser

    headers = {"content-type": answer.headers.get("content-type", ""), "content-location": answer.url}
    parsed = feedparser.parse(io.BytesIO(answer.body), response_headers=headers)
    if not parsed.get("version") and not parsed.entries:
        problem = parsed.get("bozo_exception")
        return [], "it is neither RSS nor Atom" + (f": {problem}" if problem else "")
    # As plain dictionaries: feedparser's own answer for one key with the value of another, with a warning.
    return [dict(entry) for entry in parsed.entries], ""


def html_of(entry: Mapping[str, Any], wanted: str) -> str:
    """Return the HTML of an entry's text: its content, or its summary where it has none."""
    if wanted == "title":
        return ""
    contents = [str(part.get("value", "")) for part in entry.get("content", ())] if wanted == "content" else []
    longest = max(contents, key=len, default="")
    return longest or str(entry.get("summary", ""))


def _moment(value: Any) -> str:
    """Return feedparser's time (UTC) in ISO 8601, or nothing."""
    try:
        return datetime.fromtimestamp(calendar.timegm(value), UTC).isoformat() if value else ""
    except (ValueError, OverflowError, TypeError):
        return ""
