"""One record of the audit as bytes, and the chain. No I/O.

    0      4        8     16     24       40      52                      52+n     84+n     88+n
    | CTA1 | length | seq | time | key id | nonce | sealed (n = length) | link   | total |

`link` is SHA-256(link before || the first 52 bytes || sealed), so the chain covers ciphertext and anybody can check it.
`time` is in microseconds, `total` the frame's length, for reading backwards. The first 52 bytes are authenticated by
AES-GCM too: a sealed text cannot be moved to another place.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from catena.govern.crypto import NONCE_BYTES

MAGIC = b"CTA1"
HEAD = struct.Struct(">4sIQQ16s12s")
TAIL = struct.Struct(">32sI")
OVERHEAD = HEAD.size + TAIL.size
GENESIS = bytes(32)
LARGEST = 64 << 20
SMALL = 3000
# What nearly every record says: without it a record of a few hundred bytes hardly shrinks.
DICTIONARY = (
    b'"decision":"refused","reason":"text":"content":"messages":[{"role":"system","content":"You are a helpful "'
    b'"assistant."},{"role":"user","content":"{"role":"assistant","content":"],"temperature":0.7,"max_tokens":,"stream":true}'
    b'"decisions":[],"cut":false,"ms":"bytes":{"kind":"answer","id":"status":200,{"kind":"request","id":"action":'
    b'"infer","client":"127.0.0.1","key":"role":"user","subject":"model":"method":"POST","path":"/v1/chat/completions","body":"'
)


@dataclass(frozen=True, slots=True)
class Frame:
    """A record as it is stored."""

    seq: int
    time: int
    """Microseconds since 1970, UTC."""
    key: bytes
    """Id of the data key."""
    nonce: bytes
    sealed: bytes
    link: bytes

    @property
    def head(self) -> bytes:
        """The bytes before the sealed text, which are authenticated with it."""
        return HEAD.pack(MAGIC, len(self.sealed), self.seq, self.time, self.key, self.nonce)


def moment(microseconds: int) -> datetime | None:
    """Return a record's time; None for what is no time any more, as in a record that was changed."""
    try:
        return datetime.fromtimestamp(microseconds / 1e6, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def day_of(microseconds: int) -> str:
    """Return the day that a record's segment is named by."""
    at = moment(microseconds)
    return at.strftime("%Y-%m-%d") if at is not None else ""


def pack(body: bytes) -> bytes:
    """Return an entry's JSON as few bytes."""
    # A small one needs no large window, and to clear that costs more than to compress.
    deflate = zlib.compressobj(1, zlib.DEFLATED, *((-12, 6) if len(body) <= SMALL else (-15, 9)), zdict=DICTIONARY)
    return deflate.compress(body) + deflate.flush()


def unpack(data: bytes) -> dict[str, Any]:
    """Return the entry of `pack`."""
    inflate = zlib.decompressobj(-15, zdict=DICTIONARY)
    body: dict[str, Any] = orjson.loads(inflate.decompress(data) + inflate.flush())
    return body


def link_of(before: bytes, head: bytes, sealed: bytes) -> bytes:
    """Return a frame's link."""
    digest = hashlib.sha256(before)
    digest.update(head)
    digest.update(sealed)
    return digest.digest()


def sealed_frame(packed: bytes, seq: int, time: int, key: tuple[bytes, Any], before: bytes) -> tuple[bytes, bytes]:
    """Return a frame's bytes and its link; `packed` is the entry (`pack`), `key` the id and the cipher."""
    nonce = os.urandom(NONCE_BYTES)
    head = HEAD.pack(MAGIC, len(packed) + 16, seq, time, key[0], nonce)
    sealed = key[1].encrypt(nonce, packed, head)
    link = link_of(before, head, sealed)
    return head + sealed + TAIL.pack(link, OVERHEAD + len(sealed)), link


def opened(frame: Frame, cipher: Any) -> dict[str, Any]:
    """Return the entry of a frame; raises cryptography's `InvalidTag` where it is not what was sealed."""
    return unpack(cipher.decrypt(frame.nonce, frame.sealed, frame.head))


def frames(data: Any, start: int = 0, end: int | None = None) -> Iterator[tuple[int, Frame | None]]:
    """Yield (end offset, frame) of a segment's bytes; (offset, None) where there is no whole frame any more."""
    at, stop = start, len(data) if end is None else end
    while at < stop:
        frame = frame_at(data, at, stop)
        if frame is None:
            yield at, None
            return
        at += OVERHEAD + len(frame.sealed)
        yield at, frame


def frames_back(data: Any, end: int) -> Iterator[tuple[int, Frame]]:
    """Yield (start offset, frame) of the records that end at `end` or before it, the newest first.

    Over what is no record it does not leap: the records before it are then found from the segment's beginning, up to
    the first damage.
    """
    at = end
    while at >= OVERHEAD:
        start = at - TAIL.unpack_from(data, at - TAIL.size)[1]
        frame = frame_at(data, start, at) if 0 <= start < at else None
        if frame is None:
            starts, begin = [], 0
            for stop, whole in frames(data, 0, at):
                if whole is not None:
                    starts.append(begin)
                begin = stop
            for begin in reversed(starts):
                found = frame_at(data, begin, at)
                assert found is not None, "it was whole a moment ago, and records do not change"
                yield begin, found
            return
        yield start, frame
        at = start


def frame_at(data: Any, at: int, stop: int) -> Frame | None:
    """Return the frame at an offset, None where there is no whole one."""
    if at + OVERHEAD > stop:
        return None
    magic, length, seq, time, key, nonce = HEAD.unpack_from(data, at)
    if magic != MAGIC or length > LARGEST or at + OVERHEAD + length > stop:
        return None
    body = at + HEAD.size
    link, total = TAIL.unpack_from(data, body + length)
    if total != OVERHEAD + length:
        return None
    return Frame(seq, time, key, nonce, bytes(data[body : body + length]), link)
