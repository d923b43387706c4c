"""The stage `data.collect_mediawiki`: articles of a MediaWiki, from its API or from an XML dump, become documents.

    api.php: all pages, later recent changes --\\
    dump (plain, gz, bz2, xz) -----------------+-> wikitext -> text -> what is new

Both give the same rows for the same revisions, so that a dump can be the start and the API the daily news.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field, model_validator

from catena.core.config import Config
from catena.core.errors import NotFound
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, Shape
from catena.data.collect.client import AuthConfig, Client, HttpConfig, plain_url
from catena.data.collect.cursor import Past, collect, in_batches
from catena.data.collect.folder import Folder, FolderConfig, Found
from catena.data.collect.journal import Batch, Item, Position
from catena.data.collect.wikidump import OversizedPage, Page, TruncatedDump, pages, unpacked
from catena.data.collect.wikitext import TooComplex, plain_text


class MediawikiConfig(Config):
    """Which wiki, and which of its pages."""

    url: str = ""
    """Address of the wiki's `api.php`."""
    dump: str = ""
    """An XML dump in place of the API: a path or an fsspec address (`.xml`, `.xml.gz`, `.xml.bz2`, `.xml.xz`)."""
    site: str = ""
    """Address before a page's title in rows of a dump, for example https://zh.wikipedia.org/wiki/."""
    namespaces: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """Numbers of the namespaces to collect; 0 is articles."""
    recent_days: int = Field(30, ge=1)
    """How long the wiki remembers recent changes, in days; after a longer pause all pages are listed again."""
    page_size: int = Field(50, ge=1, le=500)
    """Pages to ask for at once."""
    min_chars: int = Field(1, ge=1)
    """A page with fewer characters of text is rejected as `empty`."""
    max_page_bytes: int = Field(4_000_000, ge=1)
    """Largest wikitext; a larger page is rejected."""
    max_records: int = Field(20_000_000, ge=1)
    """About the most pages of one run; the next run goes on behind them."""
    auth: AuthConfig = Field(default_factory=AuthConfig)
    """Who asks."""
    http: HttpConfig = Field(default_factory=HttpConfig)
    """How patiently and how gently."""
    license: str | None = None
    """Licence; what the wiki's API says if not given."""

    @model_validator(mode="after")
    def _one_source(self) -> MediawikiConfig:
        if bool(self.url) == bool(self.dump):
            raise ValueError("give the `url` of an API, or a `dump`")
        if self.url:
            plain_url(self.url)
        return self


@stage("data.collect_mediawiki", volatile=True)
def collect_mediawiki(ctx: Context, cfg: MediawikiConfig) -> DatasetVersion:
    """Collect the articles of a MediaWiki, and later only new, changed and deleted ones.

    `metadata`: title, page, namespace, revision, timestamp. Reasons of rejects: `redirect`, `empty`, `too_large`,
    `too_complex`, `unsupported_model`, `gone`; for a whole dump `truncated`. Raises `RemoteError` when the wiki fails.
    """
    if cfg.dump:
        return collect(ctx, DumpConnector(cfg, Folder(FolderConfig(url=cfg.dump))), cfg.max_records)
    from catena.data.collect.wikiapi import ApiConnector

    return collect(ctx, ApiConnector(cfg, Client(cfg.http, cfg.auth, home=cfg.url)), cfg.max_records)


def identity_of(cfg: MediawikiConfig) -> dict[str, Any]:
    """Return what decides which pages come and how they look."""
    only = {"url", "dump", "site", "namespaces", "min_chars", "max_page_bytes", "license"}
    return {"connector": "collect_mediawiki", **cfg.model_dump(mode="json", include=only)}


def key_of(page: int) -> str:
    """Return a page's key: its number, which stays when it is moved to another title."""
    return f"{page:012d}"


def item_of(cfg: MediawikiConfig, page: Page, source: str) -> Item:
    """Make a document of a page, or a reject."""
    facts = {
        "title": page.title,
        "page": page.id,
        "namespace": page.namespace,
        "revision": page.revision,
        "timestamp": page.timestamp,
    }
    text, reason, detail = "", "", ""
    if page.redirect:
        reason, detail = "redirect", page.title
    elif page.model != "wikitext":
        reason, detail = "unsupported_model", page.model
    elif len(page.text.encode("utf-8", "replace")) > cfg.max_page_bytes:
        reason, detail = "too_large", f"more than {cfg.max_page_bytes} bytes"
    else:
        try:
            text = plain_text(page.text)
        except TooComplex as error:
            reason, detail = "too_complex", str(error)
    if not reason and len(text) < cfg.min_chars:
        reason, detail = "empty", f"{len(text)} characters of text"
    if reason:
        return Item(key_of(page.id), "reject", {}, facts, source, reason=reason, detail=detail)
    return Item(key_of(page.id), data={"text": text}, metadata=facts, source=source)


@dataclass
class DumpConnector:
    """One dump. The cursor holds its mark; a position, how many of its pages are done with."""

    cfg: MediawikiConfig
    folder: Folder
    name: str = "collect_mediawiki"
    shape: Shape = "document"
    passing: frozenset[str] = frozenset()
    license: str | None = field(init=False)
    identity: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.license = self.cfg.license
        self.identity = identity_of(self.cfg)

    def batches(self, past: Past) -> Iterator[Batch]:
        """Read the dump, unless it is the one that was read last."""
        files = self.folder.files()
        if not files:
            raise NotFound(f"there is no dump at {self.cfg.dump}", hint="See whether the address is right.")
        file = files[0]
        nothing: dict[str, Any] = {"mark": file.mark, "pages": 0}
        if past.cursor.get("mark") == file.mark and past.position is None:
            yield Batch((), nothing, past.cursor)
            return
        position: Mapping[str, Any] = past.position or nothing
        start = position["pages"] if position.get("mark") == file.mark else 0
        seen: set[str] = set()
        problem: list[str] = []
        yield from in_batches(self._read(file, start, seen, problem))
        whole = Item(" dump", "gone")
        if problem:
            # Without its mark, the next run reads it again; what is missing in it says nothing about the wiki.
            whole = Item(" dump", "reject", source=self.cfg.dump, reason="truncated", detail=problem[0])
            yield Batch((whole,), nothing, {})
            return
        gone = (Item(key, "gone") for key in sorted(past.known("page").keys() - seen - {" dump"}))
        yield Batch((whole, *gone), nothing, {"mark": file.mark})

    def _read(
        self, file: Found, start: int, seen: set[str], problem: list[str]
    ) -> Iterator[tuple[tuple[Item, ...], Position]]:
        with self.folder.open(file.path) as stream:
            try:
                for number, page in enumerate(pages(unpacked(stream, file.path), self.cfg.max_page_bytes), 1):
                    if page.namespace not in self.cfg.namespaces:
                        continue
                    seen.add(key_of(page.id))
                    if number > start:  # packed files cannot be entered in the middle
                        yield (item_of(self.cfg, page, self._source(page)),), {"mark": file.mark, "pages": number}
            except (TruncatedDump, OversizedPage) as error:
                problem.append(str(error))

    def _source(self, page: Page) -> str:
        title = page.title.replace(" ", "_")
        return f"{self.cfg.site}{title}" if self.cfg.site else f"{self.cfg.dump}#{title}"
