"""Numbers that stand for a person: accounts, cards, identity numbers, telephones. Part of `pii`, which see.

A pattern alone is wrong too often: an order number looks like a bank card. So whatever has a check digit must pass it,
cards must be in an issuer's range, telephone numbers in their country's plan, resident ids must hold a province and a
day of birth, and what the words before a number call an order is none of them.

Patterns use ASCII classes: in Chinese a number stands right behind a letter. The validators are imported where they are
used: their number tables take longer to load than a recipe to check.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from functools import lru_cache

Place = tuple[int, int]
"""Where a finding begins and ends."""

# Python's search leaps to the next digit only where a pattern begins with one: so what must not stand before it is
# asked behind it, `\d(?<!x\d)` for `(?<!x)\d`.
NOT_BEFORE, NOT_AFTER = r"\d(?<![0-9A-Za-z_.]\d)", r"(?![0-9A-Za-z_]|\.\d)"
# A number of digits that a dash or a slash ties to others is a part of something else.
ALONE_BEFORE, ALONE_AFTER = r"(?<![0-9A-Za-z_./=#-])", r"(?![0-9A-Za-z_]|[.-]\d)"

IBAN = re.compile(r"[A-Z](?<![A-Za-z0-9][A-Z])[A-Z]\d{2}(?: ?[A-Z0-9]){11,30}(?![a-z])")
CN_ID = re.compile(r"\d(?<![0-9A-Za-z]\d)\d{5}(?:([ -]?)(?:19|20)\d{6}\1\d{3}[0-9Xx]|\d{9})(?![0-9A-Za-z]|[.-]\d)")
SSN = re.compile(r"\d(?<![0-9A-Za-z-]\d)\d{2}([ -]?)\d{2}\1\d{4}(?![0-9A-Za-z-]|\.\d)")
CALLED_SSN = re.compile(r"(?:SSN|social security(?: number| no\.?)?|社会安全号码?)[\s:：=#是is]{0,6}$", re.IGNORECASE)
# Between other groups of digits, three groups with spaces are no number of their own.
SPACED_BEFORE, SPACED_AFTER = ALONE_BEFORE + r"(?<!\d )", ALONE_AFTER + r"(?! \d)"

# In one piece, in fours, as on the cards of American Express and Diners, and as banks in China print them.
CARD = re.compile(
    NOT_BEFORE
    + r"(?<!\d \d)(?:\d{12,18}|\d{3}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|(?<=3)\d{3}([ -])\d{6}\2\d{4,5}"
    + r"|\d{5} \d{10,13})"
    + NOT_AFTER
)
# ISO/IEC 7812 issuer ranges: (first, last, lengths). The last two are ICBC's and ABC's, older than UnionPay's 62.
ISSUERS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("4", "4", (16,)),
    ("51", "55", (16,)),
    ("2221", "2720", (16,)),
    ("34", "34", (15,)),
    ("37", "37", (15,)),
    ("300", "305", (14, 16)),
    ("36", "36", (14,)),
    ("38", "39", (14, 16)),
    ("3528", "3589", (16, 17, 18, 19)),
    ("6011", "6011", (16, 17, 18, 19)),
    ("60", "60", (16,)),
    ("62", "62", (16, 17, 18, 19)),
    ("644", "659", (16, 17, 18, 19)),
    ("67", "69", (16, 17, 18, 19)),
    ("2200", "2204", (16, 17, 18, 19)),
    ("9558", "9558", (16, 19)),
    ("95599", "95599", (19,)),
)

# What the patterns below are looked for in: to try each of them at every digit of a text takes ten times as long.
DIGITS = re.compile(r"\d[\d ().-]{6,}")
# Region None: the number says its country itself.
PHONES: tuple[tuple[re.Pattern[str], str | None], ...] = (
    (re.compile(r"(?<![0-9A-Za-z+])\+[1-9](?:[ ()-]{0,2}\d|\.\d(?=\d)){6,14}" + NOT_AFTER), None),
    (re.compile(SPACED_BEFORE + r"00[1-9](?:[ ()-]{0,2}\d){8,14}" + SPACED_AFTER), None),
    *(
        (re.compile(before + expression + after), region)
        for before, expression, after, region in (
            (ALONE_BEFORE, r"(?:86[ -]?)?1[3-9]\d(?:\d{8}|([ -])(?:\d{4}\1\d{4}|\d{3}\1\d{5}))", ALONE_AFTER, "CN"),
            (SPACED_BEFORE, r"(?:\(0\d{2,3}\) ?|0\d{2,3}[ -])(?:\d{7,8}|\d{3,4}[ -]\d{4})", SPACED_AFTER, "CN"),
            (SPACED_BEFORE, r"[48]00-\d{3}-?\d{4}", SPACED_AFTER, "CN"),
            (SPACED_BEFORE, r"(?:1[-. ])?(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-.]\d{4}", ALONE_AFTER, "US"),
            (SPACED_BEFORE, r"(?:1 )?\d{3} \d{3} \d{4}", SPACED_AFTER, "US"),
            (SPACED_BEFORE, r"(?:\(0\d{1,3}\) ?|0\d{1,3}-)\d{3,4}-\d{4}", SPACED_AFTER, "JP"),
            (SPACED_BEFORE, r"0\d{1,2}-\d{3,4}-\d{4}", SPACED_AFTER, "KR"),
            (SPACED_BEFORE, r"(?:\(0\d{2,4}\)|0\d{2,4}) \d{3,4} ?\d{3,4}", SPACED_AFTER, "GB"),
        )
    ),
)
LABEL = re.compile(
    r"(?:(?<![A-Za-z])(?:order|invoice|tracking|waybill|serial|ticket|transaction|batch|build|sku|isbn|imei"
    r"|uid|part|case|commit|hash|timestamp|ts|epoch)|订单|运单|快递单|单号|流水|序列|编号|货号|批次|批号|工单|发票|时间戳|注文|追跡|주문|송장)"
    r"\s*(?:numbers?|no\.?|nr\.?|id|code|#|号码?|番号|번호)?\s*[#:：=]?\s*(?:是|为|is|was|は|:)?\s*$",
    re.IGNORECASE,
)
BEFORE, AFTER = 24, 2
"""Characters before a number that may name it, and after it that may make it part of something else."""
SHORTEST = 7
"""Digits of a telephone number at least."""


def is_labelled(text: str, start: int) -> bool:
    """Tell whether the words before text[start] name what follows an order, a serial number or a timestamp."""
    return bool(LABEL.search(text[max(0, start - BEFORE) : start]))


def ibans(text: str) -> Iterator[Place]:
    """Yield the account numbers of ISO 13616 whose check digits are right."""
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


def resident_ids(text: str) -> Iterator[Place]:
    """Yield the resident ids of GB 11643: 18 digits with check digit, and the old form of 15 without one."""
    for match in CN_ID.finditer(text):
        number = match[0].replace(" ", "").replace("-", "").upper()
        if is_resident_id(number) and not is_labelled(text, match.start()):
            yield match.span()


def is_resident_id(number: str) -> bool:
    """Tell whether 15 or 18 digits are a resident id: a province, a day of birth, and the check digit or a county.

    The county is not asked of 18 digits: it may be younger than the person. 15 digits have no check digit to go by.
    """
    from stdnum.cn.ric import calc_check_digit

    if len(number) == 18:
        return number[-1] == calc_check_digit(number) and _is_day(number[6:14]) and bool(_region(number[:2]))
    return _is_day("19" + number[6:12]) and "county" in _region(number[:6])


def _is_day(digits: str) -> bool:
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:])) >= date(1900, 1, 1)
    except ValueError:
        return False


@lru_cache(maxsize=4096)
def _region(digits: str) -> frozenset[str]:
    from stdnum import numdb

    return frozenset(key for _, found in numdb.get("cn/loc").info(digits) for key in found)


def cards(text: str) -> Iterator[Place]:
    """Yield the bank cards: in an issuer's range, of its length, with the check digit of Luhn."""
    from stdnum import luhn

    for match in CARD.finditer(text):
        digits = match[0].replace(" ", "").replace("-", "")
        if in_issuer_range(digits) and luhn.is_valid(digits) and not is_labelled(text, match.start()):
            yield match.span()


def in_issuer_range(digits: str) -> bool:
    """Tell whether some issuer gives out numbers that begin like this and are as long."""
    return len(set(digits)) > 1 and any(
        first <= digits[: len(first)] <= last and len(digits) in lengths for first, last, lengths in ISSUERS
    )


def social_security(text: str) -> Iterator[Place]:
    """Yield the US social security numbers: grouped, or nine digits that are called one."""
    from stdnum.us import ssn

    for match in SSN.finditer(text):
        before, sign = text[max(0, match.start() - BEFORE) : match.start()], match[1]
        if (not sign and not CALLED_SSN.search(before)) or is_labelled(text, match.start()):
            continue
        if ssn.is_valid(match[0].replace(" ", "-")):
            yield match.span()


def phones(text: str) -> Iterator[Place]:
    """Yield the telephone numbers that are in their country's plan: with its code, or as in CN, US, JP, KR, GB."""
    for stretch in DIGITS.finditer(text):
        if sum(map(str.isdigit, stretch[0])) < SHORTEST:
            continue
        start = stretch.start() - (text[max(0, stretch.start() - 1)] in "+(")
        for pattern, region in PHONES:
            for match in pattern.finditer(text, start, stretch.end() + AFTER):
                if match[0].isdigit() and is_labelled(text, match.start()):
                    continue
                # Behind an international number may stand another: what is left without its last groups is tried too.
                value = match[0]
                while value and not is_in_plan(value, region):
                    value = value.rpartition(" ")[0] if region is None else ""
                if value:
                    yield match.start(), match.start() + len(value)


@lru_cache(maxsize=4096)
def is_in_plan(value: str, region: str | None) -> bool:
    """Tell whether a number is one that the numbering plan of its country gives out."""
    return bool(_e164(value, region))


def _e164(value: str, region: str | None) -> str:
    import phonenumbers

    if region is None and value.startswith("00"):
        value = "+" + value[2:]
    try:
        number = phonenumbers.parse(value, region)
    except phonenumbers.NumberParseException:
        return ""
    if not phonenumbers.is_valid_number(number):
        return ""
    return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))


def canonical_phone(value: str) -> str:
    """Return a number that `phones` found as +<country code><number>, so that one line has one spelling."""
    found = (_e164(value, region) for pattern, region in PHONES if pattern.fullmatch(value))
    return next((number for number in found if number), value)


def canonical_resident_id(value: str) -> str:
    """Return a resident id with 18 digits: the old form is the same person's, without century and check digit."""
    from stdnum.cn.ric import calc_check_digit

    number = value.replace(" ", "").replace("-", "").upper()
    if len(number) != 15:
        return number
    longer = f"{number[:6]}19{number[6:]}"
    return longer + str(calc_check_digit(longer + "0"))
