"""The log of a run: what its steps said, when they began and ended; searched, and cut to the newest lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from catena.console.read.events import Followed

LEVELS = {"failed": "error", "cancelled": "warning", "interrupted": "warning"}
HIDDEN = ("at", "event", "step", "message", "config")


@dataclass(frozen=True)
class LogLine:
    """One line."""

    at: datetime
    step: str
    kind: str
    """Of the event: `log`, `step`, `fact`, `start`, `report`."""
    text: str
    level: str = "info"
    """`error` or `warning` for a step that ended badly."""


@dataclass(frozen=True)
class Log:
    """The newest lines that were asked for, oldest first, and how many there are in all."""

    lines: tuple[LogLine, ...]
    total: int


def log_of(followed: Followed, *, search: str = "", step: str = "", most: int = 500) -> Log:
    """Return the newest `most` lines with every word of `search`, of one step or of all."""
    words = search.lower().split()
    found = []
    for event in followed.notes():
        if step and event.get("step") != step:
            continue
        line = line_of(event)
        if words and not all(word in f"{line.step} {line.text}".lower() for word in words):
            continue
        found.append(line)
    return Log(tuple(found[-most:]), len(found))


def line_of(event: Mapping[str, Any]) -> LogLine:
    """Return an event as a line for people."""
    kind = str(event.get("event") or "")
    at = event.get("at")
    when = datetime.fromtimestamp(at if isinstance(at, int | float) else 0, UTC)
    level = LEVELS.get(str(event.get("status") or ""), "info") if kind == "step" else "info"
    return LogLine(when, str(event.get("step") or ""), kind, _text(kind, event), level)


def _text(kind: str, event: Mapping[str, Any]) -> str:
    if kind == "log":
        return str(event.get("message") or "")
    if kind == "fact":
        return f"{event.get('name')}: {event.get('value')}"
    if kind == "step":
        parts = [f"{event.get('stage')}: {event.get('status')}"]
        parts += [str(event["message"])] if event.get("message") else []
        parts += [f"-> {event['ref']}"] if event.get("ref") else []
        parts += [f"{event['seconds']:.1f} s"] if isinstance(event.get("seconds"), int | float) else []
        return "  ".join(parts)
    if kind == "start":
        return f"{event.get('recipe')}: {len(event.get('steps') or ())} steps"
    rest = {key: value for key, value in event.items() if key not in HIDDEN and value is not None}
    said = [str(event["message"])] if event.get("message") else []
    return "  ".join([kind, *said, *(f"{key}={value}" for key, value in rest.items())])
