"""Roles and what they may do: frozen sets, so that a check is one look-up. No I/O.

    user        asks models, sees which there are, pulls from the hub, gives feedback, has jobs of its own
    developer   also: metrics, datasets, releases, pushes to the hub
    admin       also: keys, the audit, removing repositories of the hub, everything

A key may have fewer actions than its role, and only some models; never more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal, get_args

from catena.core.errors import UsageError, did_you_mean

Role = Literal["admin", "developer", "user"]
ROLES: tuple[Role, ...] = get_args(Role)
Action = Literal[
    "public",
    "infer",
    "models",
    "jobs",
    "feedback",
    "pull",
    "metrics",
    "data",
    "releases",
    "push",
    "keys",
    "audit",
    "admin",
]
ACTIONS: tuple[Action, ...] = get_args(Action)
"""`public` needs no credentials."""

_USER: frozenset[Action] = frozenset({"public", "infer", "models", "jobs", "feedback", "pull"})
_DEVELOPER: frozenset[Action] = _USER | {"metrics", "data", "releases", "push"}
GRANTED: Mapping[Role, frozenset[Action]] = {
    "user": _USER,
    "developer": _DEVELOPER,
    "admin": frozenset(ACTIONS),
}


@dataclass(frozen=True)
class Principal:
    """Who asks."""

    subject: str
    """The person or service: the audit's data key and the limits go by it."""
    role: Role
    key: str = ""
    """Id of the API key, or `jwt`."""
    models: tuple[str, ...] = ("*",)
    """Patterns of model names: `helper`, `helper:*`, `*`."""
    actions: tuple[Action, ...] | None = None
    """Fewer actions than the role has; None for all of them."""

    @cached_property
    def allowed(self) -> frozenset[Action]:
        """What this one may do."""
        granted = GRANTED[self.role]
        return granted if self.actions is None else granted & {*self.actions, "public"}

    def may(self, action: Action) -> bool:
        """Tell whether an action is allowed."""
        return action in self.allowed

    def may_use(self, model: str) -> bool:
        """Tell whether a model is in scope."""
        return any(pattern == "*" or fnmatchcase(model, pattern) for pattern in self.models)


def checked_role(text: str) -> Role:
    """Return a role by its name; raises `UsageError`."""
    for role in ROLES:
        if role == text:
            return role
    raise UsageError(f"there is no role {text!r}", hint=did_you_mean(text, ROLES))


def checked_actions(texts: Iterable[str], role: Role) -> tuple[Action, ...] | None:
    """Return actions by their names, None where none is named; raises `UsageError` for what the role does not have."""
    wanted = set(texts)
    if not wanted:
        return None
    unknown = sorted(wanted - set(ACTIONS))
    if unknown:
        raise UsageError(f"there is no action {unknown[0]!r}", hint=did_you_mean(unknown[0], ACTIONS))
    beyond = sorted(wanted - GRANTED[role])
    if beyond:
        raise UsageError(
            f"the role {role!r} does not have the action {beyond[0]!r}", hint=did_you_mean(beyond[0], GRANTED[role])
        )
    return tuple(action for action in ACTIONS if action in wanted)
