"""Bytes to clean text: which charset, whether it is text at all, and one normal form. Values only."""

from __future__ import annotations

import codecs
import re
import unicodedata
from dataclasses import dataclass

# What the web means by these names (WHATWG Encoding Standard): the larger charset of the family.
WEB_NAMES = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "gb_2312-80": "gb18030",
    "iso-8859-1": "cp1252",
    "latin1": "cp1252",
    "us-ascii": "cp1252",
    "ascii": "cp1252",
    "shift_jis": "cp932",
    "euc-kr": "cp949",
    "big5": "big5hkscs",
}
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
META = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9_.:-]{1,40})""", re.IGNORECASE)
META_WITHIN = 4096
MAGIC = (b"%PDF-", b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"PK\x03\x04", b"\x1f\x8b", b"\x7fELF", b"BZh", b"\xfd7zXZ")
WIDE = ("utf-16", "utf-16-le", "utf-16-be", "utf-32")
# More bad bytes or control characters than this, and it is not text in that charset; a short text may hold a few.
BAD_SHARE, BAD_FEW = 0.01, 3
LOW_CONTROLS = [byte for byte in range(0x20) if byte not in b"\t\n\r\f\x1b"]
BINARY_SHARE = 0.03

# Every mark that ends a line (Unicode Standard, 5.8), a page or a paragraph: to delete one would glue two words.
LINE_END = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# Line ends are none of them, but for U+0085: a text full of those was decoded as what it is not.
CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
SPACES = re.compile("[\u00a0\u2007\u202f]")


class Undecodable(ValueError):
    """The bytes are not text; `reason` is `binary` or `undecodable`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Decoded:
    """Text, the charset it was in, and whether some bytes had to be replaced."""

    text: str
    charset: str
    replaced: bool = False


def decode(body: bytes, declared: str = "", *, html: bool = False) -> Decoded:
    """Decode by byte-order mark, then what the server declared, then `<meta charset>`, then UTF-8, then detection.

    A charset that does not fit is passed over; if none fits, the first is used where under 1 % of the characters are
    bad. Raises `Undecodable` for binary data and for text that no charset fits.
    """
    if body.startswith(MAGIC):
        raise Undecodable("binary", "the bytes are of a binary format")
    named = _named(body, declared, html)
    if b"\0" in body and not (named and named[0].startswith(("utf-16", "utf-32"))):
        raise Undecodable("binary", "the bytes hold NUL")
    candidates = list(dict.fromkeys([*named, "utf-8", *_detected(body)]))
    for charset in candidates:
        try:
            text = body.decode(charset)
        except UnicodeError:
            continue
        if _bearable(len(CONTROLS.findall(text)), len(text)):
            return Decoded(text, charset)
    for charset in candidates:
        text = body.decode(charset, errors="replace")
        if _bearable(text.count("\ufffd") + len(CONTROLS.findall(text)), len(text)):
            return Decoded(text, charset, replaced=True)
    # Of bytes without order each ninth is such a control character; text in several charsets has none.
    if sum(body.count(control) for control in LOW_CONTROLS) > BINARY_SHARE * len(body):
        raise Undecodable("binary", "the bytes are not text in any charset")
    raise Undecodable("undecodable", f"none of these charsets fits, or several are mixed: {', '.join(candidates)}")


def _bearable(bad: int, length: int) -> bool:
    return bad <= max(BAD_SHARE * length, min(BAD_FEW, length // 8))


def _named(body: bytes, declared: str, html: bool) -> list[str]:
    names = [charset for mark, charset in MARKS if body.startswith(mark)][:1]
    names += [declared] if declared else []
    if html and (found := META.search(body[:META_WITHIN])):
        # A page whose meta element can be read as ASCII is in no wide charset, whatever the element says.
        meta = found[1].decode("ascii")
        names += [] if meta.lower() in WIDE else [meta]
    return [known for name in names if (known := _known(name))]


def _known(name: str) -> str | None:
    name = WEB_NAMES.get(name.strip().lower(), name.strip().lower())
    try:
        b"".decode(name)  # also refuses what is a codec and no charset, for example `hex`
    except (LookupError, ValueError):
        return None
    return name


def _detected(body: bytes) -> list[str]:
    from resiliparse.parse.encoding import detect_encoding

    found = _known(str(detect_encoding(body) or ""))
    return [found] if found else []


def normalise(text: str, *, from_html: bool = False) -> tuple[str, tuple[str, ...]]:
    """Return the text in NFC, with plain spaces and line ends and without control characters, and what was changed.

    With `from_html`, what is left of table cells (tabs, lines of blanks) goes too.
    """
    changed = []
    plain = SPACES.sub(" ", LINE_END.sub("\n", text))
    cleaned = CONTROLS.sub("", plain)
    if cleaned != plain:
        changed.append("controls_removed")
    composed = unicodedata.normalize("NFC", cleaned)
    if composed != cleaned:
        changed.append("composed")
    if from_html:
        composed = re.sub(r"(?m)^[ ]*\t[ \t]*", "", composed)
        composed = re.sub(r"[ ]*\t[ \t]*", "  ", composed)
    composed = re.sub(r"[ \t]+$", "", composed, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", composed).strip("\n"), tuple(changed)
