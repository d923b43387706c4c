"""A trace source of our own for tests: what is said here is what comes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from catena.core.trace import Trace


@dataclass
class Planted:
    """Traces in the order in which they were rated."""

    said: list[Trace] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)

    def __call__(self, root: Any, folder: Any) -> Planted:
        return self

    def rated(self, since: int, limit: int | None = None) -> tuple[list[Trace], int]:
        found = self.said[since:][:limit]
        newest = {one.id: one for one in found}
        return list(newest.values()), since + len(found)

    def window(self, since: datetime | None, until: datetime | None) -> Iterator[Trace]:
        for one in self.said:
            at = datetime.fromisoformat(one.time)
            if (since is None or at >= since) and (until is None or at < until):
                yield one

    def destroyed(self, keys: Iterable[str]) -> set[str]:
        return set(keys) & self.gone


def trace(id: str, asked: str = "", answer: str = "", **fields: Any) -> Trace:
    """A good one, but for what is said otherwise."""
    texts = {"messages": (("user", asked or f"What is number {id}?"),), "answer": answer or f"Number {id} is {id * 3}."}
    told = {"status": 200, "rating": "up", "consent": True, "model": "m", "digest": "d" * 12, **fields}
    told.setdefault("time", f"2026-01-01T00:00:{int(id):02d}+00:00" if id.isdigit() else "2026-01-01T00:01:00+00:00")
    subject = told.pop("subject", "ada")
    return Trace(id=id, subject=f"tag-{subject}", key=f"key-{subject}", **{**texts, **told})
