"""The stage `data.extract`: media samples become documents: main text of web pages, plain text as it is.

    bytes -> text (decode.py), or the reason why it is none -> main text -> without the frame of the site -> document
    └───────────────── in shards, by as many processes as there are ──────┘

Inner machines: `text_of` takes one body, `frame_lines` and `without_frame` take texts; none of them does I/O.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field

from catena.core.config import Config
from catena.core.sample import Sample
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion
from catena.data.decode import Undecodable, decode, normalise
from catena.data.shards import Shard, work_shards
from catena.hub.datasets import Dataset
from catena.hub.fields import need_shape
from catena.hub.rows import to_sample

HTML = frozenset({"text/html", "application/xhtml+xml"})
Extractor = Literal["union", "resiliparse", "trafilatura"]

SHARD_PAGES = 256
TEXTS = "texts.jsonl"
# When trafilatura is asked, and when it is believed. It is a hundred times slower than resiliparse, and the two
# seldom lose the same page (arXiv 2602.19548: 39 % of pages are found by more than one extractor).
DOUBT_BELOW = 0.25
CLEARLY_MORE = 1.5
# Parsers take time with the square of the nesting (76 s for 50,000 elements); browsers stop at 512 levels.
MAX_NESTING = 2000
NESTING = re.compile(
    r"<(/?)(div|span|section|article|blockquote|center|font|table|ul|ol|dl|b|i|em|strong|small)\b", re.I
)
# A line is of a site's frame when it stands among the first or last lines of half of the site's pages.
EDGE_LINES = 6
FRAME_SHARE = 0.5
FRAME_PAGES = 10


class ExtractConfig(Config):
    """How text is taken from pages."""

    extractor: Extractor = "union"
    """`resiliparse`, `trafilatura`, or `union`: resiliparse, and where it kept less than a quarter of a page's visible
    text, trafilatura if that kept clearly more (1.5 times)."""
    drop_frame: bool = True
    """Take away lines at the top and bottom of a page that half of the site's pages have there (navigation)."""
    min_chars: int = Field(1, ge=1)
    """A page with fewer characters of text is rejected as `empty`."""


@dataclass(frozen=True, slots=True)
class Extracted:
    """The text of one body, or the reason why there is none."""

    text: str = ""
    title: str = ""
    extractor: str = ""
    charset: str = ""
    reason: str = ""
    detail: str = ""
    changed: tuple[str, ...] = ()
    """What was done to the text, for the funnel."""


@stage("data.extract")
def extract(ctx: Context, cfg: ExtractConfig, *, source: DatasetVersion) -> DatasetVersion:
    """Take the main text from collected pages (HTML and plain text); rows without text are rejected with the reason.

    Reasons: `binary`, `undecodable`, `empty`, `too_deep`, `unsupported_type`. `metadata`: url, title, extractor,
    charset, media_type. Rows keep the order of the source; `_parents` is the page.
    """
    need_shape(source, "media")
    operation = "catena.data.extract:extract_shard"
    folders = work_shards(ctx, source, operation, cfg, label="Extract", unit="pages", shard_rows=SHARD_PAGES)
    pages = ctx.store.open_dataset(source)
    frames = _frames(pages, folders) if cfg.drop_frame else {}
    changed: Counter[str] = Counter()
    with ctx.store.new_dataset("document", license=source.license) as writer:
        for page, found in zip(pages.samples(), _read(folders), strict=True):
            kept = without_frame(found.text, frames.get(site_of(page.source), frozenset()))
            if found.reason:
                writer.reject(page, found.reason, found.detail, shape="media")
            elif len(kept) < cfg.min_chars:
                writer.reject(page, "empty", f"{len(kept)} characters of text", shape="media")
            else:
                changed.update(found.changed)
                changed.update(["frame_dropped"] if kept != found.text else [])
                writer.add(_document(page, found, kept))
        return writer.commit(changed=dict(sorted(changed.items())))


def extract_shard(shard: Shard, cfg: Config, folder: Path) -> None:
    """Take the text from a shard's pages: the operation behind `data.extract`."""
    assert isinstance(cfg, ExtractConfig)
    with (folder / TEXTS).open("w", encoding="utf-8") as stream:
        for batch in shard.batches():
            for page in map(to_sample, batch.to_pylist()):
                charset = str(page.metadata.get("charset", ""))
                found = text_of(page.data["content"], str(page.data["media_type"]), charset, cfg.extractor)
                stream.write(json.dumps(asdict(found)) + "\n")


def _frames(pages: Dataset, folders: Iterable[Path]) -> dict[str, frozenset[str]]:
    """Return the frame lines of each site."""
    edges: dict[str, Counter[str]] = {}
    sizes: Counter[str] = Counter()
    sources = pages.table(["_source"]).column("_source").to_pylist()
    for source, found in zip(sources, _read(folders), strict=True):
        if found.text:
            site = site_of(source or "")
            sizes[site] += 1
            edges.setdefault(site, Counter()).update(edge_lines(found.text))
    return {site: frame_lines(edges[site], sizes[site]) for site in edges}


def _read(folders: Iterable[Path]) -> Iterator[Extracted]:
    for folder in folders:
        with (folder / TEXTS).open(encoding="utf-8") as stream:
            for line in stream:
                yield Extracted(**json.loads(line))


def _document(page: Sample, found: Extracted, text: str) -> Sample:
    metadata = {
        "url": page.metadata.get("url", page.source),
        "title": found.title,
        "extractor": found.extractor,
        "charset": found.charset,
        "media_type": page.data["media_type"],
    }
    return page.derive({"text": text}, metadata=metadata)


def text_of(body: bytes, media_type: str, charset: str = "", extractor: Extractor = "union") -> Extracted:
    """Return the main text of one body. `charset` is what the server declared, if it did."""
    kind = media_type.partition(";")[0].strip().lower()
    if kind not in HTML and kind != "text/plain":
        return Extracted(reason="unsupported_type", detail=kind)
    if not body.strip():
        return Extracted(reason="empty", detail="the body is empty")
    try:
        decoded = decode(body, charset, html=kind in HTML)
    except Undecodable as problem:
        return Extracted(reason=problem.reason, detail=str(problem))
    title, used, raw = "", "plain", decoded.text
    if kind in HTML and nesting(decoded.text) > MAX_NESTING:
        return Extracted(reason="too_deep", detail=f"elements are nested more than {MAX_NESTING} deep")
    if kind in HTML:
        title, used, raw = main_text(decoded.text, extractor)
    text, changed = normalise(raw, from_html=kind in HTML)
    if decoded.replaced:
        changed = (*changed, "bad_bytes_replaced")
    return Extracted(text, normalise(title)[0], used, decoded.charset, changed=changed)


def nesting(html: str) -> int:
    """Return how deep elements are nested, about: elements often left open (`p`, `li`) do not count."""
    depth = deepest = 0
    for mark in NESTING.finditer(html):
        depth = max(depth - 1, 0) if mark[1] else depth + 1
        deepest = max(deepest, depth)
    return deepest


def main_text(html: str, extractor: Extractor) -> tuple[str, str, str]:
    """Return title, the extractor used, and the main text of a page, by the rule of `ExtractConfig.extractor`."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    tree = HTMLTree.parse(html)
    title = " ".join((tree.title or "").split())
    if extractor == "trafilatura":
        return title, "trafilatura", _trafilatura(html)
    first = str(extract_plain_text(tree, main_content=True))
    if extractor == "union":
        visible = len("".join(str(extract_plain_text(tree, main_content=False)).split()))
        kept = len("".join(first.split()))
        if kept < DOUBT_BELOW * visible:
            second = _trafilatura(html)
            if len("".join(second.split())) > CLEARLY_MORE * kept:
                return title, "trafilatura", second
    return title, "resiliparse", first


def _trafilatura(html: str) -> str:
    import trafilatura

    return str(trafilatura.extract(html, include_comments=False, include_tables=True, favor_recall=True) or "")


def site_of(source: str) -> str:
    """Return what pages of one site have in common: host and port, or the scheme."""
    parts = urlsplit(source)
    return parts.netloc or parts.scheme


def edge_lines(text: str) -> set[str]:
    """Return the first and last lines that are not blank."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return {*lines[:EDGE_LINES], *lines[-EDGE_LINES:]}


def frame_lines(edges: Counter[str], pages: int) -> frozenset[str]:
    """Return the lines that belong to a site's frame; none where the site has too few pages to tell."""
    if pages < FRAME_PAGES:
        return frozenset()
    return frozenset(line for line, count in edges.items() if count >= FRAME_SHARE * pages)


def without_frame(text: str, frame: Iterable[str]) -> str:
    """Take frame lines off the top and bottom of a text, up to the first line that is not one."""
    known = {"", *frame}
    lines = text.split("\n")
    while lines and lines[0].strip() in known:
        lines.pop(0)
    while lines and lines[-1].strip() in known:
        lines.pop()
    return "\n".join(lines)
