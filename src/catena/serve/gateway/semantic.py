"""The semantic cache: the last question becomes a vector, and a near one of the same circle gives its answer.

A circle is (tenant, weights, route, everything else in the request): the same system prompt, history and parameters.
Vectors come from a model of the same gateway. Circles in use are in memory, up to a number of bytes; with a store
(`questions.py`) they are also there, so that they survive a restart and others that share it find them.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catena.core.errors import CatenaError
from catena.serve.gateway.cache import key_of
from catena.serve.gateway.caching import Cover
from catena.serve.gateway.call import Call
from catena.serve.gateway.config import SemanticConfig
from catena.serve.gateway.questions import Questions

logger = logging.getLogger(__name__)
SAME = 1 - 1e-6
"""From this cosine on two questions are one: a later answer takes the place of an earlier one."""
ROUTES = ("chat", "completions", "responses")
Vector = NDArray[np.float32]
Embed = Callable[[str], Awaitable[list[float]]]


def split_question(fields: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return the last question and the rest of a request; None where a request has no plain last question."""
    messages = fields.get("messages")
    if isinstance(messages, list) and messages:
        last = messages[-1]
        if isinstance(last, dict) and last.get("role") == "user" and isinstance(last.get("content"), str):
            return last["content"], {**fields, "messages": messages[:-1]}
        return None
    for name in ("prompt", "input"):
        if isinstance(value := fields.get(name), str):
            return value, {key: other for key, other in fields.items() if key != name}
    return None


class Circle:
    """Questions that may answer for each other: unit vectors, what is kept for each, and when that ends."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._until = np.zeros(0, dtype=np.float64)
        self._vectors: Vector = np.zeros((0, 0), dtype=np.float32)
        self._values: list[bytes] = []
        self.bytes = 0
        self.last: Any = None
        """The place of the last entry that was read from the store."""

    def nearest(self, vector: Vector) -> tuple[float, bytes]:
        """Return the greatest cosine among those that are still good, and what is kept for it."""
        similar = self._similar(vector)
        if not similar.size:
            return -1.0, b""
        similar[self._until[: len(similar)] < time.time()] = -1.0
        best = int(similar.argmax())
        return float(similar[best]), self._values[best]

    def add(self, vector: Vector, value: bytes, until: float) -> None:
        """Keep a question's answer, in the place of an older one to the same question, or of the first to end."""
        if self._values and self._vectors.shape[1] != len(vector):  # another model makes the vectors now
            self._values, self.bytes = [], 0
        similar, count = self._similar(vector), len(self._values)
        if count and similar[at := int(similar.argmax())] >= SAME:
            self.bytes -= len(self._values[at])
        elif count < self._most:
            at = count
            self._room(count + 1, len(vector))
            self._values.append(b"")
            self.bytes += vector.nbytes
        else:
            at = int(self._until[:count].argmin())
            self.bytes -= len(self._values[at])
        self._vectors[at], self._until[at], self._values[at] = vector, until, value
        self.bytes += len(value)

    def shrink(self, most: int) -> None:
        """Let go what ends first, until there are at most so many bytes."""
        while self._values and self.bytes > most:
            at, last = int(self._until[: len(self._values)].argmin()), len(self._values) - 1
            self.bytes -= len(self._values[at]) + self._vectors[at].nbytes
            self._vectors[at], self._until[at], self._values[at] = (
                self._vectors[last],
                self._until[last],
                self._values[last],
            )
            self._values.pop()

    def _similar(self, vector: Vector) -> Vector:
        if not self._values or self._vectors.shape[1] != len(vector):
            return np.zeros(0, dtype=np.float32)
        return np.asarray(self._vectors[: len(self._values)] @ vector, dtype=np.float32)

    def _room(self, count: int, width: int) -> None:
        if self._vectors.shape[1] != width:
            self._vectors, self._until = np.zeros((8, width), dtype=np.float32), np.zeros(8)
        if count > len(self._vectors):
            self._vectors = np.concatenate([self._vectors, np.zeros_like(self._vectors)])
            self._until = np.concatenate([self._until, np.zeros_like(self._until)])


class Semantic:
    """All circles. `store` is None where they live in memory alone."""

    def __init__(
        self,
        embed: Embed,
        config: SemanticConfig,
        bounds: tuple[float, int],
        store: Questions | None = None,
        cover: Cover | None = None,
    ) -> None:
        self._embed, self._config, self._store = embed, config, store
        self._ttl_s, self._max = bounds
        self._cover = cover or Cover(None)
        self._circles: OrderedDict[bytes, Circle] = OrderedDict()
        self.bytes = 0

    async def find(self, call: Call, digest: str) -> bytes | None:
        """Return the answer to a question that is near enough."""
        parts = split_question(call.ask.fields)
        if parts is None or call.ask.route not in ROUTES:
            return None
        key = self._key(call, digest, parts[1])
        circle = await self._read(key)
        if circle is None or (vector := await self._vector(parts[0])) is None:
            return None
        cosine, kept = circle.nearest(vector)
        if cosine < self._config.similarity:
            return None
        value = self._cover.get(kept, key)
        if value is None:  # its tenant was erased: nothing of the circle can be read
            self._forget(key)
        return value

    async def keep(self, call: Call, digest: str, value: bytes) -> None:
        """Keep an answer under its question."""
        parts = split_question(call.ask.fields)
        if parts is None or call.ask.route not in ROUTES or (vector := await self._vector(parts[0])) is None:
            return
        key, tenant = self._key(call, digest, parts[1]), call.who.tenant
        kept = await self._cover.put(tenant, value, key)
        if self._store is None:
            self._add(key, vector, kept, time.time() + self._ttl_s)
            self._trim(key)
        else:
            head = await self._cover.put(tenant, vector.tobytes(), key)
            await self._store.add(key, self._cover.mark + len(head).to_bytes(4, "big") + head + kept)

    async def close(self) -> None:
        """Close the store."""
        if self._store is not None:
            await self._store.close()

    def _key(self, call: Call, digest: str, rest: Mapping[str, Any]) -> bytes:
        return key_of(call.who.tenant, digest, call.ask.route, rest, self._cover.secret)

    async def _read(self, key: bytes) -> Circle | None:
        """Return a circle with what anybody has added to it; None for an empty one."""
        circle = self._circles.get(key)
        if self._store is not None:
            for place, until, item in await self._store.since(key, circle.last if circle else None):
                size = int.from_bytes(item[4:8], "big")
                raw = self._cover.get(item[8 : 8 + size], key)
                if raw is not None and item[:4] == self._cover.mark:
                    circle = self._add(key, np.frombuffer(raw, dtype=np.float32), item[8 + size :], until)
                    circle.last = place
            self._trim(key)
        if circle is not None and key in self._circles:
            self._circles.move_to_end(key)
        return self._circles.get(key)

    def _add(self, key: bytes, vector: Vector, kept: bytes, until: float) -> Circle:
        circle = self._circles.setdefault(key, Circle(self._config.entries))
        before = circle.bytes
        circle.add(vector, kept, until)
        self.bytes += circle.bytes - before
        return circle

    def _trim(self, key: bytes) -> None:
        """Let circles go that were not used for longest; the one in use only loses what ends first."""
        if key in self._circles:
            self._circles.move_to_end(key)
        while self.bytes > self._max and len(self._circles) > 1:
            self._forget(next(iter(self._circles)))
        if self.bytes > self._max and key in self._circles:
            circle = self._circles[key]
            circle.shrink(self._max)
            self.bytes = circle.bytes

    def _forget(self, key: bytes) -> None:
        if (circle := self._circles.pop(key, None)) is not None:
            self.bytes -= circle.bytes

    async def _vector(self, text: str) -> Vector | None:
        try:
            vector = np.asarray(await self._embed(text), dtype=np.float32)
        except (CatenaError, OSError, ValueError, LookupError, TypeError) as error:  # whatever that model answers
            logger.warning("the semantic cache has no vector: %s", error)
            return None
        length = float(np.linalg.norm(vector))
        return vector / length if length > 0 else None
