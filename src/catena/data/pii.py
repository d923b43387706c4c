"""Finding personal data in text: pure, by patterns whose hits are validated (checksums, numbering plans, addresses).

A pattern alone is wrong too often: an order number looks like a bank card, a version like an IP address. So whatever
has a check digit must pass it, telephone numbers must be in their country's plan, and the words before a number count.
Patterns use ASCII classes: in Chinese a number stands right behind a letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Literal, NamedTuple, get_args

Kind = Literal["email", "iban", "cn_id", "bank_card", "us_ssn", "phone", "ip"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order in which they take text: what is part of an earlier kind is not looked at again."""


class Span(NamedTuple):
    """Personal data at text[start:end]."""

    kind: Kind
    start: int
    end: int


NOT_BEFORE, NOT_AFTER = r"(?<![0-9A-Za-z_.])", r"(?![0-9A-Za-z_]|\.\d)"

EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
)
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?![a-z])")
CN_ID = re.compile(r"(?<![0-9A-Za-z])\d{17}[0-9Xx](?![0-9A-Za-z])")
CARD = re.compile(NOT_BEFORE + r"[2-6]\d{3}(?:[ -]?\d){9,15}" + NOT_AFTER)
SSN = re.compile(r"(?<![0-9A-Za-z-])\d{3}-\d{2}-\d{4}(?![0-9A-Za-z-])")
# Region None: the number says its country itself.
PHONES: tuple[tuple[re.Pattern[str], str | None], ...] = (
    (re.compile(r"(?<![0-9A-Za-z+])\+[1-9](?:[ .()-]{0,2}\d){6,14}" + NOT_AFTER), None),
    (re.compile(NOT_BEFORE + r"(?:86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}" + NOT_AFTER), "CN"),
    (re.compile(NOT_BEFORE + r"0\d{2,3}-\d{7,8}" + NOT_AFTER), "CN"),
    (re.compile(r"(?<![0-9A-Za-z_.+-])(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}" + NOT_AFTER), "US"),
)
IPV4 = re.compile(r"(?<![0-9A-Za-z_.])\d{1,3}(?:\.\d{1,3}){3}(?![0-9A-Za-z_]|\.\d)")
IPV6 = re.compile(r"(?<![0-9A-Za-z_:.])[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![0-9A-Za-z_:])")
NUMBERING = re.compile(
    r"(?:\b(?:v|ver|version|release|revision|build|section|chapter|firmware|python|oid)|版本号?|版|第|[=<>~!]=|§)"
    r"\s*(?:number|no\.?|is|为|是)?\s*[.:：=]?\s*$",
    re.IGNORECASE,
)


def find(text: str) -> list[Span]:
    """Return all personal data in the text, in order, without overlaps."""
    taken: list[Span] = []
    for kind in KINDS:
        for start, end in FINDERS[kind](text):
            if not any(start < span.end and span.start < end for span in taken):
                taken.append(Span(kind, start, end))
    return sorted(taken, key=lambda span: span.start)


def _emails(text: str) -> Iterator[tuple[int, int]]:
    return (match.span() for match in EMAIL.finditer(text))


# The validators are imported where they are used: their number tables take longer to load than a recipe to check.


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    match = IBAN.search(text)
    while match:
        end = _iban_end(match[0])
        if end:
            yield match.start(), match.start() + end
        match = IBAN.search(text, match.start() + (end or 4))


def _iban_end(text: str) -> int:
    """Return where the longest valid IBAN at the beginning of the text ends, or 0: words in capitals may follow it."""
    from stdnum import iban

    # ISO 7064: letters count 10 to 35, the first four characters go to the end, and the rest by 97 is 1.
    head = int("".join(str(int(character, 36)) for character in text[:4]))
    body, ends = 0, []
    for end, character in enumerate(text[4:], 5):
        if character == " ":
            continue
        code = int(character, 36)
        body = (body * (10 if code < 10 else 100) + code) % 97
        if (body * 10**6 + head) % 97 == 1:
            ends.append(end)
    return next((end for end in reversed(ends) if iban.is_valid(text[:end])), 0)


def _resident_ids(text: str) -> Iterator[tuple[int, int]]:
    from stdnum.cn import ric

    return (match.span() for match in CN_ID.finditer(text) if ric.is_valid(match[0].upper()))


def _cards(text: str) -> Iterator[tuple[int, int]]:
    from stdnum import luhn

    for match in CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if 13 <= len(digits) <= 19 and len(set(digits)) > 1 and luhn.is_valid(digits):
            yield match.span()


def _social_security(text: str) -> Iterator[tuple[int, int]]:
    from stdnum.us import ssn

    return (match.span() for match in SSN.finditer(text) if ssn.is_valid(match[0]))


def _phones(text: str) -> Iterator[tuple[int, int]]:
    for pattern, region in PHONES:
        for match in pattern.finditer(text):
            # Behind an international number may stand another: what is left without its last groups is tried too.
            value = match[0]
            while value and not _in_plan(value, region):
                value = value.rpartition(" ")[0] if region is None else ""
            if value:
                yield match.start(), match.start() + len(value)


def _in_plan(value: str, region: str | None) -> bool:
    import phonenumbers

    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(value, region)))
    except phonenumbers.NumberParseException:
        return False


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    for match in IPV4.finditer(text):
        if _is_address(match[0]) and not NUMBERING.search(text[max(0, match.start() - 24) : match.start()]):
            yield match.span()
    for match in IPV6.finditer(text):
        groups = [group for group in match[0].split(":") if group]
        # `1::2` is a slice, `fe80::1` an address.
        if _is_address(match[0]) and (len(groups) > 2 or len(groups[0]) > 2):
            yield match.span()


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


FINDERS: dict[Kind, Callable[[str], Iterator[tuple[int, int]]]] = {
    "email": _emails,
    "iban": _ibans,
    "cn_id": _resident_ids,
    "bank_card": _cards,
    "us_ssn": _social_security,
    "phone": _phones,
    "ip": _addresses,
}
