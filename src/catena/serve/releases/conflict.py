"""Two people who act on one release: the second is told what the first did, and nothing is done twice. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from catena.core.errors import NotFound, UsageError

DONE = {"promote": "promoted", "rollback": "rolled back", "done": "finished", "start": "started", "step": "moved on"}


class Conflict(UsageError):
    """Somebody else was quicker."""

    http_status = 409
    usual_hint = "`catena release status` shows how it stands now."


def is_over(model: str, entries: Iterable[Mapping[str, Any]]) -> NotFound:
    """Return the error for a model that has no release under way, with how the last one ended."""
    return NotFound(f"no release of {model!r} is under way", hint=last_act(model, entries))


def was_promoted(model: str, entries: Iterable[Mapping[str, Any]]) -> Conflict:
    """Return the error for a promotion after another one."""
    return Conflict(f"everybody has the candidate of {model!r} already", hint=last_act(model, entries))


def is_under_way(model: str, entries: Iterable[Mapping[str, Any]]) -> Conflict:
    """Return the error for a release that is to start while another one goes on."""
    hint = f"{last_act(model, entries)} Promote it or roll it back first."
    return Conflict(f"a release of {model!r} is under way", hint=hint.strip())


def is_another(model: str, asked: str, release: str, entries: Iterable[Mapping[str, Any]]) -> Conflict:
    """Return the error for an act on a release that is over, while another one is under way."""
    hint = f"{last_act(model, entries)} Now {release} is under way."
    return Conflict(f"the release {asked} of {model!r} is over", hint=hint.strip())


def is_elsewhere() -> UsageError:
    """Return the error for a gateway that shares its state folder with another one."""
    return UsageError(
        "another gateway with this state folder has the releases",
        hint="Ask that one, or end it: releases want one gateway for each state folder.",
    )


def last_act(model: str, entries: Iterable[Mapping[str, Any]]) -> str:
    """Say who did the last thing to a model's releases, when and why; nothing where nobody did anything."""
    mine = [entry for entry in entries if entry["model"] == model and entry["act"] in DONE]
    if not mine:
        return ""
    entry = mine[-1]
    at = datetime.fromtimestamp(entry["time"], UTC).strftime("%H:%M:%S UTC")
    reason = f" ({entry['reason']})" if entry.get("reason") else ""
    return f"It was {DONE[entry['act']]} by {entry['by']} at {at}{reason}."
