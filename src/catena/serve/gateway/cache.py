"""The cache of answers: exact (the same request) and semantic (a question that means the same). Never across tenants.

The key of an answer is (tenant, digest of the weights, route, the request as canonical JSON). Only requests whose
answer is decided by these are kept: greedy ones, those with a seed, and those that draw nothing. Where the gateway
governs, answers are sealed under their tenant's key, in whichever store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
from starlette.types import Scope

from catena.serve.gateway.caching import Answers, Cover
from catena.serve.gateway.call import Call
from catena.serve.gateway.scoped import header

if TYPE_CHECKING:
    from catena.serve.gateway.meters import Meters
    from catena.serve.gateway.semantic import Semantic

SILENT = frozenset({"user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier"})
"""Fields that do not change an answer."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A kept answer."""

    body: bytes
    kind: bytes
    how: bytes
    """`exact` or `semantic`."""


def canonical(fields: Mapping[str, Any]) -> bytes:
    """Return a request as bytes that are equal where the answers are: keys sorted, silent fields left out."""
    told = {name: value for name, value in fields.items() if name not in SILENT and value is not None}
    return orjson.dumps(told, option=orjson.OPT_SORT_KEYS)


def key_of(tenant: str, digest: str, route: str, fields: Mapping[str, Any], secret: bytes = b"") -> bytes:
    """Return the key of an answer. Lengths are in it, so that no part can look like the beginning of the next."""
    mark = hashlib.blake2b(digest_size=32, key=secret)
    for part in (tenant.encode(), digest.encode(), route.encode(), canonical(fields)):
        mark.update(len(part).to_bytes(8, "big") + part)
    return mark.digest()


class Cache:
    """Exact answers, and with an embedder semantic ones."""

    def __init__(
        self,
        answers: Answers | None,
        digests: Any,
        meters: Meters,
        semantic: Semantic | None = None,
        cover: Cover | None = None,
    ) -> None:
        self._answers, self._digest_of, self._meters, self._semantic = answers, digests, meters, semantic
        self._cover = cover or Cover(None)

    async def get(self, call: Call, scope: Scope) -> Hit | None:
        """Return a kept answer, where there may be one; `cache-control: no-store` or `no-cache` goes past it."""
        if self._answers is None or call.arm != "stable" or not call.ask.repeatable:
            return None
        control = header(scope, b"cache-control")
        if b"no-store" in control:
            return None
        digest = self._digest_of(call)
        if not digest:
            return None
        call.keep = True
        if b"no-cache" in control:
            return None
        key = self._key(call, digest)
        kept = await self._answers.get(key)
        if kept is not None:
            kept = self._cover.get(kept, key)
        self._meters.cache.add(call.ask.model, "exact", "miss" if kept is None else "hit")
        how = b"exact"
        if kept is None and self._semantic is not None:
            kept = await self._semantic.find(call, digest)
            self._meters.cache.add(call.ask.model, "semantic", "miss" if kept is None else "hit")
            how = b"semantic"
        if kept is None:
            return None
        kind, _, body = kept.partition(b"\n")
        call.cached, call.kind = how.decode(), kind
        return Hit(body, kind, how)

    async def put(self, call: Call) -> None:
        """Keep a good answer that a replica gave just now."""
        if self._answers is None or call.cached or not call.keep or call.arm != "stable" or not call.ask.repeatable:
            return
        if not (digest := self._digest_of(call)) or not _whole(call):
            return
        value = call.kind + b"\n" + bytes(call.answer)
        key = self._key(call, digest)
        await self._answers.put(key, await self._cover.put(call.who.tenant, value, key))
        if self._semantic is not None:
            await self._semantic.keep(call, digest, value)

    async def close(self) -> None:
        """Close the store."""
        for store in (self._answers, self._semantic):
            if store is not None:
                await store.close()

    def _key(self, call: Call, digest: str) -> bytes:
        return key_of(call.who.tenant, digest, call.ask.route, call.ask.fields, self._cover.secret)


def _whole(call: Call) -> bool:
    """Tell whether an answer came to its end: a stream that ends with an error or in the middle is not kept."""
    answer, finished = bytes(call.answer), not call.streamed
    if finished and b'"error"' not in answer:  # as a key: within a text its quotes would be escaped
        return bool(answer)
    events = [line[5:] for line in answer.splitlines() if line.startswith(b"data:")] if call.streamed else [answer]
    for event in reversed(events):
        if finished and b'"error"' not in event:
            continue
        try:
            value = orjson.loads(event)
        except orjson.JSONDecodeError:  # [DONE]
            continue
        if not isinstance(value, dict) or value.get("error") is not None or value.get("type") == "error":
            return False
        choices = value.get("choices")
        finished |= value.get("type") == "response.completed" or (
            isinstance(choices, list) and any(isinstance(one, dict) and one.get("finish_reason") for one in choices)
        )
    return finished
