"""Which replica gets a request: the one that has seen the prompt's beginning, unless it has too much to do. Pure.

A prompt is cut into blocks; each block's name covers all before it, so equal names mean equal beginnings. The router
remembers where a name was last sent (its keys and values are in that engine's prefix cache). A beginning that nobody
has seen goes to the replica that wins the draw of its first block (rendezvous hashing: a replica that comes or goes
moves only its own share). Either may have `slack` times the mean of work; beyond that the least loaded one is taken.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from catena.serve.gateway.breaker import Breaker

BLOCK = 256
"""Bytes of text in a block: about 64 tokens of English."""
MOST_BLOCKS = 64
REMEMBERED = 1 << 16


@dataclass(eq=False, slots=True)
class Backend:
    """One replica, as the router and the relay see it."""

    id: str
    """Its name here; the URL of a server that others run."""
    url: str
    breaker: Breaker
    limit: int = 32
    """Most requests at once."""
    served: str = ""
    """The model's name over there."""
    digest: str = ""
    key: str = ""
    """Bearer key that it wants."""
    ready: bool = True
    ended_by_others: bool = False
    """It is gone, and somebody ended it from outside: none of its requests did."""
    running: int = 0
    work: float = 0.0
    """Tokens that are still expected of it, roughly."""
    in_flight: dict[int, bytes] = field(default_factory=dict)
    """Number of a request to its fingerprint."""

    @property
    def shown(self) -> str:
        """What clients are told it is called: not where it is."""
        return shown(self.id)

    @property
    def free(self) -> bool:
        """Whether it takes another request."""
        return self.ready and self.running < self.limit

    def admits(self, now: float) -> bool:
        """Tell whether a request may go there now."""
        return self.free and self.breaker.admits(now)


def shown(id: str) -> str:
    """Return a replica's name for those who shall not learn where it is: of a URL a part of its digest."""
    return f"at-{hashlib.blake2b(id.encode(), digest_size=4).hexdigest()}" if "://" in id else id


@dataclass(eq=False, slots=True)
class Lease:
    """A replica for one attempt."""

    backend: Backend
    number: int
    told: bool = False

    def unreached(self) -> None:
        """Note that the replica never got the request: whatever ends it, it was not this one."""
        self.backend.in_flight.pop(self.number, None)

    def record(self, *, good: bool, seconds: float = 0.0) -> None:
        """Tell the breaker how it went; a lease that ends without it says nothing about the replica."""
        self.told = True
        self.backend.breaker.record(time.monotonic(), good=good, seconds=seconds)


def blocks_of(text: bytes) -> list[int]:
    """Return the names of the full blocks at a prompt's beginning; equal only where everything before is equal."""
    names: list[int] = []
    name = 0
    for at in range(0, min(len(text) - BLOCK + 1, MOST_BLOCKS * BLOCK), BLOCK):
        name = hash((name, text[at : at + BLOCK]))
        names.append(name)
    return names


def draw(key: bytes, ids: Iterable[str]) -> list[str]:
    """Return the ids in the order in which they win the draw for a key; it depends on nothing but key and id."""
    return sorted(ids, key=lambda id: hashlib.blake2b(id.encode(), key=key[:64], digest_size=8).digest(), reverse=True)


class Router:
    """Chooses among the replicas of one model."""

    def __init__(self, *, prefix: bool = True, slack: float = 1.25) -> None:
        self.prefix, self.slack = prefix, slack
        self.hits = 0
        """Requests that went where their beginning was known."""
        self._seen: OrderedDict[int, str] = OrderedDict()

    def pick(self, backends: Sequence[Backend], text: bytes, cost: float) -> Backend | None:
        """Choose among those that may be asked; None where there is none. `cost` is the request's own work."""
        if len(backends) < 2:
            return self._remember(backends[0], blocks_of(text)) if backends else None
        least = min(backends, key=lambda one: (one.work, one.running))
        names = blocks_of(text) if self.prefix else []
        if not names:
            return least
        preferred, known = self._preferred(backends, names, text)
        mean = sum(one.work for one in backends) / len(backends)
        if preferred.work + cost > self.slack * (mean + cost) and preferred.work > least.work:
            preferred, known = least, False
        self.hits += known
        return self._remember(preferred, names)

    def forget(self, id: str) -> None:
        """Forget what a replica has seen: it is gone, and its cache with it."""
        for name in [name for name, place in self._seen.items() if place == id]:
            del self._seen[name]

    def _preferred(self, backends: Sequence[Backend], names: list[int], text: bytes) -> tuple[Backend, bool]:
        places = {one.id: one for one in backends}
        for name in reversed(names):
            if (found := places.get(self._seen.get(name, ""))) is not None:
                return found, True
        first = hashlib.blake2b(text[:BLOCK], digest_size=16).digest()
        return places[draw(first, places)[0]], False

    def _remember(self, backend: Backend, names: list[int]) -> Backend:
        if self.prefix:
            for name in names:
                self._seen[name] = backend.id
                self._seen.move_to_end(name)
            while len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        return backend
