"""The lines of the PII benchmark: Chinese and English sentences, each with one value that is personal data or looks so.

The values are made from the specifications, with check digits of their own making, and without the code under test.
"""

from __future__ import annotations

import random
import string
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address


@dataclass(frozen=True)
class Line:
    """A sentence `before + value + after`; `kind` is empty where the value is not personal data."""

    group: str
    kind: str
    before: str
    value: str
    after: str

    @property
    def text(self) -> str:
        """The sentence."""
        return self.before + self.value + self.after


SENTENCES = [
    ("Please use {} before Friday.", "I noted {} in the file, as we agreed."),
    ("The record shows {}, which nobody had changed.", "{}"),
    ("Last seen: {}", "We got {} and then nothing more."),
    ("请在周五之前使用{}。", "我们在文件里记下了{}，没有人改过。"),
    ("最后一次看到的是{}，之后就没有了。", "资料：{}（已核对）"),
    ("他说{}是对的", "备注 {} 请查收"),
]
FULL_WIDTH = {ord(letter): ord(letter) + 0xFEE0 for letter in string.digits}


def digits(rng: random.Random, count: int) -> str:
    """Return so many random digits."""
    return "".join(rng.choices(string.digits, k=count))


def luhn_digit(number: str) -> str:
    """Return the check digit that makes number + digit pass Luhn's test."""
    total = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return str(-total % 10)


def resident_digit(number: str) -> str:
    """Return the check digit of GB 11643 (ISO 7064 MOD 11-2) for 17 digits."""
    weights = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2]
    rest = sum(weight * int(digit) for weight, digit in zip(weights, number, strict=True)) % 11
    return "10X98765432"[rest]


def iban_digits(country: str, account: str) -> str:
    """Return the two check digits of ISO 13616."""
    number = "".join(str(int(letter, 36)) for letter in account + country + "00")
    return f"{98 - int(number) % 97:02}"


def other_digit(rng: random.Random, right: str) -> str:
    """Return a wrong check digit."""
    return rng.choice([digit for digit in string.digits if digit != right])


# -- personal data ---------------------------------------------------------------------------------------------------


def email(rng: random.Random) -> str:
    name = rng.choice(
        ["li.wei", "jane_doe", "zhang3", "a", "m.o'x".replace("'", ""), "bob+news", "x-y", "team%a", "13812345678"]
    )
    host = rng.choice(
        ["163.com", "qq.com", "mail.acme.co.uk", "uni-bonn.de", "a1.io", "corp.example-firm.net", "gmail.com"]
    )
    value = f"{name}{rng.choice(['', digits(rng, 2)])}@{host}"
    return rng.choice([value, value, value.upper(), value.replace("@", "＠")])


def chinese_mobile(rng: random.Random) -> str:
    number = rng.choice(["130", "135", "138", "139", "150", "158", "166", "176", "186", "188", "199"]) + digits(rng, 8)
    a, b, c = number[:3], number[3:7], number[7:]
    forms = [
        number,
        number,
        f"{a}-{b}-{c}",
        f"{a} {b} {c}",
        f"+86 {a} {b} {c}",
        f"+86{number}",
        f"86-{number}",
        f"+86-{number}",
        f"(+86){number}"[1:].replace(")", " "),
        number.translate(FULL_WIDTH),
        f"{a}–{b}–{c}",
    ]
    return rng.choice(forms)


def other_phone(rng: random.Random) -> str:
    us = f"{rng.choice(['212', '415', '650', '312', '206'])}", f"{rng.randint(200, 999)}", digits(rng, 4)
    if us[1].endswith("11") or us[1] == "555":
        us = us[0], "253", us[2]
    tail = digits(rng, 4)
    return rng.choice(
        [
            f"({us[0]}) {us[1]}-{us[2]}",
            f"{us[0]}-{us[1]}-{us[2]}",
            f"{us[0]}.{us[1]}.{us[2]}",
            f"+1 {us[0]} {us[1]} {us[2]}",
            f"1-{us[0]}-{us[1]}-{us[2]}",
            f"{us[0]} {us[1]} {us[2]}",
            f"+44 20 7946 {tail}",
            f"020 7946 {tail}",
            f"+49 30 9018{tail}",
            f"010-6234{tail}",
            f"021-5888{tail}",
            f"(010) 6234{tail}",
            f"0755-2671{tail}",
            f"+81 3-3541-{tail}",
            f"090-3541-{tail}",
            f"03-3541-{tail}",
            f"+82 10-4541-{tail}",
            f"010-4541-{tail}",
            f"+33 1 42 68 {tail[:2]} {tail[2:]}",
            f"0086 139 1234 {tail}",
        ]
    )


def social_security(rng: random.Random) -> str:
    area = rng.choice([number for number in range(1, 900) if number != 666])
    parts = f"{area:03}", f"{rng.randint(1, 99):02}", f"{rng.randint(1, 9999):04}"
    return rng.choice(["-", "-", " "]).join(parts)


def resident_id(rng: random.Random) -> str:
    body = rng.choice(["110105", "310104", "440305", "510107", "330106", "420111", "610113"])
    day = f"{rng.randint(1930, 2015)}{rng.randint(1, 12):02}{rng.randint(1, 28):02}"
    if rng.random() < 0.15:
        return f"{body}{rng.randint(30, 99)}{day[4:]}{digits(rng, 3)}"
    number = body + day + digits(rng, 3)
    number += resident_digit(number)
    return rng.choice(
        [number, number, number.lower(), number.translate(FULL_WIDTH), f"{number[:6]} {number[6:14]} {number[14:]}"]
    )


CARDS = [
    ("4", 16),
    ("51", 16),
    ("55", 16),
    ("2345", 16),
    ("37", 15),
    ("34", 15),
    ("36", 14),
    ("6011", 16),
    ("65", 16),
    ("3530", 16),
    ("622202", 19),
    ("621700", 19),
    ("625965", 16),
    ("955880", 19),
]


def card(rng: random.Random, *, right: bool = True) -> str:
    head, length = rng.choice(CARDS)
    number = head + digits(rng, length - len(head) - 1)
    digit = luhn_digit(number)
    number += digit if right else other_digit(rng, digit)
    if length == 15:
        return rng.choice([number, f"{number[:4]} {number[4:10]} {number[10:]}"])
    if length == 14:
        return rng.choice([number, f"{number[:4]} {number[4:10]} {number[10:]}"])
    fours = [number[place : place + 4] for place in range(0, length, 4)]
    return rng.choice([number, " ".join(fours), "-".join(fours)])


def iban(rng: random.Random, *, right: bool = True) -> str:
    country, bank, count = rng.choice(
        [("DE", "", 18), ("GB", "WEST", 14), ("FR", "", 23), ("NL", "ABNA", 10), ("ES", "", 20)]
    )
    account = bank + digits(rng, count)
    check = iban_digits(country, account)
    if country in ("FR", "ES"):  # these have check digits of the country's own inside
        country, account = "DE", digits(rng, 18)
        check = iban_digits(country, account)
    if not right:
        check = f"{(int(check) + rng.randint(1, 90)) % 97 + 2:02}" if int(check) < 90 else "13"
        if check == iban_digits(country, account):
            check = f"{int(check) - 1:02}"
    number = country + check + account
    return rng.choice([number, " ".join(number[place : place + 4] for place in range(0, len(number), 4))])


def ip(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return str(IPv6Address((0x2001_4860 << 96) | rng.getrandbits(rng.choice([16, 64, 96]))))
    while True:
        address = IPv4Address(rng.getrandbits(32))
        if address.is_global and not address.is_multicast:
            return str(address) + rng.choice(["", "", ":8080", "/24"])


# -- what only looks like it -----------------------------------------------------------------------------------------


def version(rng: random.Random) -> str:
    number = ".".join(str(rng.randint(0, 30)) for _ in range(rng.choice([3, 4, 4])))
    lead = [
        "version ",
        "v",
        "Chrome/",
        "release ",
        "==",
        "版本",
        "版本号：",
        "firmware ",
        "driver-",
        "python ",
        ">= ",
        "升级到",
    ]
    return rng.choice(lead) + number


def order(rng: random.Random) -> str:
    lead = [
        "order ",
        "order number ",
        "Order #",
        "invoice no. ",
        "tracking: ",
        "订单号",
        "订单号：",
        "流水号 ",
        "运单号:",
        "编号",
        "SN",
    ]
    return rng.choice(lead) + rng.choice("123456789") + digits(rng, rng.choice([8, 10, 10, 12, 14, 15, 17]))


def eleven_digits(rng: random.Random) -> str:
    return rng.choice(["10", "11", "12", "20", "31", "47", "58", "69", "77", "99"]) + digits(rng, 9)


def timestamp(rng: random.Random) -> str:
    seconds = rng.randint(1_400_000_000, 1_790_000_000)
    day = f"{rng.randint(1990, 2029)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    clock = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:{rng.randint(0, 59):02}"
    return rng.choice(
        [
            f"{seconds}",
            f"{seconds}{digits(rng, 3)}",
            f"{seconds}{digits(rng, 6)}",
            f"{seconds}.{digits(rng, 6)}",
            f"{day} {clock}",
            f"{day}T{clock}.{digits(rng, 6)}Z",
            (day + clock).replace("-", "").replace(":", ""),
        ]
    )


def wrong_resident_id(rng: random.Random) -> str:
    number = f"110105{rng.randint(1930, 2015)}{rng.randint(1, 12):02}{rng.randint(1, 28):02}{digits(rng, 3)}"
    return number + other_digit(rng, resident_digit(number))


def hash_value(rng: random.Random) -> str:
    return rng.choice(
        [
            f"{rng.getrandbits(128):032x}",
            f"{rng.getrandbits(160):040x}",
            f"{rng.getrandbits(256):064x}",
            str(uuid.UUID(int=rng.getrandbits(128), version=4)),
            f"{rng.getrandbits(28):07x}",
        ]
    )


def decimal(rng: random.Random) -> str:
    return rng.choice(
        [
            f"0.{digits(rng, 11)}",
            f"3.{digits(rng, 16)}",
            f"{rng.uniform(-90, 90):.6f}, {rng.uniform(-180, 180):.6f}",
            f"{rng.randint(10**10, 10**11):,}",
            f"{rng.randint(1, 99)}.{digits(rng, 2)}%",
            f"-{digits(rng, 5)}.{digits(rng, 4)}",
        ]
    )


def invalid_security(rng: random.Random) -> str:
    return f"{rng.choice(['000', '666', '9' + digits(rng, 2)])}-{rng.randint(1, 99):02}-{rng.randint(1, 9999):04}"


def syntax(rng: random.Random) -> str:
    groups = [f"{rng.getrandbits(8):02x}" for _ in range(8)]
    return rng.choice(
        [
            ":".join(groups[:6]),
            ":".join(groups),
            "a[1::2]",
            "std::vector",
            "@property",
            "icon@2x.png",
            "@types/node@18.2.1",
            "git@github.com:acme/tool.git",
            "1.3.6.1.4.1.311",
            "256.1.1.300",
            "978-7-111-40701-0",
            "192/168/1/1",
            f"{digits(rng, 4)}-{digits(rng, 4)}",
            "user@localhost",
            f"#{digits(rng, 6)}",
            f"0x{digits(rng, 12)}",
            f"abc{digits(rng, 11)}",
            f"{digits(rng, 11)}kb",
            f"Nr. {digits(rng, 7)}",
        ]
    )


def long_number(rng: random.Random) -> str:
    """Return 13 to 19 random digits that nothing names: some pass every check by chance."""
    return rng.choice("123456789") + digits(rng, rng.randint(12, 18))


POSITIVE: dict[str, tuple[str, Callable[[random.Random], str]]] = {
    "e-mail": ("email", email),
    "phone, Chinese mobile": ("phone", chinese_mobile),
    "phone, other": ("phone", other_phone),
    "US social security": ("us_ssn", social_security),
    "Chinese resident id": ("cn_id", resident_id),
    "bank card": ("bank_card", card),
    "IBAN": ("iban", iban),
    "IP address": ("ip", ip),
}
NEGATIVE: dict[str, Callable[[random.Random], str]] = {
    "version number": version,
    "order number": order,
    "11 digits, no phone": eleven_digits,
    "timestamp": timestamp,
    "resident id, wrong check digit": wrong_resident_id,
    "card, wrong check digit": lambda rng: card(rng, right=False),
    "IBAN, wrong check digits": lambda rng: iban(rng, right=False),
    "invalid social security": invalid_security,
    "hash": hash_value,
    "decimal": decimal,
    "code and files": syntax,
    "long number, unnamed": long_number,
}


def lines(seed: int, each: int) -> Iterator[Line]:
    """Yield `each` lines of every group."""
    rng = random.Random(seed)
    makers = [(group, kind, make) for group, (kind, make) in POSITIVE.items()]
    makers += [(group, "", make) for group, make in NEGATIVE.items()]
    for _ in range(each):
        for group, kind, make in makers:
            before, after = rng.choice(rng.choice(SENTENCES)).split("{}")
            value, rest = make(rng), ""
            if kind == "ip":  # port and prefix length are not part of the address
                for sign in (":8080", "/24"):
                    if "." in value and value.endswith(sign):
                        value, rest = value.removesuffix(sign), sign
            yield Line(group, kind, before, value, rest + after)
