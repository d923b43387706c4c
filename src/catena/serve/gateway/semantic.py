"""The semantic cache: the last question becomes a vector, and a near one of the same circle gives its answer.

A circle is (tenant, weights, route, everything else in the request): the same system prompt, history and parameters.
It lives in memory; vectors come from a model of the same gateway.
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
from catena.serve.gateway.call import Call

logger = logging.getLogger(__name__)
MOST_CIRCLES = 1000
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
    """Questions that may answer for each other: unit vectors and values, the oldest replaced first."""

    def __init__(self, most: int) -> None:
        self._most, self._next = most, 0
        self._until: list[float] = []
        self._vectors: Vector = np.zeros((0, 0), dtype=np.float32)
        self._values: list[bytes] = []

    def nearest(self, vector: Vector) -> tuple[float, bytes]:
        """Return the greatest cosine, and what is kept for it."""
        if not self._values or self._vectors.shape[1] != len(vector):
            return -1.0, b""
        similar = self._vectors[: len(self._values)] @ vector
        best = int(similar.argmax())
        if self._until[best] < time.monotonic():
            return -1.0, b""
        return float(similar[best]), self._values[best]

    def add(self, vector: Vector, value: bytes, seconds: float) -> None:
        """Keep a question's answer."""
        if self._vectors.shape[1] != len(vector):
            self._vectors, self._values = np.zeros((8, len(vector)), dtype=np.float32), []
            self._until, self._next = [], 0
        if len(self._values) < self._most:
            if len(self._values) == len(self._vectors):
                more = np.zeros((min(len(self._vectors), self._most), len(vector)), dtype=np.float32)
                self._vectors = np.concatenate([self._vectors, more])
            self._vectors[len(self._values)] = vector
            self._values.append(value)
            self._until.append(time.monotonic() + seconds)
            return
        self._vectors[self._next], self._values[self._next] = vector, value
        self._until[self._next] = time.monotonic() + seconds
        self._next = (self._next + 1) % self._most


class Semantic:
    """All circles."""

    def __init__(self, embed: Embed, similarity: float, entries: int, ttl_s: float) -> None:
        self._embed, self._similarity, self._entries, self._ttl_s = embed, similarity, entries, ttl_s
        self._circles: OrderedDict[bytes, Circle] = OrderedDict()

    async def find(self, call: Call, digest: str) -> bytes | None:
        """Return the answer to a question that is near enough."""
        parts = split_question(call.ask.fields)
        if parts is None or call.ask.route not in ("chat", "completions", "responses"):
            return None
        circle = self._circles.get(key_of(call.who.tenant, digest, call.ask.route, parts[1]))
        if circle is None or (vector := await self._vector(parts[0])) is None:
            return None
        cosine, value = circle.nearest(vector)
        return value if cosine >= self._similarity else None

    async def keep(self, call: Call, digest: str, value: bytes) -> None:
        """Keep an answer under its question."""
        parts = split_question(call.ask.fields)
        if parts is None or call.ask.route not in ("chat", "completions", "responses"):
            return
        if (vector := await self._vector(parts[0])) is None:
            return
        key = key_of(call.who.tenant, digest, call.ask.route, parts[1])
        circle = self._circles.setdefault(key, Circle(self._entries))
        self._circles.move_to_end(key)
        while len(self._circles) > MOST_CIRCLES:
            self._circles.popitem(last=False)
        circle.add(vector, value, self._ttl_s)

    async def _vector(self, text: str) -> Vector | None:
        try:
            vector = np.asarray(await self._embed(text), dtype=np.float32)
        except (CatenaError, OSError, ValueError, KeyError) as error:
            logger.warning("the semantic cache has no vector: %s", error)
            return None
        length = float(np.linalg.norm(vector))
        return vector / length if length > 0 else None
