"""The deny-list of erased rows: what a crawl or a re-run must not bring back.

A row is known again by its id, by the id of a row that it was made from, or by its data: of these only a keyed hash is
kept (HMAC-SHA256 with a key of the workspace), so that the list itself tells nothing about a person.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from catena.core.sample import Sample
from catena.hub.files import write_atomically

REASON = "erased"


@dataclass(frozen=True, slots=True)
class DenyList:
    """Ids and marks of erased rows."""

    ids: frozenset[str]
    marks: frozenset[str]
    key: bytes

    def holds(self, sample: Sample) -> bool:
        """Tell whether a sample is an erased row, was made from one, or has the same data."""
        if sample.id in self.ids or not self.ids.isdisjoint(sample.parents):
            return True
        return mark_of(sample.data, self.key) in self.marks


def deny_key(root: Path) -> bytes:
    """Return the workspace's key for marks; it is made, for this user's eyes only, when it is first asked for."""
    path = root / "keys" / "deny.key"
    if not path.exists():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomically(path, os.urandom(32), mode=0o600)
    return path.read_bytes()


def mark_of(data: Mapping[str, Any], key: bytes) -> str:
    """Return the keyed hash of a row's data, in hexadecimal."""
    line = orjson.dumps(data, option=orjson.OPT_SORT_KEYS, default=_bytes_as_digest)
    return hmac.new(key, line, hashlib.sha256).hexdigest()


def blank(sample: Sample) -> Sample:
    """Return what may be kept of an erased row: its id, and nothing that was in it."""
    empty = {
        name: b"" if isinstance(value, bytes) else [] if isinstance(value, list) else ""
        for name, value in sample.data.items()
    }
    return replace(sample, data=empty, metadata={}, source="", license=None, parents=())


def _bytes_as_digest(value: Any) -> str:
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    raise TypeError(f"{type(value).__name__} is not a column type")
