"""A view: what a page is handed, for one visit of one person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from catena.console.language import say
from catena.console.login import LOCAL, Sessions
from catena.core.errors import UsageError
from catena.core.language import Language
from catena.govern.access import Denied
from catena.govern.roles import Action, Principal
from catena.serve.running import running
from catena.workspace import Workspace

if TYPE_CHECKING:
    from catena.sdk.asynchronous import AsyncCatena


@dataclass(frozen=True)
class Console:
    """One running console."""

    workspace: Workspace
    sessions: Sessions
    gateway: str | None = None
    """Address of the gateway that runs beside it."""
    prefix: str = ""
    """The path below which it is reached, for example /console."""
    hosts: tuple[str, ...] = ()
    """Names beside localhost that it answers to."""
    recipes: Path | None = None
    """Folder of recipes; None: `recipes` beside the workspace."""


@dataclass(frozen=True)
class View:
    """What a page is handed. Its person is asked for again at each act: a key may have been revoked meanwhile."""

    console: Console
    token: str
    """The session's token; empty for the local administrator."""
    language: Language
    dark: bool | None
    """None: as the system has it."""
    parameters: Mapping[str, str]
    """Values of `{name}` in the path."""
    query: Mapping[str, str]

    @property
    def workspace(self) -> Workspace:
        """The workspace that is shown."""
        return self.console.workspace

    @property
    def gateway(self) -> str | None:
        """Address of the gateway that was named, else of the one that runs over this workspace, or None."""
        if self.console.gateway is not None:
            return self.console.gateway
        found = running(self.workspace.store.root)
        return found[0].url if found else None

    @property
    def local(self) -> bool:
        """Whether this is the administrator of a workspace without keys."""
        return not self.token and self.console.sessions.local

    @property
    def person(self) -> Principal:
        """Who looks, with the rights of this moment. Raises `Denied` where the session has ended."""
        person = LOCAL if self.local else self.console.sessions.person(self.token)
        if person is None:
            raise Denied(self.say("frame.signed_out"), code="session_ended")
        return person

    def may(self, action: Action) -> bool:
        """Tell whether the person may do something now."""
        return self.person.may(action)

    def need(self, action: Action) -> None:
        """Raise `Denied` (403) unless the person may do it now: to be called first in everything that changes."""
        if not self.may(action):
            message = self.say("frame.denied", role=self.person.role, action=action)
            raise Denied(message, code="forbidden", status=403)

    def say(self, key: str, **values: Any) -> str:
        """Return a word in the person's language."""
        return say(self.language, key, values)

    def path(self, *parts: str, **query: str) -> str:
        """Return the path of a page, for `ui.link` and `ui.navigate`: `view.path("runs", id)` -> `/runs/<id>`."""
        path = "/" + "/".join(quote(part, safe="/@") for part in parts)
        asked = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items() if value)
        return f"{path}?{asked}" if asked else path

    def href(self, *parts: str, **query: str) -> str:
        """Return the same below the console's prefix, for HTML that we write ourselves (cells of tables)."""
        return self.console.prefix + self.path(*parts, **query)

    def client(self) -> AsyncCatena:
        """Return a client of the gateway that asks with this person's key. Raises `UsageError` without a gateway."""
        from catena.sdk.asynchronous import AsyncCatena

        address = self.gateway
        if address is None:
            raise UsageError(self.say("frame.no_gateway"), hint=self.say("frame.no_gateway_hint"))
        key = "" if self.local else self.console.sessions.key(self.token)
        return AsyncCatena(address, key=key)
