"""The generator over an engine that is not ours: all that the native one has, over HTTP.

    caller's thread: check, tokenize -> the loop's thread: call, pieces -> deltas, from that thread

One thread with one event loop holds all connections, however many requests are under way. A request that is cancelled,
late or stopped closes its connection, which tells the engine to stop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import threading
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from catena.core.errors import CatenaError, EnvironmentProblem, RemoteError, UsageError
from catena.core.generate import Completion, Delta, FinishReason, Message, Request
from catena.infer.backends.answer import Answer
from catena.infer.backends.channel import Channel
from catena.infer.backends.config import LaunchConfig, RemoteConfig
from catena.infer.backends.process import EngineProcess
from catena.infer.backends.under_way import SCORING, Counters, OnDelta, Place, Ticket, drops_space, tell
from catena.infer.backends.wire import Asked, Wire, check
from catena.infer.codec import ModelCodec
from catena.infer.prompt import check_length, check_params

logger = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")
HEARTBEAT_S = 2.0
VOCABULARY = 1 << 31
"""Bound of token ids where the tokenizer is not known."""


class RemoteGenerator:
    """A `Generator` and a `StreamingGenerator` over an engine's HTTP."""

    codec: ModelCodec
    """Only where the model's tokenizer is known."""

    def __init__(self, wire: Wire, place: Place, config: RemoteConfig, codec: ModelCodec | None = None) -> None:
        self.wire, self.place, self.config = wire, place, config
        if codec is not None:
            self.codec = codec
        self._codec = codec
        self._drops_space = codec is not None and drops_space(codec)
        self.context = config.context
        self.adapters: list[str] = list(config.adapters) if isinstance(config, LaunchConfig) else []
        self._numbers = itertools.count()
        self._lock = threading.Lock()  # guards what follows
        self._tickets: dict[str, Ticket] = {}
        self._failure: CatenaError | None = None
        self._closed = False
        self._counters = Counters()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="catena-backend", daemon=True)
        self._thread.start()
        try:
            self._channel: Channel = self._await(self._open())
            self.model = self.config.model or self._await(self._first_model())
        except BaseException:
            self.close()
            raise
        self._heart: Future[None] | None = None
        if place.process is not None:
            self._heart = asyncio.run_coroutine_threadsafe(self._watch(place.process), self._loop)

    # -- one request ---------------------------------------------------------------------------------------------------

    def submit(self, request: Request, on_delta: OnDelta) -> None:
        """Take a request; its deltas come from the backend's thread.

        Raises `UsageError` for a bad request or what the engine cannot do, `EnvironmentProblem` where too many are
        under way or the engine is gone.
        """
        self._enter(request.id, self._asked(request, stream=True), on_delta, bounded=True)

    def cancel(self, request_id: str) -> None:
        """Stop a request; its last delta says `cancelled`. Unknown ids are ignored."""
        with self._lock:
            ticket = self._tickets.get(request_id)
            if ticket is None:
                return
            ticket.cancelled = True
        self._loop.call_soon_threadsafe(ticket.stop)

    def _enter(self, key: str, asked: Asked, on_delta: OnDelta, *, bounded: bool) -> None:
        with self._lock:
            self._refuse_if_gone()
            limit = self.config.max_running + self.config.max_waiting
            if bounded and len(self._tickets) >= limit:
                raise EnvironmentProblem(
                    f"the engine is full: {limit} requests are on their way", hint="Try again in a moment."
                )
            if key in self._tickets:
                raise UsageError(f"a request with the id {key!r} is on its way already")
            self._counters.requests += 1
            self._tickets[key] = Ticket()
            asyncio.run_coroutine_threadsafe(self._answer(key, asked, on_delta), self._loop)

    def _asked(self, request: Request, *, stream: bool, score: bool = False) -> Asked:
        """Check a request and put it into tokens; in the caller's thread. Raises `UsageError`."""
        params = request.params
        check_params(params, self._codec.vocabulary if self._codec is not None else VOCABULARY)
        check(self.wire, request)
        scored = score or not params.max_tokens
        if not scored:
            check_length(params, self.context or params.max_tokens)
        told = 0 if scored and params.prompt_logprobs is None else params.prompt_logprobs
        return Asked(request, self.model, self._ids(request, scored), self.context, stream, told)

    def _ids(self, request: Request, scored: bool) -> list[int] | None:
        prompt, codec = request.prompt, self._codec
        if not prompt:
            raise UsageError("the prompt is empty")
        if codec is None:
            if isinstance(prompt, str) or any(isinstance(one, Message) for one in prompt):
                if self.wire.able.ids:
                    raise UsageError(
                        f"{self.wire.name} is asked in tokens", hint="Say `tokenizer`: the model's folder."
                    )
                return None
            return [one for one in prompt if isinstance(one, int)]
        if not self.wire.able.ids and not scored and not isinstance(prompt[0], int):
            return None  # the server applies its own tokenizer and chat template
        ids = codec.tokens(prompt, request.tools)
        room = None if self.context is None else self.context - (0 if scored else 1)
        if room is not None and len(ids) > room:
            raise UsageError(
                f"the prompt has {len(ids)} tokens; the context is {self.context} tokens"
                + ("" if scored else " and must leave room for at least one token of the answer"),
                hint="Shorten the prompt, or drop the oldest messages.",
            )
        return ids

    async def _answer(self, key: str, asked: Asked, on_delta: OnDelta) -> None:
        """Ask, tell what comes, and tell the end, whatever it is."""
        whole_ids = self.wire.name != "llama.cpp" or not asked.stream
        answer = Answer(asked, self._codec, whole_ids=whole_ids, drops_space=self._drops_space)
        reason: FinishReason | None = None
        error: CatenaError | None = None
        ticket = self._tickets[key]
        ticket.task = asyncio.current_task()
        try:
            if ticket.cancelled:
                raise asyncio.CancelledError
            async with asyncio.timeout(asked.request.deadline):
                await self._follow(asked, answer, on_delta)
        except asyncio.CancelledError:
            reason = "error" if self._failure is not None else "cancelled"
            error = self._failure
        except TimeoutError:
            reason = "deadline"
        except CatenaError as found:
            reason, error = "error", await self._blamed(found)
        except Exception as found:
            logger.exception("request %s failed", asked.request.id)
            reason, error = "error", CatenaError(f"something unexpected happened: {found}")
        finally:
            with self._lock:
                del self._tickets[key]
            self._count(reason, last := answer.last(reason, error))
            tell(on_delta, last, asked.request.id)

    async def _follow(self, asked: Asked, answer: Answer, on_delta: OnDelta) -> None:
        call, read = self.wire.call(asked), self.wire.reader(asked)
        retries = self.config.retries if self.place.process is None else 0
        events = self._channel.events(call, retries)
        try:
            async for event in events:
                delta = answer.push(read(event))
                if delta is not None and not tell(on_delta, delta, asked.request.id):
                    raise asyncio.CancelledError
                if answer.complete:
                    break
        finally:
            await events.aclose()  # type: ignore[attr-defined]
        if answer.finish is None:
            raise RemoteError(f"{self.wire.name} broke off in the middle of an answer")

    async def _blamed(self, error: CatenaError) -> CatenaError:
        """Return what is to be told: where the child died, that, with what it said last."""
        process = self.place.process
        if process is None or not isinstance(error, RemoteError):
            return error
        for _ in range(10):  # its connections break a moment before the process is gone
            if not process.alive:
                self._fail(process.ended("while it answered"))
                return self._failure or error
            await asyncio.sleep(0.05)
        return error

    def _count(self, reason: FinishReason | None, last: Delta) -> None:
        assert last.completion is not None
        counters = self._counters
        counters.prompt_tokens += last.completion.prompt_tokens
        counters.generated_tokens += last.completion.generated
        counters.cancelled += reason == "cancelled"
        counters.late += reason == "deadline"
        counters.failed += reason == "error"

    # -- many requests -------------------------------------------------------------------------------------------------

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield a completion for each request, as they finish; raises what went wrong with the first that failed."""
        return self._drive(requests, score=False)

    def score(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield, for each request, the log-probability of every prompt token after the first."""
        if not self.wire.able.prompt_logprobs:
            raise UsageError(f"{self.wire.name} tells no log-probabilities of a prompt", hint="Use the native engine.")
        return self._drive(requests, score=True)

    def _drive(self, requests: Iterable[Request], *, score: bool) -> Iterator[Completion]:
        done: queue.SimpleQueue[tuple[str, Completion]] = queue.SimpleQueue()
        mine: set[str] = set()
        source = iter(requests)
        try:
            while True:
                for request in itertools.islice(source, self.config.max_running - len(mine)):
                    mine.add(self._enter_silent(request, score, done))
                if not mine:
                    return
                key, completion = done.get()
                mine.discard(key)
                if completion.finish_reason == "error":
                    raise completion.error or RemoteError(f"{self.wire.name} failed")
                yield completion
        finally:
            for key in mine:
                self.cancel(key)

    def _enter_silent(self, request: Request, score: bool, done: queue.SimpleQueue[tuple[str, Completion]]) -> str:
        key = f"{request.id}#{next(self._numbers)}"  # ids of two calls may be the same
        if score:
            request = Request(request.id, request.prompt, SCORING, adapter=request.adapter)

        def on_delta(delta: Delta) -> None:
            if delta.completion is not None:
                done.put((key, delta.completion))

        self._enter(key, self._asked(request, stream=False, score=score), on_delta, bounded=False)
        return key

    # -- the engine as a whole -----------------------------------------------------------------------------------------

    def stats(self) -> Mapping[str, float]:
        """Return counters (names end in `_total`) and gauges."""
        process = self.place.process
        alive = self._failure is None and not self._closed and (process is None or process.alive)
        with self._lock:
            running = len(self._tickets)
        told = {"alive": float(alive), "running": float(running), "waiting": 0.0, **self._counters.stats()}
        return told | ({"context_tokens": float(self.context)} if self.context else {})

    def close(self) -> None:
        """Let requests finish for `drain_s`, cancel the rest, and end the engine. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        deadline = time.monotonic() + (self.config.drain_s if self._failure is None else 0)
        while self._under_way() and time.monotonic() < deadline:
            time.sleep(0.02)
        for key in self._under_way():
            self.cancel(key)
        if self.place.process is not None:
            self.place.process.stop()
        try:
            self._await(self._end())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self.place.clean()

    def _under_way(self) -> list[str]:
        with self._lock:
            return list(self._tickets)

    async def _open(self) -> Channel:
        config, place = self.config, self.place
        return Channel(
            self.wire.name,
            place.url,
            place.key,
            connect_s=config.connect_timeout_s,
            silence_s=config.silence_timeout_s,
            local=place.process is not None or "//127.0.0.1" in place.url or "//localhost" in place.url,
        )

    async def _first_model(self) -> str:
        """Ask which models there are, and how long their context is where they tell."""
        found = await self._channel.get("/models", self.config.connect_timeout_s)
        rows = (found or {}).get("data") or [] if isinstance(found, dict) else []
        if not rows:
            return "default"
        told = rows[0].get("max_model_len")
        if self.context is None and isinstance(told, int):
            self.context = told
        return str(rows[0].get("id") or "default")

    async def _watch(self, process: EngineProcess) -> None:
        """Look after the child: one that is gone, or silent for too long, fails everybody."""
        assert isinstance(self.config, LaunchConfig)
        heard = time.monotonic()
        patience = self.config.health_timeout_s
        while not self._closed:
            if not process.alive:
                self._fail(process.ended("while it served"))
                return
            if await self._channel.alive(self.place.alive_url, min(patience, HEARTBEAT_S * 5)):
                heard = time.monotonic()
            elif process.alive and time.monotonic() - heard > patience:
                self._fail(process.ended(f"(silent for {patience:g} s)"))
                await asyncio.to_thread(process.stop)
                return
            await asyncio.sleep(min(HEARTBEAT_S, patience / 4))

    def _fail(self, error: CatenaError) -> None:
        with self._lock:
            if self._closed or self._failure is not None:
                return
            self._failure = error
        logger.error("%s", error)
        for key in self._under_way():
            self.cancel(key)

    def _refuse_if_gone(self) -> None:
        if self._failure is not None:
            raise EnvironmentProblem(self._failure.message, hint=self._failure.hint) from self._failure
        if self._closed:
            raise EnvironmentProblem("the engine is closed", hint="Open it again.")

    async def _end(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if hasattr(self, "_channel"):
            await self._channel.close()

    def _await(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
