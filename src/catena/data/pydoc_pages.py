"""What a page of pydoc (Python 3.11 to 3.13) defines: functions and methods with signature and docstring. Pure.

pydoc writes its pages by machine and escapes everything that it quotes, so its marks are found with one pattern:

    <strong class="bigsection">Functions</strong>                  the section of the module's own functions
    <a name="Path">class <strong>Path</strong></a>                 a class begins
    Methods defined here:   Methods inherited from <a ...>         which part of the class follows
    <dl><dt><a name="Path-exists"><strong>exists</strong></a>(self)</dt><dd><span class="code">Text</span></dd></dl>
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

MODULE = re.compile(r"<title>\s*Pydoc:\s*(?:built-in )?(?:module|package)\s+([\w.]+)\s*</title>")
ADDRESS = re.compile(r"([A-Za-z_][\w.]*)\.html?$")
MARK = re.compile(
    r"""<strong\ class="bigsection">(?P<section>[^<]*)</strong>
      | <strong>(?P<alias>\w+)</strong>\ =\ <a\ name="[^"]*">class\ \w+</a>
      | <a\ name="[^"]*">class\ <strong>(?P<class>\w+)</strong></a>
      | \b(?P<part>[A-Z][a-z\ ]+)\ (?P<whose>defined\ here|inherited\ from)\b
      | <dl><dt><a\ name="[^"]*-[^"]*"><strong>(?P<name>\w+)</strong></a>(?P<signature>.*?)</dt>
        (?:<dd>(?:<span\ class="code">|<tt>)(?P<doc>.*?)(?:</span>|</tt>)</dd>)?""",
    re.VERBOSE | re.DOTALL,
)
BREAK, TAG = re.compile(r"<br\s*/?>\n?"), re.compile(r"<[^>]+>")


class Definition(NamedTuple):
    """One function or method of a page."""

    name: str
    """Qualified: module, class, name; those of the built-in types without `builtins`."""
    module: str
    kind: Literal["function", "method"]
    signature: str
    doc: str
    inherited: bool
    alias: bool
    """It is another name for something else: `<strong>lstat</strong> = stat(...)`."""
    public: bool
    """The module is known by another name than its own: os.path for posixpath."""


def module_of(page: str, url: str) -> tuple[str, str]:
    """Return the module that a page is about, as its address and as its title name it; empty for other pages.

    They differ where a module has a public name: the page os.path.html is about the module posixpath.
    """
    title = MODULE.search(page[:5000])
    if title is None:
        return "", ""
    address = ADDRESS.search(url.partition("?")[0])
    return (address or title)[1], title[1]


def parse_page(page: str, url: str) -> Iterator[Definition]:
    """Yield the functions and methods of a page in their order, inherited ones too; nothing for other pages."""
    module, own = module_of(page, url)
    if not module:
        return
    current, inherited, functions = "", False, False
    for mark in MARK.finditer(page):
        if mark["section"] is not None:
            current, inherited, functions = "", False, mark["section"].strip() == "Functions"
        elif mark["class"] or mark["alias"]:
            current, inherited = mark["class"] or mark["alias"], False
        elif mark["whose"]:
            inherited = mark["whose"] == "inherited from"
        elif current or functions:
            signature = plain(mark["signature"]).strip()
            yield Definition(
                name=".".join(part for part in (module, current, mark["name"]) if part).removeprefix("builtins."),
                module=module,
                kind="method" if current else "function",
                signature=signature,
                doc=plain(mark["doc"] or ""),
                inherited=inherited,
                alias=signature.startswith("="),
                public=module != own,
            )


def plain(markup: str) -> str:
    """Return the text of a piece of a page."""
    return html.unescape(TAG.sub("", BREAK.sub("\n", markup))).replace("\xa0", " ")
