"""Server-sent events: framing, and headers that keep proxies from collecting the pieces."""

from __future__ import annotations

from typing import Any

import orjson

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
DONE = b"data: [DONE]\n\n"


def event(value: Any, name: str = "") -> bytes:
    """Return one event, with a name where it has one; JSON has no raw line end, so one `data:` line is enough."""
    head = b"event: " + name.encode() + b"\n" if name else b""
    return head + b"data: " + orjson.dumps(value) + b"\n\n"
