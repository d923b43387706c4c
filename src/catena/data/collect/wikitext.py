"""Wikitext to plain text: what a reader of the article sees, without templates, tables, references and categories."""

from __future__ import annotations

import re

from catena.data.decode import normalise

# What leaves with all that is in it. Comments first, since they may hide an end mark.
COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
WHOLE = re.compile(
    r"<(ref|gallery|math|chem|score|syntaxhighlight|source|timeline|imagemap|templatestyles|graph|mapframe)\b"
    r"(?:[^<>]*/>|[^<>]*>.*?</\1\s*>)",
    re.DOTALL | re.IGNORECASE,
)
SWITCH = re.compile(r"__[A-Z]{3,}__")
# Names of the namespaces whose links show no text; the local ones of a wiki are added by its own names.
ASIDE = (
    "file",
    "image",
    "category",
    "media",
    "文件",
    "图像",
    "分类",
    "檔案",
    "分類",
    "ファイル",
    "画像",
    "カテゴリ",
    "파일",
    "분류",
)
BLANK_LINES = re.compile(r"\n{3,}")
HEADING = re.compile(r"^(=+)[ \t]*(.*?)[ \t]*\1[ \t]*$", re.MULTILINE)
LIST_MARK = re.compile(r"^[*#:;]+[ \t]*", re.MULTILINE)
EMPTY_BRACKETS = re.compile(r"[ \t]*[(（][\s,;，；、:]*[)）]")
MAX_DEPTH_MARKS = 20_000
"""Opening marks of templates and links beyond which a page is no article; parsing takes more than linear time there."""


class TooComplex(ValueError):
    """A page with more marks than an article has."""


def plain_text(wikitext: str) -> str:
    """Return the text of an article: paragraphs, headings and list entries as lines.

    Raises `TooComplex` for pages that are made of marks.
    """
    import mwparserfromhell

    bare = SWITCH.sub("", WHOLE.sub("", COMMENT.sub("", wikitext)))
    bare = without_tables(bare)
    if bare.count("{{") + bare.count("[[") > MAX_DEPTH_MARKS:
        raise TooComplex(f"more than {MAX_DEPTH_MARKS} templates and links")
    code = mwparserfromhell.parse(bare)
    for link in code.filter_wikilinks(recursive=True):
        space, colon, _ = str(link.title).strip().partition(":")
        if colon and space.strip().lower() in ASIDE:
            # A link inside another that has gone already is not found any more.
            try:
                code.remove(link)
            except ValueError:
                continue
    text = str(code.strip_code(normalize=True, collapse=True))
    text = HEADING.sub(r"\2", text)
    text = LIST_MARK.sub("", EMPTY_BRACKETS.sub("", text))
    lines = "\n".join(line.strip() for line in normalise(text)[0].split("\n"))
    return BLANK_LINES.sub("\n\n", lines).strip()


def without_tables(wikitext: str) -> str:
    """Return wikitext without its tables `{| ... |}`, nested ones included; one that never ends goes to the end."""
    if "{|" not in wikitext:
        return wikitext
    kept, depth, at = [], 0, 0
    for mark in re.finditer(r"\{\||\|\}(?!\})", wikitext):
        opens = mark[0] == "{|"
        # `{{{|` belongs to a parameter, and not to a table.
        if opens and wikitext[max(mark.start() - 1, 0) : mark.start()] == "{":
            continue
        if opens:
            if depth == 0:
                kept.append(wikitext[at : mark.start()])
            depth += 1
        elif depth:
            depth -= 1
            at = mark.end()
    if depth == 0:
        kept.append(wikitext[at:])
    return "".join(kept)
