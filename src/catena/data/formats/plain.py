"""Readers of text and of HTML: bytes to text by the rules of `decode`, and the main text of a page by `extract`."""

from __future__ import annotations

from collections.abc import Iterator

from catena.data.decode import Undecodable, decode
from catena.data.extract import text_of
from catena.data.formats.pieces import Piece, Row, Source, Unreadable


def read_plain(source: Source) -> Iterator[Piece]:
    """Yield a text file as one row."""
    text, metadata, changed = decoded(source.read_bytes())
    yield Row(text, metadata, changed)


def read_html(source: Source) -> Iterator[Piece]:
    """Yield the main text of a page as one row."""
    found = text_of(source.read_bytes(), "text/html", "", source.reading.extractor)
    if found.reason:
        raise Unreadable(found.reason, found.detail)
    yield Row(found.text, {"title": found.title, "extractor": found.extractor, "charset": found.charset}, found.changed)


def decoded(body: bytes, declared: str = "") -> tuple[str, dict[str, str], tuple[str, ...]]:
    """Return text, its charset as metadata, and what was changed; raises `Unreadable` for what is no text."""
    try:
        found = decode(body, declared)
    except Undecodable as problem:
        raise Unreadable(problem.reason, str(problem)) from problem
    return found.text, {"charset": found.charset}, ("bad_bytes_replaced",) if found.replaced else ()
