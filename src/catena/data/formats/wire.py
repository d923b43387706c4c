"""How a child that reads files talks to its parent: frames on a pipe, and pieces inside them. No pickle.

frame   kind (1 byte), length (8 bytes), payload
  R     ready to be asked
  B     begins a document (or archive): {number, member}
  P     pieces of it
  F     the document is finished
  E     the file is finished
piece   length of header (4 bytes), length of body (8 bytes), header (JSON), body (text in UTF-8, or bytes)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson

from catena.data.formats.pieces import EXCERPT, Piece, Reject

FRAME = struct.Struct(">cQ")
PIECE = struct.Struct(">IQ")
READY, BEGIN, PIECES, FINISHED, END = b"R", b"B", b"P", b"F", b"E"
DETAIL = 500


@dataclass(frozen=True, slots=True)
class Found:
    """A piece with the document that it is of, as the parent sees it."""

    body: bytes
    metadata: dict[str, Any]
    member: str
    format: str
    media_type: str = ""
    reason: str = ""
    detail: str = ""
    changed: tuple[str, ...] = ()


def pack(piece: Piece, member: str, format: str, media_type: str = "") -> bytes:
    """Encode a piece; raises `UnicodeEncodeError` or `orjson.JSONEncodeError` for what cannot be stored."""
    header: dict[str, Any] = {"member": plain(member), "format": format, "metadata": dict(piece.metadata)}
    if isinstance(piece, Reject):
        header |= {"reason": piece.reason, "detail": plain(piece.detail)[:DETAIL]}
        body = plain(piece.excerpt[:EXCERPT]).encode()
    else:
        header |= {"changed": piece.changed, "media_type": media_type}
        body = piece.body.encode() if isinstance(piece.body, str) else piece.body
    head = orjson.dumps(header)
    return PIECE.pack(len(head), len(body)) + head + body


def plain(text: str) -> str:
    """Return text in which what UTF-8 cannot hold is written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def unpack(stream: BinaryIO, length: int) -> Iterator[Found]:
    """Decode the pieces in the next `length` bytes of a stream."""
    end = stream.tell() + length
    while stream.tell() < end:
        head_size, body_size = PIECE.unpack(stream.read(PIECE.size))
        header = orjson.loads(stream.read(head_size))
        header["changed"] = tuple(header.get("changed", ()))
        yield Found(body=stream.read(body_size), **header)
