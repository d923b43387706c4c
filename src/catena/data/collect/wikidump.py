"""Pages of a MediaWiki XML dump (export-0.x), streamed: memory holds one page, whatever the size of the dump."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

from catena.core.errors import DataError

OPENERS = {".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile}


@dataclass(frozen=True, slots=True)
class Page:
    """One page with its newest revision."""

    id: int
    title: str
    namespace: int
    revision: int
    timestamp: str
    redirect: bool
    model: str
    """Content model: `wikitext` for articles, others for scripts and data."""
    text: str


class TruncatedDump(DataError):
    """The dump ends in its middle, or is damaged there."""


class OversizedPage(DataError):
    """A page is larger than what is read at most."""


class _Guarded:
    """A stream that stops when too much is read without a page coming to its end."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream, self._limit = stream, limit
        self.since_page = 0

    def read(self, size: int = 65536) -> bytes:
        """Read on; raises `OversizedPage` beyond the limit."""
        piece = self._stream.read(min(size, 65536) if size > 0 else 65536)
        self.since_page += len(piece)
        if self.since_page > self._limit:
            raise OversizedPage(f"a page of the dump has more than {self._limit} bytes", hint="Raise `max_page_bytes`.")
        return piece


def unpacked(stream: BinaryIO, path: str) -> BinaryIO:
    """Return the dump's XML, whatever its ending says it is packed with."""
    if path.endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream, mode="rb"))
    opener = next((opener for ending, opener in OPENERS.items() if path.endswith(ending)), None)
    return stream if opener is None else cast(BinaryIO, opener(stream))


def pages(stream: BinaryIO, max_page_bytes: int) -> Iterator[Page]:
    """Yield the pages of a dump in its order.

    Entity declarations are refused (defusedxml). Raises `TruncatedDump` behind the last sound page, `OversizedPage`.
    """
    import defusedxml.ElementTree as safe
    from defusedxml.common import DefusedXmlException

    # A page may be read twice over: once it is whole, and as the head of the next piece.
    guarded = _Guarded(stream, 2 * max_page_bytes + (1 << 20))
    root = None
    try:
        for event, element in safe.iterparse(guarded, events=("start", "end")):
            if root is None:
                root = element
            if event == "end" and _name(element.tag) == "page":
                yield _page(element)
                guarded.since_page = 0
                root.clear()
    except (EOFError, OSError, lzma.LZMAError, SyntaxError) as error:
        # ElementTree's ParseError is a SyntaxError.
        raise TruncatedDump(f"the dump ends early or is damaged: {error}", hint="Download it again.") from error
    except DefusedXmlException as error:
        raise DataError(f"the dump declares entities, which no dump does: {error}", hint="Do not use it.") from error


def _name(tag: str) -> str:
    return tag.rpartition("}")[2]


def _page(element: object) -> Page:
    from xml.etree.ElementTree import Element

    page = cast(Element, element)
    fields = {_name(child.tag): child for child in page}
    revisions = [child for child in page if _name(child.tag) == "revision"]
    newest = max(revisions, key=lambda item: _number(_child(item, "id")), default=None)
    return Page(
        id=_number(_text(fields.get("id"))),
        title=_text(fields.get("title")),
        namespace=_number(_text(fields.get("ns"))),
        revision=_number(_child(newest, "id")),
        timestamp=_child(newest, "timestamp"),
        redirect="redirect" in fields,
        model=_child(newest, "model") or "wikitext",
        text=_child(newest, "text"),
    )


def _text(element: object) -> str:
    return str(getattr(element, "text", None) or "")


def _child(parent: object, name: str) -> str:
    from xml.etree.ElementTree import Element

    if not isinstance(parent, Element):
        return ""
    return next((_text(child) for child in parent if _name(child.tag) == name), "")


def _number(text: str) -> int:
    return int(text) if text.strip().lstrip("-").isdecimal() else 0
