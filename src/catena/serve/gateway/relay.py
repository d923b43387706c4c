"""The way of a request: read it, find room for it, give it to a replica, and hand the answer on as it comes.

read -> limits -> cache -> lease a replica -> hold back until the first token -> hand on -> settle, count, watch
                                ^                    |
                                +---- failed --------+   at most `attempts` replicas, never after the first token
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING

import aiohttp
from starlette.types import Receive, Scope, Send

from catena.core.errors import CatenaError, RemoteError
from catena.serve import stream
from catena.serve.endpoint import Gone, read_body, require_json
from catena.serve.errors import UNEXPECTED
from catena.serve.gateway.ask import read_ask
from catena.serve.gateway.call import Call
from catena.serve.gateway.exchange import Answer, Exchange, Failed
from catena.serve.gateway.identity import identity_of
from catena.serve.gateway.line import Overloaded
from catena.serve.gateway.poison import fingerprint
from catena.serve.gateway.pool import Pool
from catena.serve.gateway.refusals import Poisonous, RateLimited, said
from catena.serve.gateway.router import Lease
from catena.serve.gateway.scoped import request_id
from catena.serve.middleware.exchange import exchange_of
from catena.serve.wire import WireError, error_body

if TYPE_CHECKING:
    from catena.serve.gateway.app import Gateway

logger = logging.getLogger(__name__)
CUT = "the answer was cut off: the replica ended"


class Relay:
    """The POST routes of models, as one raw ASGI application."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        reply = Outgoing(send)
        call: Call | None = None
        watcher: asyncio.Task[None] | None = None
        try:
            known = exchange_of(scope)
            body = await self._read(scope, receive)
            ask = read_ask(scope["path"], body, known.parsed if known.body is body else None)
            call = Call(request_id(scope), ask, identity_of(scope), decisions=known.decisions)
            watcher = asyncio.create_task(_watch(receive, asyncio.current_task(), call, reply))
            with self.gateway.traces.span(scope, call):
                await self._answer(call, scope, reply)
        except Gone:
            return
        except asyncio.CancelledError:
            if call is None or not reply.gone(call):
                raise
        except Exception as error:  # noqa: BLE001  every one of them becomes an answer
            await self._fail(error, call, reply, scope, receive, send)
        finally:
            if watcher is not None:
                watcher.cancel()
            if call is not None:
                await self.gateway.ended(call)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        require_json(scope)
        bounds = self.gateway.config.http
        if exchange_of(scope).body is not None:  # it was read in front of us, in bounds
            return await read_body(scope, receive, bounds.max_body_bytes)
        try:
            async with asyncio.timeout(bounds.body_timeout_s):
                return await read_body(scope, receive, bounds.max_body_bytes)
        except TimeoutError as error:
            message = f"the body did not arrive within {bounds.body_timeout_s:g} s"
            raise WireError(message, code="request_timeout", status=408) from error

    async def _answer(self, call: Call, scope: Scope, reply: Outgoing) -> None:
        gateway = self.gateway
        pool, suffix = gateway.route(call)
        if gateway.jobs is not None and call.ask.route == "responses" and call.ask.fields.get("background") is True:
            call.status = 200
            await reply.whole(call, 200, b"application/json", await gateway.jobs.accept(call.ask, scope))
            return
        async with gateway.limits.reserved(call):
            if (hit := await gateway.cache.get(call, scope)) is not None:
                call.status = 200
                await reply.whole(call, 200, hit.kind, hit.body, [(b"x-catena-cache", hit.how)])
                return
            await self._forward(call, pool, suffix, reply)
        if call.status == 200 and not call.cut:
            await gateway.cache.put(call)

    async def _forward(self, call: Call, pool: Pool, suffix: str, reply: Outgoing) -> None:
        """Give a request to its replicas; where a release's candidate fails or goes meanwhile, to those that stay."""
        try:
            await self.forward(call, pool, suffix, reply)
        except (RemoteError, Overloaded, Poisonous) as error:
            stable = self.gateway.pools.get(call.ask.model, pool)
            if reply.started or stable is pool:
                raise
            logger.warning("%s: %s; those of the stable model are asked", call.id, error)
            call.fell_back, call.deaths = call.arm == "candidate", 0
            await self.forward(call, stable, suffix, reply)

    async def forward(self, call: Call, pool: Pool, suffix: str, reply: Outgoing) -> None:
        """Give a request to one replica after the other until one begins to answer."""
        mark = fingerprint(pool.name, call.ask.body)
        tried: set[str] = set()
        left, until = pool.routing.attempts, time.monotonic() + pool.line.seconds
        while True:
            if pool.poison.convicted(mark, time.monotonic()):
                raise Poisonous
            if call.deaths >= 2:
                raise Overloaded("replicas ended while they had this request", pool.line.retry_after())
            async with pool.lease(call.ask.text, call.ask.cost, mark, tried) as lease:
                tried.add(lease.backend.id)
                call.attempts, call.replica = call.attempts + 1, lease.backend.shown
                try:
                    await self._attempt(call, pool, lease, suffix, reply)
                except Failed as error:
                    problem, others = error, False
                    if not error.busy:
                        logger.warning("%s: %s: %s", call.id, lease.backend.id, error.__cause__ or error)
                    if error.unreached:
                        lease.unreached()
                    if error.lost or error.unreached:
                        dead = await pool.inquire(lease.backend)
                        others = lease.backend.ended_by_others
                        call.deaths += dead and error.lost and not others
                    if not error.busy:
                        lease.record(good=False)
                        call.failures += not others
                else:
                    pool.poison.answered(mark)
                    return
            # Who was never reached has not been asked, and whose replica was ended by others has not failed; but not
            # for ever.
            left -= not ((problem.unreached or others) and time.monotonic() < until)
            if left <= 0 and call.deaths < 2:
                if problem.busy:
                    raise Overloaded(f"every replica of {pool.name!r} is busy", pool.line.retry_after()) from problem
                raise problem
            self.gateway.meters.retries.add(pool.name)

    async def _attempt(self, call: Call, pool: Pool, lease: Lease, suffix: str, reply: Outgoing) -> None:
        backend, session = lease.backend, self.gateway.session
        headers = {"x-request-id": call.id, **({"traceparent": call.trace} if call.trace else {})}
        body = call.ask.for_model((backend.served or call.ask.model) + suffix)
        async with Exchange(session, backend, call.ask.path, body, headers) as exchange:
            answer = await exchange.begin(pool.routing.max_answer_bytes)
            lease.record(good=True, seconds=answer.seconds)
            call.status, call.kind, call.first_s = answer.status, answer.content_type, answer.seconds
            call.weights = backend.digest
            if answer.status < 300:
                pool.first_token(answer.seconds)
            call.took(answer.body)
            if answer.rest is None:
                await reply.whole(call, answer.status, answer.content_type, answer.body)
            else:
                await self._hand_on(call, answer, lease, pool, reply)

    async def _hand_on(self, call: Call, answer: Answer, lease: Lease, pool: Pool, reply: Outgoing) -> None:
        assert answer.rest is not None
        await reply.begin(call, answer.body)
        try:
            async for piece in answer.rest:
                call.took(piece)
                await reply.more(piece)
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            logger.warning("%s: a stream of %s broke: %s", call.id, lease.backend.id, error)
            call.cut = True
            lease.record(good=False)
            await pool.inquire(lease.backend)
            await reply.more(stream.event(error_body(CUT, "server_error", code="replica_ended")))
        await reply.end()

    async def _fail(
        self, error: Exception, call: Call | None, reply: Outgoing, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if not isinstance(error, CatenaError):
            logger.error("a request to %s failed", scope["path"], exc_info=error)
        status = error.http_status if isinstance(error, CatenaError) else 500
        if call is not None:
            call.status = status
        name = call.ask.model if call is not None and call.ask.model in self.gateway.config.models else ""
        if isinstance(error, RateLimited | Overloaded | Poisonous):
            self.gateway.meters.refused.add(name, type(error).__name__.lower())
        elif call is None:
            self.gateway.meters.requests.add("", "", str(status))
        if reply.started:
            with contextlib.suppress(Exception):
                await reply.more(stream.event(error_body(UNEXPECTED, "server_error")))
                await reply.end()
            return
        await said(error)(scope, receive, send)


async def _watch(receive: Receive, task: asyncio.Task[None] | None, call: Call, reply: Outgoing) -> None:
    """Stop a request when its client goes away before it has its answer; what comes after that is still done."""
    while (await receive())["type"] != "http.disconnect":
        pass
    assert task is not None
    if not reply.done:
        call.left = True
        if not call.held:
            task.cancel()


class Outgoing:
    """The answer as it goes out."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.done = False

    def gone(self, call: Call) -> bool:
        """Tell whether it was the client that left, and not the server that ends."""
        if not call.left:
            return False
        call.status = 499
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        return True

    async def whole(
        self, call: Call, status: int, kind: bytes, body: bytes, more: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        """Send a whole answer."""
        self.started = True
        headers = [
            (b"content-type", kind),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", call.id.encode()),
            (b"x-catena-replica", call.replica.encode()),
            *(more or ()),
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        self.done = True
        await self._send({"type": "http.response.body", "body": body})

    async def begin(self, call: Call, body: bytes) -> None:
        """Send the headers of a stream, and its beginning."""
        self.started = True
        own = [(b"x-request-id", call.id.encode()), (b"x-catena-replica", call.replica.encode())]
        await self._send({"type": "http.response.start", "status": 200, "headers": [*stream.HEADERS, *own]})
        await self.more(body)

    async def more(self, piece: bytes) -> None:
        """Send a piece of a stream."""
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        """End a stream."""
        self.done = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
