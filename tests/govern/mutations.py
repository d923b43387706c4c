"""Ways to tamper with a segment, for the test and for `benchmarks/audit.py`."""

from __future__ import annotations

import random

from catena.govern.audit.record import frames

KINDS = ("flip", "drop", "swap", "add", "duplicate", "truncate", "cut", "replace")


def pieces_of(data: bytes) -> list[bytes]:
    """Return the segment's frames as bytes."""
    ends = [end for end, frame in frames(data) if frame is not None]
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def mutate(data: bytes, kind: str, draw: random.Random) -> tuple[bytes, str]:
    """Return the segment after one change, and what it was."""
    if kind == "flip":
        at, bit = draw.randrange(len(data)), 1 << draw.randrange(8)
        return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :], f"flip {bit} at {at}"
    if kind == "cut":
        at = draw.randrange(1, len(data))
        return data[:at], f"cut at {at}"
    pieces = pieces_of(data)
    count = len(pieces)
    one = draw.randrange(count)
    if kind == "drop":
        return b"".join(pieces[:one] + pieces[one + 1 :]), f"drop {one}"
    if kind == "swap":
        other = draw.choice([number for number in range(count) if number != one])
        pieces[one], pieces[other] = pieces[other], pieces[one]
        return b"".join(pieces), f"swap {one} {other}"
    if kind == "truncate":
        keep = draw.randrange(count)
        return b"".join(pieces[:keep]), f"truncate to {keep}"
    if kind == "duplicate":
        at = draw.randrange(count + 1)
        return b"".join([*pieces[:at], pieces[one], *pieces[at:]]), f"duplicate {one} at {at}"
    made = bytearray(pieces[one])  # a record of another: the right form, and other content
    made[52:-36] = draw.randbytes(len(made) - 88)
    if kind == "add":
        at = draw.randrange(count + 1)
        return b"".join([*pieces[:at], bytes(made), *pieces[at:]]), f"add at {at}"
    return b"".join([*pieces[:one], bytes(made), *pieces[one + 1 :]]), f"replace {one}"
