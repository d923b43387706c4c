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


def event(value: Any) -> bytes:
    """Return one event; JSON has no raw line end, so one `data:` line is enough."""
    return b"data: " + orjson.dumps(value) + b"\n\n"
