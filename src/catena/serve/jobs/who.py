"""Whose a job is, and that its rights are those of the moment in which it asks."""

from __future__ import annotations

from typing import Any

from starlette.types import Scope

from catena.govern.access import Denied
from catena.govern.roles import Principal
from catena.serve.gateway.identity import identity_of
from catena.serve.middleware.exchange import Behalf, principal_of


def tenant_of(scope: Scope) -> str:
    """Return what keeps one's files and jobs apart from others'."""
    return identity_of(scope).tenant


def kept(scope: Scope) -> dict[str, Any]:
    """Return who asks, in a form that can be stored: no credential."""
    who = principal_of(scope)
    if who is None:
        return {}
    return {"subject": who.subject, "role": who.role, "key": who.key, "models": who.models, "actions": who.actions}


def behalf(who: dict[str, Any], tenant: str) -> Behalf:
    """Return for whom a job asks."""
    if not who:
        return Behalf(None, tenant)
    actions = None if who["actions"] is None else tuple(who["actions"])
    principal = Principal(who["subject"], who["role"], who["key"], tuple(who["models"]), actions)
    return Behalf(principal, tenant)


def require_jobs(scope: Scope) -> None:
    """Raise `Denied` where a key that may ask models may have no jobs."""
    who = principal_of(scope)
    if who is not None and not who.may("jobs"):
        raise Denied("this key may not have jobs: it needs the action 'jobs'", code="forbidden", status=403)
