"""Finding personal data in text: pure, by patterns whose hits are validated (checksums, numbering plans, addresses).

    text -> plain form (ASCII digits and signs, nothing invisible) -> spans of each kind -> spans in the text

People write numbers in full-width digits, with dashes of every length, and hide them with zero-width characters: the
patterns see the plain form, and the spans are those of the text as it stands. Numbers are in `pii_numbers`.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from catena.data.pii_numbers import (
    Place,
    canonical_phone,
    canonical_resident_id,
    cards,
    ibans,
    phones,
    resident_ids,
    social_security,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Kind = Literal["email", "iban", "cn_id", "bank_card", "us_ssn", "phone", "ip"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order in which they take text: what is part of an earlier kind is not looked at again."""


class Span(NamedTuple):
    """Personal data at text[start:end]."""

    kind: Kind
    start: int
    end: int


EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
)
# `icon@2x.png` is a file, `git@github.com:` the login of a server, not of a person.
NO_DOMAIN = (
    ".png",
    ".jpg",
    ".jpeg",
    ".gif",
    ".webp",
    ".svg",
    ".bmp",
    ".ico",
    ".css",
    ".js",
    ".json",
    ".html",
    ".local",
)
LOGIN = re.compile(r"(?:git|hg|svn|root)@", re.IGNORECASE)
# As in `pii_numbers`: a pattern that begins with what it looks for is searched for ten times as fast.
IPV4 = re.compile(r"\d(?<![0-9A-Za-z_.]\d)\d{0,2}(?:\.\d{1,3}){3}(?![0-9A-Za-z_]|\.\d|-\d)")
COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
IPV6 = re.compile(r"(?<![0-9A-Za-z_:.])[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![0-9A-Za-z_:])")
NUMBERING = re.compile(
    r"(?:(?<![A-Za-z])(?:v|ver|version|release|revision|build|section|chapter|firmware|driver|python|sdk|api|oid"
    r"|(?:up|down)graded? (?:to|from)|updated? to|patch)|版本号?|版|第|升级[到至]|更新[到至]|バージョン|버전"
    r"|[=<>~!^]=|[~^]|§)"
    r"\s*(?:number|no\.?|is|为|是)?\s*[.:：=]?\s*$"
    # `Chrome/120.0.6099.109` and `driver-1.2.3.4.tar.gz`, but not `//8.8.8.8/` and not `8.8.4.4-8.8.8.8`.
    r"|[A-Za-z][/-]$",
    re.IGNORECASE,
)

DIGIT = re.compile("[0-9]")
# Characters that nobody sees: soft hyphen, of no width, direction marks, joiners, the byte order mark.
INVISIBLE = (
    (0xAD, 0xAD), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x2064), (0x2066, 0x2069), (0xFEFF, 0xFEFF),
)  # fmt: skip
GONE = 0xFFFFFFFF


@cache
def _plain_characters() -> npt.NDArray[np.uint32]:
    """Return what to read for each character: for those that only look different, what they look like.

    Full width, dashes, spaces, digits of any script; `GONE` for what is invisible.
    """
    import numpy as np

    table = np.arange(sys.maxunicode + 1, dtype=np.uint32)
    table[0xFF01:0xFF5F] -= 0xFEE0
    table[0xFF1A] = 0xFF1A  # not the colon: in Chinese it stands before an address, and is not a part of it
    table[[*range(0x2010, 0x2016), 0x2212, 0xFE63]] = ord("-")
    table[[0xA0, 0x202F, 0x3000, *range(0x2000, 0x200B)]] = ord(" ")
    for code in range(0x80, sys.maxunicode + 1):
        if unicodedata.category(chr(code)) == "Nd":
            table[code] = ord("0") + unicodedata.decimal(chr(code))
    table[[code for first, last in INVISIBLE for code in range(first, last + 1)]] = GONE
    return table


def plain_form(text: str) -> tuple[str, list[int] | None]:
    """Return the text as the patterns see it, and each character's place in the text if any was taken out."""
    if text.isascii():
        return text, None
    import numpy as np

    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    plain = _plain_characters()[codes]
    if np.array_equal(plain, codes):
        return text, None
    kept = np.flatnonzero(plain != GONE)
    made = plain[kept].tobytes().decode("utf-32-le", "surrogatepass")
    return made, None if len(kept) == len(codes) else kept.tolist()


def find(text: str) -> list[Span]:
    """Return all personal data in the text, in order, without overlaps."""
    plain, places = plain_form(text)
    found: list[Span] = []
    for kind in KINDS if DIGIT.search(plain) else KINDS[:1]:
        found = _merged(found, [Span(kind, *span) for span in FINDERS[kind](plain)])
    if places is None:
        return found
    return [Span(kind, places[start], places[end - 1] + 1) for kind, start, end in found]


def _merged(taken: list[Span], new: list[Span]) -> list[Span]:
    """Return both in order, without those of `new` that overlap one of `taken`, in which no two overlap."""
    if not new:
        return taken
    starts, ends = [span.start for span in taken], [0, *(span.end for span in taken)]
    free = [span for span in new if ends[bisect_left(starts, span.end)] <= span.start]
    merged: list[Span] = []
    for span in sorted(taken + free, key=lambda span: (span.start, -span.end)):
        if not merged or merged[-1].end <= span.start:  # two patterns of one kind may find the same
            merged.append(span)
    return merged


def canonical(kind: str, value: str) -> str:
    """Return one spelling for all ways to write a value: spaces, dashes, case, width, country code, old form."""
    plain = plain_form(value)[0]
    if kind == "phone":
        return canonical_phone(plain)
    if kind == "cn_id":
        return canonical_resident_id(plain)
    if kind == "ip":
        return str(ip_address(plain))
    return "".join(letter for letter in plain.casefold() if letter.isalnum() or letter in "@.")


def emails(text: str) -> Iterator[Place]:
    """Yield the addresses of RFC 5321 with a domain of ASCII labels."""
    if "@" not in text:
        return
    for match in EMAIL.finditer(text):
        if match[0].lower().endswith(NO_DOMAIN) or (
            LOGIN.match(match[0]) and text[match.end() : match.end() + 1] in ":/"
        ):
            continue
        yield match.span()


def addresses(text: str) -> Iterator[Place]:
    """Yield the IP addresses, versions 4 and 6, that are not version numbers, slices or hardware addresses."""
    for match in IPV4.finditer(text):
        if _is_address(match[0]) and not NUMBERING.search(text[max(0, match.start() - 24) : match.start()]):
            yield match.span()
    if not COLONS.search(text):
        return
    for match in IPV6.finditer(text):
        groups = match[0].split(":")
        filled = [group for group in groups if group]
        # `1::2` is a slice, `fe80::1` an address, `00:1a:2b:ff:fe:3c:4d:5e` the number of a network card.
        if (
            any(len(group) != 2 for group in groups)
            and (len(filled) > 2 or len(filled[0]) > 2)
            and _is_address(match[0])
        ):
            yield match.span()


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


FINDERS: dict[Kind, Callable[[str], Iterator[Place]]] = {
    "email": emails,
    "iban": ibans,
    "cn_id": resident_ids,
    "bank_card": cards,
    "us_ssn": social_security,
    "phone": phones,
    "ip": addresses,
}
