"""Reading the audit: entries by time, subject, kind, model or words, opened one after the other.

entries   all that fit, oldest first
newest    a page of them, newest first; the next page begins where this one ended, whatever was written since
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from catena.core.registry import require
from catena.govern.audit.log import Places
from catena.govern.audit.record import Frame, frames, frames_back, moment, opened
from catena.govern.audit.vault import Vault
from catena.govern.config import AuditConfig
from catena.govern.crypto import sealing_keys


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for; what is empty does not matter."""

    subject: str = ""
    text: str = ""
    """Words that stand anywhere in the entry, whatever their case."""
    kind: str = ""
    model: str = ""
    id: str = ""
    """Of the request: it and its answer have the same."""
    since: datetime | None = None
    until: datetime | None = None


def entries(root: Path, config: AuditConfig, query: Query = Query()) -> Iterator[dict[str, Any]]:
    """Yield entries, oldest first, with `seq` and `time`; one whose key was destroyed is `{"kind": "erased"}`."""
    places = Places(root, config)
    vault = Vault(places.subjects, partial(sealing_keys, root))
    invalid = require("cryptography.exceptions").InvalidTag
    wanted = vault.key_ids(query.subject) if query.subject else None
    for path in places.segment_files():
        if not _may_hold(path.stem, query) or path.stat().st_size == 0:
            continue
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for _, frame in frames(data):
                if frame is None:
                    break
                if (wanted is not None and frame.key not in wanted) or not _in_time(frame.time, query):
                    continue
                body = _opened(frame, vault, invalid)
                if _matches(body, query):
                    yield body


@dataclass(frozen=True, slots=True)
class Page:
    """Entries, newest first."""

    entries: tuple[dict[str, Any], ...]
    next: str
    """Where the older ones begin, for the next page; empty at the beginning of the audit."""
    looked: int
    """How many records were looked at."""
    until: str
    """Time of the oldest of them."""


def newest(
    root: Path,
    config: AuditConfig,
    query: Query = Query(),
    *,
    start: str = "",
    limit: int = 50,
    most: int = 20_000,
) -> Page:
    """Return at most `limit` entries from `start` (the `next` of the page before) on, newest first.

    After `most` records it stops and says where it stands, so that a search for what is rare ends.
    """
    places = Places(root, config)
    vault = Vault(places.subjects, partial(sealing_keys, root))
    invalid = require("cryptography.exceptions").InvalidTag
    wanted = vault.key_ids(query.subject) if query.subject else None
    day, _, place = start.partition(":")
    found: list[dict[str, Any]] = []
    looked, until = 0, ""
    for path in reversed(places.segment_files()):
        size = path.stat().st_size
        if (start and path.stem > day) or size == 0 or not _may_hold(path.stem, query):
            continue
        end = min(size, int(place)) if path.stem == day and place.isdigit() else size
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for at, frame in frames_back(data, end):
                looked += 1
                until = _time(frame)
                if (wanted is None or frame.key in wanted) and _in_time(frame.time, query):
                    body = _opened(frame, vault, invalid)
                    if _matches(body, query):
                        found.append(body)
                if len(found) >= limit or looked >= most:
                    return Page(tuple(found), f"{path.stem}:{at}", looked, until)
    return Page(tuple(found), "", looked, until)


def _opened(frame: Frame, vault: Vault, invalid: type[Exception]) -> dict[str, Any]:
    cipher = vault.cipher(frame.key)
    try:
        body = {"kind": "erased"} if cipher is None else opened(frame, cipher)
    except (invalid, ValueError):
        body = {"kind": "damaged"}
    return {"seq": frame.seq, "time": _time(frame), **body}


def _time(frame: Frame) -> str:
    at = moment(frame.time)
    return at.isoformat(timespec="milliseconds") if at else ""


def _may_hold(day: str, query: Query) -> bool:
    after = query.since is None or day >= query.since.astimezone(UTC).strftime("%Y-%m-%d")
    return after and (query.until is None or day <= query.until.astimezone(UTC).strftime("%Y-%m-%d"))


def _in_time(microseconds: int, query: Query) -> bool:
    at = microseconds / 1e6
    return (query.since is None or at >= query.since.timestamp()) and (
        query.until is None or at < query.until.timestamp()
    )


def _matches(body: dict[str, Any], query: Query) -> bool:
    for name in ("kind", "model", "id"):
        wanted = getattr(query, name)
        if wanted and body.get(name) != wanted:
            return False
    return not query.text or query.text.casefold() in _words(body).casefold()


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(_words(inner) for inner in value.values())
    if isinstance(value, list):
        return "\n".join(_words(inner) for inner in value)
    return str(value)
