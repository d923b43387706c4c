"""Reading the audit: entries by time, subject, kind, model or words, opened one after the other."""

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
from catena.govern.audit.record import frames, moment, opened
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
                at = moment(frame.time)
                place = {"seq": frame.seq, "time": at.isoformat(timespec="milliseconds") if at else ""}
                cipher = vault.cipher(frame.key)
                try:
                    body = {"kind": "erased"} if cipher is None else opened(frame, cipher)
                except (invalid, ValueError):
                    body = {"kind": "damaged"}
                if _matches(body, query):
                    yield {**place, **body}


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
