"""Pieces of HTML (of a feed, of an API's field) to plain text: all of it, since a piece has no frame to be left out."""

from __future__ import annotations

from catena.data.decode import normalise
from catena.data.extract import MAX_NESTING, nesting


def fragment_text(html: str) -> str:
    """Return the visible text of a piece of HTML; nothing for one nested beyond what a parser can bear."""
    if "<" not in html and "&" not in html:
        return normalise(html)[0]
    if nesting(html) > MAX_NESTING:
        return ""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    text = extract_plain_text(HTMLTree.parse(f"<html><body>{html}</body></html>"), main_content=False)
    return normalise(str(text), from_html=True)[0]
