"""What the gateway does with users' feedback: a release that is under way hears of it, and it is counted.

Drift that `catena drift report` found stands in the workspace and is told with the other metrics.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from starlette.middleware import Middleware

from catena.core.errors import NotFound
from catena.serve.gateway.meters import Counter
from catena.serve.middleware.feedback import books

if TYPE_CHECKING:
    from catena.govern.feedback.book import Book
    from catena.serve.releases.manager import Releases


class Opinions:
    """The books of feedback in front of a gateway: none, or one."""

    def __init__(self, middleware: Sequence[Middleware], releases: Releases) -> None:
        self._books: list[Book] = books(middleware)
        for book in self._books:
            book.listeners.append(_heard_by(releases))

    def families(self) -> list[Counter]:
        """Return what is counted, for `/metrics`."""
        told = Counter("catena_gateway_feedback", "Answers by what was said of them.", ("model", "rating"), "gauge")
        drift = Counter("catena_drift", "Drift by the newest report: PSI or KS.", ("feature", "measure"), "gauge")
        alarm = Counter("catena_drift_alarm", "1 where the newest report found drift.", ("feature",), "gauge")
        for book in self._books:
            for (model, rating), count in book.counts().items():
                told.put(model, rating, to=count)
            with suppress(OSError, ValueError, KeyError, TypeError):
                newest = json.loads((book.root / "drift" / "latest.json").read_bytes())
                for feature, found in newest["features"].items():
                    drift.put(feature, found["measure"], to=float(found["value"]))
                    alarm.put(feature, to=float(found["verdict"] == "drift"))
        return [family for family in (told, drift, alarm) if family.values]


def _heard_by(releases: Releases) -> Callable[[str, bool], None]:
    def heard(request: str, good: bool) -> None:
        with suppress(NotFound):  # of no release
            releases.like(request, good)

    return heard
