"""Who asks. What checks keys in front of the gateway leaves a principal in the scope; here it is read.

Without such a check a bearer key stands for itself, as its digest: two keys are two tenants, so that nobody finds
another's answers in the cache.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from starlette.types import Scope

from catena.serve.middleware.exchange import BEHALF, principal_of


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks; `role` is empty where nobody checked."""

    tenant: str = ""
    """Answers are kept apart by it."""
    subject: str = ""
    role: str = ""
    key: str = ""
    """The key's id, never the key."""


def identity_of(scope: Scope) -> Identity:
    """Return who asks."""
    principal = principal_of(scope)
    if principal is not None:
        key = principal.key if principal.key not in ("", "jwt") else principal.subject
        return Identity(principal.subject, principal.subject, principal.role, key)
    if (behalf := scope.get(BEHALF)) is not None:
        return Identity(behalf.tenant, behalf.tenant, "", behalf.tenant)
    for name, value in scope["headers"]:
        if name in (b"authorization", b"x-api-key", b"api-key"):
            digest = hashlib.blake2b(value, digest_size=12).hexdigest()
            return Identity(digest, digest, "", digest)
    return Identity()
