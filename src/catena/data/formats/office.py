"""PDF, Word, PowerPoint, Excel and EPUB, by kreuzberg (Rust, offline). The ZIP-based ones are weighed before.

Whoever wrote the archive also wrote the sizes in its directory, so members are unpacked and counted, not believed.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from typing import Any

from catena.data.formats.pieces import Piece, Reject, Row, Source, Unreadable
from catena.data.formats.unpack import weigh

ENCRYPTED_OFFICE = "EncryptedPackage".encode("utf-16-le")
BEHIND_A_PASSWORD = "the document is behind a password"
UNITS = {"pdf": "page", "pptx": "slide", "xlsx": "sheet"}


def read_pdf(source: Source) -> Iterator[Piece]:
    """Yield a PDF's text: one row, or one for each page."""
    yield from _read(source, source.read_bytes())


def read_office(source: Source) -> Iterator[Piece]:
    """Yield the text of a ZIP-based document: one row, or one for each slide or sheet."""
    body = source.read_bytes()
    try:
        weigh(source.path, source.limits)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise Unreadable("damaged", str(error)) from error
    yield from _read(source, body)


def read_ole(source: Source) -> Iterator[Piece]:
    """Refuse: a document behind a password, or one of the time before 2007."""
    if ENCRYPTED_OFFICE in source.read_bytes():
        raise Unreadable("encrypted", BEHIND_A_PASSWORD)
    raise Unreadable("unsupported_format", "an Office document of the time before 2007, or another OLE file")
    yield  # a generator, as every reader


def _read(source: Source, body: bytes) -> Iterator[Piece]:
    import kreuzberg

    config = kreuzberg.ExtractionConfig(
        use_cache=False, enable_quality_processing=False, pages=kreuzberg.PageConfig(extract_pages=True)
    )
    try:
        found = kreuzberg.extract_bytes_sync(body, source.format.media_type, config)
    except kreuzberg.KreuzbergError as error:
        said = ": ".join(dict.fromkeys(str(error).split(": ")))  # it says the same twice
        if "password" in said.lower() or "encrypt" in said.lower():
            raise Unreadable("encrypted", BEHIND_A_PASSWORD) from error
        raise Unreadable("damaged", said[:300]) from error
    kind = source.format.name
    parts = PARTS[kind](found) if kind in PARTS else [("", found.content)]
    if len(parts) > source.limits.pages:
        said = f"{len(parts)} {UNITS[kind]}s; limits.pages is {source.limits.pages}"
        raise Unreadable("too_many_pages", said)
    facts: dict[str, Any] = {"title": str(found.metadata.get("title") or "")}
    if kind in UNITS:
        facts[f"{UNITS[kind]}s"] = len(parts)
    if source.reading.per == "file" or kind not in UNITS:
        if not "".join(text for _, text in parts).strip():
            raise Unreadable("empty", "there is no text in it; a scan needs recognition of its letters")
        yield Row(_joined(kind, parts, found.content), facts)
        return
    for number, (name, text) in enumerate(parts, 1):
        place = {**facts, UNITS[kind]: number, **({"name": name} if name else {})}
        yield Row(text, place) if text.strip() else Reject("empty", f"{UNITS[kind]} {number} has no text", place)


def _joined(kind: str, parts: list[tuple[str, str]], content: str) -> str:
    if kind not in UNITS:
        return content
    return "\n\n".join(f"{name}\n{text}" if name else text for name, text in parts if text.strip())


def _pages(found: Any) -> list[tuple[str, str]]:
    return [("", page["content"]) for page in found.pages or ()]


def _slides(found: Any) -> list[tuple[str, str]]:
    body = found.content.encode()
    marks = (found.metadata.get("pages") or {}).get("boundaries") or [{"byte_start": 0, "byte_end": len(body)}]
    return [("", body[mark["byte_start"] : mark["byte_end"]].decode(errors="ignore").strip()) for mark in marks]


def _sheets(found: Any) -> list[tuple[str, str]]:
    names = found.metadata.get("sheet_names") or []
    texts = dict.fromkeys(range(1, len(names) + 1), "")
    for table in found.tables:
        rows = ("\t".join(" ".join(cell.split()) for cell in row) for row in table.cells)
        texts[table.page_number] = "\n".join([texts.get(table.page_number, ""), *rows]).strip("\n")
    return [(names[number - 1], text) for number, text in sorted(texts.items()) if number <= len(names)]


PARTS = {"pdf": _pages, "pptx": _slides, "xlsx": _sheets}
