"""Rates and quotas of requests and tokens in a sliding window: in memory, or in a Redis that many gateways share.

Tokens are reserved before a request goes out (its prompt, and the longest answer that it allows) and settled
afterwards by the answer's own count. So nobody gets far over a quota by asking for many long answers at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from catena.core.errors import EnvironmentProblem
from catena.core.registry import require
from catena.serve.gateway.call import Call
from catena.serve.gateway.refusals import RateLimited
from catena.serve.gateway.window import Windows

if TYPE_CHECKING:
    from catena.serve.gateway.config import LimitsConfig, RuleConfig

logger = logging.getLogger(__name__)
RETRY_STORE_S = 2.0
STORE_TIMEOUT_S = 1.0
SETTLE = """
local length, change, age = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local left = redis.call('pttl', KEYS[2])
if left > 0 and left < length then
    left = left + length
    redis.call('rename', KEYS[2], KEYS[1])
    redis.call('set', KEYS[2], 0, 'PX', left)
elseif left <= 0 and change > 0 then
    left = 2 * length
    redis.call('set', KEYS[2], 0, 'PX', left)
end
local key, begun = KEYS[2], 2 * length - left
if change < 0 then
    if age > begun + length then return end
    if age > begun then key = KEYS[1] end
    change = math.max(change, -(tonumber(redis.call('get', key)) or 0))
end
if change ~= 0 then redis.call('incrby', key, change) end
"""
"""What `Windows.settle` does, in Redis: what a reservation took is settled in the window that it was counted in.

KEYS: the window before, and this one, as `limits` keeps them: a window begins with its first request, and lives for two
of its lengths, the second as the one before. ARGV: its length [ms], the change, and how long ago was reserved [ms].
"""


def amount(text: str) -> Any:
    """Return what `100/minute` means. Raises `ValueError`."""
    try:
        return require("limits").parse(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no rate; write 100/minute, 5/second or 100000/day") from error


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule with its rate parsed."""

    config: RuleConfig
    item: Any
    what: str
    """`requests` or `tokens`."""
    number: int = 0

    @property
    def seconds(self) -> float:
        """Length of its window."""
        return float(self.item.get_expiry())

    def fits(self, call: Call) -> bool:
        """Tell whether it counts for a request."""
        config, model = self.config, call.ask.model.partition(":")[0]
        if config.models and model not in config.models:
            return False
        return not config.roles or call.who.role in config.roles

    def names(self, call: Call) -> tuple[str, ...]:
        """Return what is counted apart."""
        who = call.who
        one = {"key": who.key, "subject": who.subject, "tenant": who.tenant, "model": call.ask.model, "all": ""}
        scope = ",".join(self.config.models) + "|" + ",".join(self.config.roles)
        return (self.what, self.config.per, scope, one[self.config.per])

    def cost(self, call: Call) -> int:
        """Return what a request takes of it before it is answered."""
        return 1 if self.what == "requests" else call.ask.prompt_tokens + call.ask.answer_tokens


Taken = tuple[Rule, int, bool, float]
"""What a request took of a rule, whether it was counted in the shared store, and when [Unix seconds]."""


class Limits:
    """All rules, over one store."""

    def __init__(self, config: LimitsConfig) -> None:
        self.config = config
        self.rules = [
            Rule(rule, amount(rule.requests or rule.tokens), "requests" if rule.requests else "tokens", number)
            for number, rule in enumerate(config.rules)
        ]
        self.away = False
        """Whether the shared store does not answer at the moment."""
        self._again = 0.0
        self._local = Windows()
        self._shared: Any = None
        if self.rules and config.store != "memory":
            require("redis")
            options = {"socket_timeout": STORE_TIMEOUT_S, "socket_connect_timeout": STORE_TIMEOUT_S}
            aio = require("limits.aio.storage")
            storage = aio.RedisStorage(asynchronous(config.store), implementation="redispy", **options)
            self._shared = require("limits.aio.strategies").SlidingWindowCounterRateLimiter(storage)
            self._settled = storage.bridge.storage.register_script(SETTLE)

    @asynccontextmanager
    async def reserved(self, call: Call) -> AsyncIterator[None]:
        """Keep room for a request while it runs, and settle. Raises `RateLimited`."""
        taken: list[Taken] = []
        try:
            call.held = True
            for rule in self.rules:
                if not rule.fits(call):
                    continue
                cost = rule.cost(call)
                room, shared = await self._hit(rule, call, cost)
                if not room:
                    raise RateLimited(rule.what, told(rule.item), await self._reset(rule, call))
                taken.append((rule, cost, shared, time.time()))
            call.held = False
            if call.left:
                raise asyncio.CancelledError
            yield
        finally:
            if taken:
                call.held = True
                answered = call.status < 500 and call.status != 499
                await self._settle(call, taken, served=answered or call.events > 0)

    async def _settle(self, call: Call, taken: list[Taken], *, served: bool) -> None:
        """Give back what was not used, and count what was used beyond; a request that nobody answered costs nothing.

        What was counted in a store that has gone since stays counted there: it is not taken off what is counted here.
        """
        used = sum(call.tokens()) if served and not call.cached and call.status < 400 else 0
        for rule, cost, shared, since in taken:
            real = (used if rule.what == "tokens" else 1) if served else 0
            if real == cost:
                continue
            if shared:
                await self._settle_shared(rule, call, real - cost, since)
            else:
                name = (rule.number, *rule.names(call))
                self._local.settle(name, rule.seconds, real - cost, since, time.time())

    async def _hit(self, rule: Rule, call: Call, cost: int) -> tuple[bool, bool]:
        """Return whether there is room, and whether it was counted in the shared store."""
        found = await self._hit_shared(rule, call, cost)
        if found is not None:
            return found, True
        if self._shared is not None and self.config.without_store == "refuse":
            raise EnvironmentProblem("the store of the limits is away", hint="Try again in a moment.")
        return self._hit_here(rule, call, cost), False

    async def _hit_shared(self, rule: Rule, call: Call, cost: int) -> bool | None:
        """Count in the shared store; None where there is none, or it is away."""
        if self._shared is None or not self._try_shared():
            return None
        try:
            return bool(await self._shared.hit(rule.item, *rule.names(call), cost=cost))
        except Exception as error:  # noqa: BLE001  whatever the client of the store raises: it is away
            self._lost(error)
            return None

    async def _settle_shared(self, rule: Rule, call: Call, change: int, since: float) -> None:
        if not self._try_shared():
            return
        storage, key = self._shared.storage, rule.item.key_for(*rule.names(call))
        windows = (storage._previous_window_key(key), storage._current_window_key(key))
        age = int((time.time() - since) * 1000)
        try:
            await self._settled(
                keys=[storage.bridge.prefixed_key(one) for one in windows],
                args=[int(rule.seconds * 1000), change, age],
            )
        except Exception as error:  # noqa: BLE001  whatever the client of the store raises: it is away
            self._lost(error)

    def _hit_here(self, rule: Rule, call: Call, cost: int) -> bool:
        return self._local.hit((rule.number, *rule.names(call)), rule.item.amount, rule.seconds, cost, time.time())

    async def _reset(self, rule: Rule, call: Call) -> float:
        if self._shared is None or self.away:
            return max(1.0, self._local.reset_s((rule.number, *rule.names(call)), rule.seconds, time.time()))
        try:
            stats = await self._shared.get_window_stats(rule.item, *rule.names(call))
        except Exception as error:  # noqa: BLE001
            self._lost(error)
            return 1.0
        return max(1.0, float(stats.reset_time) - time.time())

    def _try_shared(self) -> bool:
        if self.away and time.monotonic() < self._again:
            return False
        if self.away:
            self.away = False
            logger.info("asking the store of the limits again")
        return True

    def _lost(self, error: Exception) -> None:
        self.away, self._again = True, time.monotonic() + RETRY_STORE_S
        logger.warning("the store of the limits is away: %s", error)

    async def close(self) -> None:
        """Close the connections to the store."""
        if self._shared is not None:
            await self._shared.storage.bridge.storage.aclose()


def asynchronous(url: str) -> str:
    """Return a Redis URL as `limits` wants it: redis://, rediss://, or unix:///path for a socket."""
    if url.startswith("unix://"):
        return f"async+redis+{url}"
    return f"async+{url}"


def told(item: Any) -> str:
    """Return a rate as people write it."""
    many = f"{item.multiples} {item.GRANULARITY.name}s" if item.multiples > 1 else item.GRANULARITY.name
    return f"{item.amount}/{many}"
