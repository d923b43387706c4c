"""A gateway that runs: its models, replicas, rates, releases. It is asked once for all who look.

a viewer's timer -> Watch.fresh -> the last snapshot, if it is younger than EVERY_S
                                -> else one asks with its key, and all who wait get the same
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from catena.console.read.metrics import History, Point, counts
from catena.core.errors import CatenaError
from catena.sdk import ApiError, AsyncCatena, Release, ReleaseAct, Unreachable
from catena.sdk.calls import Call
from catena.workspace import Workspace

EVERY_S = 1.5
"""A look serves for all who come within so many seconds; pages come every 2."""
ANSWER_S = 15.0
"""How long a gateway may take to answer a look."""
RELEASES_S, QUIET_S = 3.5, 30.0
"""How often releases are asked for, with one under way and without: the gateway's audit keeps each question."""
Client = Callable[[], AsyncCatena]


@dataclass(frozen=True)
class Replica:
    """One replica."""

    id: str
    phase: str
    """starting, ready, waiting (for its restart), draining."""
    restarts: int
    problem: str
    broken: bool
    """Left alone for a while, because it failed or was slow too often."""


@dataclass(frozen=True)
class Offer:
    """What a gateway can release."""

    models: Mapping[str, str] = field(default_factory=dict)
    """Each model, and the stored model that it is served from; empty for one from elsewhere."""
    candidates: tuple[str, ...] = ()
    """Those that the deploy file names."""


@dataclass(frozen=True)
class Snapshot:
    """A gateway at one moment."""

    at: float
    """Seconds since 1970."""
    ready: bool
    replicas: Mapping[str, tuple[Replica, ...]]
    """By model; empty for a server that has none."""
    now: Point
    history: History
    releases: tuple[Release, ...] = ()
    acts: tuple[ReleaseAct, ...] = ()
    """What was done, newest first."""
    offer: Offer = Offer()
    may_release: bool = True
    """Whether the server has releases at all."""


@dataclass
class Watch:
    """One gateway, looked at by whoever is there."""

    history: History = field(default_factory=History)
    _last: Snapshot | None = None
    _releases: tuple[tuple[Release, ...], tuple[ReleaseAct, ...], Offer] = ((), (), Offer())
    _asked_releases: float = 0.0
    _has_releases: bool = True
    _looked: float = 0.0
    """When the last look began, or ended where nobody answered; by the monotonic clock."""
    _away: Unreachable | None = None
    """Why nobody answered the last look."""
    _visited: bool = False
    _done: int = 0
    """How often somebody did something."""
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def fresh(self, client: Client, *, least: float = EVERY_S, releases: bool = True) -> Snapshot:
        """Return how the gateway stands, at most `least` seconds ago. Raises what the gateway answers, `Unreachable`.

        With `releases` off they are not asked for (whose key may not), and those that are known are not returned.
        """
        async with self._turn:
            last, recent = self._last, time.monotonic() - self._looked < least
            if recent and self._away is not None:
                raise self._away.with_traceback(None)
            if last is None or not recent:
                done, began = self._done, time.monotonic()
                last = await self._answered(client, releases)
                self._looked = began
                if done == self._done:
                    self._last = last
                else:  # this look may have missed what was done meanwhile: it is not kept
                    self._asked_releases = 0.0
        return last if releases else _without_releases(last)

    async def _answered(self, client: Client, releases: bool) -> Snapshot:
        """Look. That nobody answers is told to all who wait: they do not try it one after the other."""
        try:
            async with asyncio.timeout(ANSWER_S), client() as catena:
                found = await self._look(catena, releases)
        except (TimeoutError, Unreachable) as error:
            told = f"the gateway has not answered for {ANSWER_S:.0f} seconds"
            self._away = error if isinstance(error, Unreachable) else Unreachable(told)
            self._looked = time.monotonic()
            raise self._away from None
        self._away = None
        return found

    def visited(self) -> None:
        """Ask for releases soon: somebody has come to see how it stands, and not as it was half a minute ago."""
        self._visited = self._has_releases = True  # a gateway may have come where a plain server was

    def stale(self) -> None:
        """Ask anew next time: somebody did something."""
        self._last, self._away, self._asked_releases = None, None, 0.0
        self._done += 1

    async def _look(self, catena: AsyncCatena, releases: bool) -> Snapshot:
        text, (ready, replicas) = await asyncio.gather(catena.metrics(), _replicas(catena))
        found, at = await asyncio.to_thread(counts, text), time.time()
        if releases and self._has_releases:
            await self._ask_releases(catena, at)
        named = {name: found[name] for name in found if name in replicas} if replicas else found
        shown = {
            model: tuple(
                Replica(one["id"], one["phase"], one["restarts"], one["problem"], one["id"] in _broken(found, model))
                for one in rows
            )
            for model, rows in replicas.items()
        }
        point = self.history.add(at, named)
        return Snapshot(at, ready, shown, point, self.history, *self._releases, may_release=self._has_releases)

    async def _ask_releases(self, catena: AsyncCatena, at: float) -> None:
        soon = self._releases[0] or self._visited
        if at - self._asked_releases < (RELEASES_S if soon else QUIET_S):
            return
        try:
            told = await catena.send(Call(dict, "GET", "/admin/releases"))  # all of it by one question
        except ApiError as error:
            if error.status != 404:
                raise
            self._visited = self._has_releases = False  # one server, without replicas
            return
        self._visited = False
        under_way = tuple(Release.model_validate(one) for one in told["releases"])
        acts = tuple(ReleaseAct.model_validate(one) for one in reversed(told["changes"]))
        offer = Offer(told.get("models") or {}, tuple(told.get("candidates") or ()))
        self._releases, self._asked_releases = (under_way, acts, offer), at


async def _replicas(catena: AsyncCatena) -> tuple[bool, Mapping[str, Any]]:
    try:
        told = await catena.ready()
    except ApiError as error:
        if error.status not in (401, 404):
            raise
        return True, {}
    return told.ready, told.replicas


def _broken(found: Mapping[str, Any], model: str) -> tuple[str, ...]:
    return found[model].broken if model in found else ()


def _without_releases(last: Snapshot) -> Snapshot:
    return Snapshot(last.at, last.ready, last.replicas, last.now, last.history, may_release=last.may_release)


_WATCHES: WeakKeyDictionary[Workspace, dict[str, Watch]] = WeakKeyDictionary()


def watch_of(workspace: Workspace, address: str) -> Watch:
    """Return the watch over a gateway, the same for all who look."""
    return _WATCHES.setdefault(workspace, {}).setdefault(address, Watch())


async def end_release(client: Client, release: Release, act: str, reason: str) -> str:
    """Promote or roll back the release that is shown; returns nothing, or why somebody else was quicker.

    Raises other refusals.
    """
    id = str((release.model_extra or {}).get("release", ""))
    async with client() as catena:
        try:
            await (catena.promote if act == "promote" else catena.rollback)(release.model, reason=reason, release=id)
        except ApiError as error:
            if error.status in (404, 409):
                return error.message
            raise
    return ""


async def start_release(client: Client, model: str, candidate: str, settings: Mapping[str, Any]) -> str:
    """Start a release; returns nothing, or why another one is under way. Raises other refusals."""
    async with client() as catena:
        try:
            await catena.start_release(model, candidate, **settings)
        except ApiError as error:
            if error.status == 409:
                return error.message
            raise
    return ""


def trouble_of(error: CatenaError) -> str:
    """Name what kind of refusal it is: limit, blocked, signed_out, forbidden, away, cut or other."""
    if isinstance(error, ApiError):
        kinds = {429: "limit", 401: "signed_out", 403: "forbidden"}
        return "blocked" if error.code == "content_filter" else kinds.get(error.status, "other")
    return "away" if type(error).__name__ == "Unreachable" else "cut"
