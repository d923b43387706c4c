"""Who may do what on the hub: credential to principal, the verb's action, the names that a key is for.

Without `--auth` everybody on loopback may do everything. With `public`, what is not private is read without a key.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping

from starlette.types import Scope

from catena.govern.access import Access, Denied
from catena.govern.roles import Principal
from catena.hub.repo.repos import RepoNotFound
from catena.serve.hub.config import HubConfig
from catena.serve.hub.target import Target
from catena.serve.middleware.auth import credential

OPEN = Principal("local", "admin")
"""Who asks where nobody is asked who they are."""
ANYBODY = Principal("anybody", "user", actions=("pull",))
"""Who asks without a key where reading needs none."""


class Door:
    """Decides about requests."""

    def __init__(self, access: Access | None, config: HubConfig) -> None:
        self._access, self._config = access, config
        self._secret = secrets.token_bytes(32)

    async def admit(self, scope: Scope, target: Target) -> Principal:
        """Return who asks, if they may; raises `Denied` 401 and 403."""
        action = target.action(scope["method"])
        if self._access is None or action == "public":
            return OPEN
        shown = credential(scope)
        if not shown and self._config.public and action == "pull" and target.verb != "whoami":
            return ANYBODY
        try:
            principal = await self._access.identify(shown)
        except Denied as error:
            if error.http_status == 401 and shown:
                raise Denied("Invalid credentials in Authorization header", code=error.code) from error
            raise
        if action is None or not principal.may(action):
            message = f"the role {principal.role!r} of this key may not do this: it needs the action {action!r}"
            raise Denied(message, code="forbidden", status=403)
        return principal

    def require_name(self, principal: Principal, target: Target, *, private: bool) -> None:
        """Raise `RepoNotFound`, as for a name that does not exist, where this one may not see it.

        `private` tells that it is, and that nobody said who asks.
        """
        if private or (target.name and not principal.may_use(target.name)):
            raise RepoNotFound(f"there is no {target.kind} {target.name!r} on this hub")

    def signed(self, sha256: str, size: int) -> str:
        """Return the query of an address to which anybody may upload just these bytes, for a time."""
        until = int(time.time() + self._config.upload_hours * 3600)
        return f"size={size}&until={until}&sign={self._sign(sha256, size, until)}"

    def require_signed(self, sha256: str, query: Mapping[str, str]) -> int:
        """Return the size that a signed address allows; raises `Denied`."""
        try:
            size, until = int(query["size"]), int(query["until"])
        except (KeyError, ValueError) as error:
            raise Denied("the address of this upload is not whole", code="invalid_upload", status=403) from error
        if not hmac.compare_digest(self._sign(sha256, size, until), query.get("sign", "")) or until < time.time():
            raise Denied("the address of this upload is not good, or not any more", code="invalid_upload", status=403)
        return size

    def _sign(self, sha256: str, size: int, until: int) -> str:
        return hmac.new(self._secret, f"{sha256}/{size}/{until}".encode(), hashlib.sha256).hexdigest()


def owner_of(principal: Principal) -> str:
    """Return the first half of the names of repositories that this one makes without naming an owner."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", principal.subject).strip("-.")[:90] or "user"
