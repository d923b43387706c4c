"""What was served, as those who learn from it see it: one question, its answer, and what the user thought of it.

Domains never import each other: `data` makes datasets of what `govern` has written down. It asks for a source of traces
by name, as moderation asks for detectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

from catena.core.registry import Registry

Rating = Literal["up", "down", ""]


@dataclass(frozen=True, slots=True)
class Trace:
    """One request and its answer. What the person wrote is as it came: nothing is masked yet."""

    id: str
    time: str
    """When it was asked, ISO 8601, UTC."""
    subject: str
    """A keyed hash of whose it is, never the name."""
    key: str
    """Id of the data key that seals it: destroyed, the trace must not be learnt from."""
    model: str = ""
    """The name that was asked for."""
    digest: str = ""
    """What the weights were that answered, as far as the answer says it."""
    messages: tuple[tuple[str, str], ...] = ()
    """(role, text) of the question, in their order."""
    answer: str = ""
    status: int = 0
    ms: float = 0.0
    finish: str = ""
    """Why the answer ended: stop, length, content_filter."""
    decisions: tuple[Mapping[str, Any], ...] = ()
    """What moderation decided about it."""
    problem: str = ""
    """Why its text cannot be used: `not_text`, `many_choices`, `too_large`, `missing`, `cut`; empty where it can."""
    rating: Rating = ""
    correction: str = ""
    """What the user says that the answer should have been."""
    consent: bool | None = None
    """Whether the user lets it be learnt from; None where nobody was asked."""


class TraceSource(Protocol):
    """Where traces come from."""

    def rated(self, since: int, limit: int | None = None) -> tuple[list[Trace], int]:
        """Return the traces whose feedback is new or changed since a cursor (0: all), in its order, and the next."""
        ...

    def window(self, since: datetime | None, until: datetime | None) -> Iterator[Trace]:
        """Yield all traces of a time, oldest first."""
        ...

    def destroyed(self, keys: Iterable[str]) -> set[str]:
        """Return those of these data keys that exist no more: their subjects asked to be forgotten."""
        ...


TRACES = Registry("trace source", {"audit": "catena.govern.feedback.traces:AuditTraces"})
