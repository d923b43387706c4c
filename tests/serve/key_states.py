"""A key of each role in each state, for the tests of who may pass."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from catena.govern.keys import Keys
from catena.govern.roles import ROLES, Role

OPEN = ("active", "graced")
CLOSED = ("missing", "wrong secret", "expired", "revoked", "rotated", "unknown", "malformed", "twice")


def keys_in_every_state(book: Keys) -> dict[tuple[str, str], str]:
    """Return (role, state) to what is sent."""
    made: dict[tuple[str, str], str] = {}
    for role in ROLES:

        def new(state: str, role: Role = role, **options: Any) -> str:
            return book.create(f"{role} {state}", role, **options)[0]

        active = made[role, "active"] = new("active")
        made[role, "graced"] = new("graced")
        book.rotate(f"{role} graced", grace=timedelta(hours=1))
        made[role, "rotated"] = new("rotated")
        book.rotate(f"{role} rotated")
        made[role, "expired"] = new("expired", lifetime=timedelta(microseconds=1))
        made[role, "revoked"] = new("revoked")
        book.revoke(f"{role} revoked")
        made[role, "wrong secret"] = active[:-2] + ("AA" if active[-2:] != "AA" else "BB")
        made[role, "unknown"] = "ctn_000000000000_" + "a" * 43
        made[role, "malformed"] = active.upper()
        made[role, "missing"] = ""
        made[role, "twice"] = active
    return made


def credentials(key: str, state: str) -> list[tuple[str, str]]:
    """Return the headers that send it."""
    if state == "missing":
        return []
    one = [("authorization", f"Bearer {key}")]
    return [*one, ("x-api-key", key)] if state == "twice" else one
