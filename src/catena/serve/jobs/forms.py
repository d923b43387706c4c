"""What the routes of files and batches take and give: bodies, pages, names of files. No I/O."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from starlette.datastructures import QueryParams

from catena.serve.wire import Given, Part, WireError

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
WINDOW = re.compile(r"(\d{1,6})(s|m|h|d)")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST_S = 7 * 86400
MOST = 100
LONGEST_NAME = 255
"""In bytes."""

Metadata = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]


class ExpiresAfter(Part):
    """When a file goes by itself."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2592000)


class BatchRequest(Given):
    """The body of `POST /v1/batches`."""

    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    input_file_id: str = Field(max_length=64)
    endpoint: str
    completion_window: str
    metadata: Metadata = Field(default_factory=dict, max_length=16)
    output_expires_after: ExpiresAfter | None = None

    def check(self) -> None:
        """Raise `WireError` for what makes no sense."""
        if self.endpoint not in ENDPOINTS:
            message = f"endpoint must be one of {', '.join(ENDPOINTS)}"
            raise WireError(message, param="endpoint", code="invalid_endpoint")
        match = WINDOW.fullmatch(self.completion_window)
        if not match or not 0 < self.seconds <= LONGEST_S:
            message = "completion_window must be like 24h: a number with s, m, h or d, at most 7d"
            raise WireError(message, param="completion_window", code="invalid_value")

    @property
    def seconds(self) -> int:
        """How long the batch may take."""
        match = WINDOW.fullmatch(self.completion_window)
        return int(match[1]) * UNITS[match[2]] if match else 0


def limit_of(query: QueryParams, default: int = 20, most: int = MOST) -> int:
    """Return how many entries of a list are asked for."""
    text = query.get("limit", str(default))
    if not text.isdecimal() or not 1 <= int(text[:9]) <= most:
        raise WireError(f"limit must be a number from 1 to {most}", param="limit", code="invalid_value")
    return int(text)


def known_only(query: QueryParams, known: Sequence[str]) -> None:
    """Raise `WireError` for a parameter that is not known."""
    if unknown := sorted(set(query) - set(known)):
        raise WireError(f"unknown parameter: {unknown[0]}", param=unknown[0], code="unknown_parameter")


def page(entries: Sequence[Mapping[str, Any]], limit: int) -> dict[str, Any]:
    """Return a list as OpenAI gives it; `entries` may hold one more than were asked for."""
    shown = entries[:limit]
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return {"object": "list", "data": list(shown), **ends, "has_more": len(entries) > limit}


def plain_name(given: str) -> str:
    """Return the last part of a file's name, without what no name may have. It names nothing on our disk."""
    name = given.replace("\\", "/").rpartition("/")[2]
    name = "".join(one for one in name if unicodedata.category(one)[0] != "C").strip().strip(".").strip()
    while len(name.encode("utf-8", "replace")) > LONGEST_NAME:
        name = name[:-1]
    return name or "file"


def attachment(name: str) -> str:
    """Return the header that names a download: ASCII, and the whole name in the form of RFC 5987."""
    from urllib.parse import quote

    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
