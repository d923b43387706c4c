"""XML: its character data, element by element, by expat. A document that declares entities is refused unread.

Entities are what "billion laughs" and reading foreign files are made of; no data format in use today needs them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.parsers import expat

from catena.data.formats.pieces import Piece, Row, Source, Unreadable
from catena.data.formats.plain import decoded

DECLARED = re.compile(rb"""^(?:\xef\xbb\xbf)?\s*<\?xml[^>]{0,100}?encoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")
DEEPEST = 1000


def read_xml(source: Source) -> Iterator[Piece]:
    """Yield the text of an XML file as one row, an element's text on its own line."""
    body = source.read_bytes()
    found = DECLARED.match(body[:1024])
    text, metadata, changed = decoded(body, found[1].decode() if found else "")
    root, lines = xml_text(text)
    yield Row("\n".join(lines), {**metadata, "root": root}, changed)


def xml_text(text: str) -> tuple[str, list[str]]:
    """Return the root element's name and the lines of text; raises `Unreadable`: xml_entities, too_deep, damaged."""
    lines: list[str] = []
    buffer: list[str] = []
    open_elements: list[str] = []
    root: list[str] = []

    def flush() -> None:
        line = " ".join("".join(buffer).split())
        buffer.clear()
        if line:
            lines.append(line)

    def start(name: str, _: dict[str, str]) -> None:
        flush()
        open_elements.append(name)
        if not root:
            root.append(name)
        if len(open_elements) > DEEPEST:
            raise Unreadable("too_deep", f"elements are nested more than {DEEPEST} deep")

    def end(_: str) -> None:
        flush()
        open_elements.pop()

    def entity(name: str, *_: object) -> None:
        raise Unreadable("xml_entities", f"the document declares the entity {name!r}")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = buffer.append
    parser.EntityDeclHandler = entity
    parser.buffer_text = True
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        raise Unreadable("damaged", f"XML: {error}") from error
    return root[0], lines
