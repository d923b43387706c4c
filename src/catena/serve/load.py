"""A load test: many clients ask an OpenAI server for streamed answers, and every one is timed.

    arrivals (Poisson, or more or less bursty) -> at most `concurrency` at once -> first token, each token, last token

The client speaks HTTP/1.1 by itself, one connection for each request, so that it costs the machine little beside the
server that it measures. Names of the numbers are those of vLLM's `bench serve`:

    ttft  from sending to the first token          tpot  time per token after the first
    e2el  from sending to the last token           itl   between two pieces of an answer
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import orjson
from pydantic import Field

from catena.core.config import Config
from catena.core.errors import RemoteError, UsageError

PERCENTILES = (50, 95, 99)
WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "it",
    "as",
    "was",
    "with",
    "on",
    "not",
    "he",
    "this",
    "or",
    "at",
)


class LoadConfig(Config):
    """What is asked, and how often."""

    model: str
    """Name of the model at the server."""
    requests: int = Field(default=200, ge=1)
    """Requests at each concurrency."""
    rate: float = Field(default=0.0, ge=0)
    """Requests a second that arrive; 0: as fast as `concurrency` lets them."""
    burstiness: float = Field(default=1.0, gt=0)
    """Shape of the gamma distribution of the gaps: 1 is Poisson, below it comes in bursts, above it more evenly."""
    concurrency: tuple[int, ...] = (64,)
    """Most requests at once; of several, one after the other."""
    route: Literal["chat", "completions"] = "chat"
    input_words: int = Field(default=32, ge=1)
    """Words of each prompt, drawn at random; `prompts` take their place."""
    prompts: tuple[str, ...] = ()
    """Prompts to take turns with."""
    max_tokens: int = Field(default=32, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    ignore_end: bool = False
    """Ask for exactly `max_tokens` tokens (`ignore_eos`, which not every server knows)."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Longest time of one request."""
    ttft_ms: float = Field(default=0.0, ge=0)
    """Goodput counts requests whose first token came within this time; 0: any."""
    tpot_ms: float = Field(default=0.0, ge=0)
    """And whose time per token was at most this."""
    e2el_ms: float = Field(default=0.0, ge=0)
    """And that were complete within this."""
    seed: int = 0


@dataclass(slots=True)
class Call:
    """One request: when it was sent, when pieces came, and how it ended. Times in seconds."""

    sent: float
    pieces: list[float] = field(default_factory=list)
    """When each piece of text came, after `sent`."""
    tokens: int = 0
    prompt_tokens: int = 0
    ended: float = 0.0
    error: str = ""
    """A status, or what went wrong; empty for an answer that came whole."""

    @property
    def ttft(self) -> float:
        """To the first piece, or to the end of an answer that has no text."""
        return self.pieces[0] if self.pieces else self.ended

    @property
    def tpot(self) -> float | None:
        """Time per token after the first; None where there is only one."""
        return (self.ended - self.ttft) / (self.tokens - 1) if self.tokens > 1 else None


def run_load(url: str, config: LoadConfig) -> dict[str, Any]:
    """Load a server and return what was measured: `config`, and `levels`, one for each concurrency.

    Raises `RemoteError` where no request at all was answered.
    """
    target = Target.of(url, config.route)
    levels = [asyncio.run(_level(target, config, count)) for count in config.concurrency]
    return {"url": url, "config": config.model_dump(mode="json", exclude={"prompts"}), "levels": levels}


@dataclass(frozen=True, slots=True)
class Target:
    """Where the server is."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    path: str
    headers: Mapping[str, str]

    @staticmethod
    def of(url: str, route: str) -> Target:
        """Read a URL, with `/v1` at its end or without; the key is `OPENAI_API_KEY`, where it is set."""
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is no address of a server", hint="For example http://127.0.0.1:8000")
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        base = parts.path.rstrip("/").removesuffix("/v1")
        path = base + ("/v1/chat/completions" if route == "chat" else "/v1/completions")
        headers = {"host": parts.netloc.rpartition("@")[2], "content-type": "application/json", "connection": "close"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["authorization"] = f"Bearer {key}"
        return Target(parts.hostname, parts.port or (443 if tls else 80), tls, path, headers)


async def _level(target: Target, config: LoadConfig, concurrency: int) -> dict[str, Any]:
    chance = random.Random(config.seed)
    places = asyncio.Semaphore(concurrency)
    bodies = [_body(config, number, chance) for number in range(config.requests)]
    began = time.perf_counter()
    due = began
    tasks: list[asyncio.Task[Call]] = []
    for body in bodies:
        if config.rate:
            due += chance.gammavariate(config.burstiness, 1 / (config.rate * config.burstiness))
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(_one(target, config, body, places)))
    calls = await asyncio.gather(*tasks)
    if all(call.error for call in calls):
        reason = Counter(call.error for call in calls).most_common(1)[0][0]
        raise RemoteError(f"no request was answered: {reason}", hint="Is the server up, and the model's name right?")
    return summary(calls, config, concurrency, time.perf_counter() - began)


def _body(config: LoadConfig, number: int, chance: random.Random) -> bytes:
    if config.prompts:
        prompt = config.prompts[number % len(config.prompts)]
    else:
        prompt = " ".join(chance.choice(WORDS) for _ in range(config.input_words))
    asked = {"messages": [{"role": "user", "content": prompt}]} if config.route == "chat" else {"prompt": prompt}
    return orjson.dumps(
        {
            "model": config.model,
            **asked,
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if config.ignore_end else {}),
        }
    )


async def _one(target: Target, config: LoadConfig, body: bytes, places: asyncio.Semaphore) -> Call:
    """Send one request when there is a place for it. What waits for a place is the client's, and is not timed."""
    async with places:
        call = Call(time.perf_counter())
        try:
            async with asyncio.timeout(config.timeout_s):
                async for event in events(target, body):
                    _note(call, event)
            if not call.tokens and not call.pieces and not call.error:
                call.error = "cut off"
        except (TimeoutError, OSError, EOFError, ValueError, _Refused) as error:
            call.error = "timeout" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        call.ended = time.perf_counter() - call.sent
        call.tokens = call.tokens or len(call.pieces)
        return call


def _note(call: Call, event: bytes) -> None:
    if event == b"[DONE]":
        return
    value = orjson.loads(event)
    if "error" in value:
        call.error = str(value["error"].get("message", "error"))
    for choice in value.get("choices") or ():
        if choice.get("text") or (choice.get("delta") or {}).get("content"):
            call.pieces.append(time.perf_counter() - call.sent)
    if usage := value.get("usage"):
        call.tokens, call.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]


class _Refused(Exception):
    """The server answered with an error's status."""


async def events(target: Target, body: bytes) -> AsyncIterator[bytes]:
    """Send a request and yield the data of each server-sent event."""
    reader, writer = await asyncio.open_connection(target.host, target.port, ssl=target.tls)
    try:
        head = f"POST {target.path} HTTP/1.1\r\n" + "".join(f"{key}: {one}\r\n" for key, one in target.headers.items())
        writer.write(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        told = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = int(told.split(b" ", 2)[1])
        if status != 200:
            raise _Refused(f"status {status}")
        held = b""
        async for piece in _pieces(reader, chunked=b"transfer-encoding: chunked" in told):
            *lines, held = (held + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield line[5:].strip()
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _pieces(reader: asyncio.StreamReader, *, chunked: bool) -> AsyncIterator[bytes]:
    """Yield a body as it comes."""
    if not chunked:
        while piece := await reader.read(1 << 16):
            yield piece
        return
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]


def summary(calls: Sequence[Call], config: LoadConfig, concurrency: int, seconds: float) -> dict[str, Any]:
    """Return a level's numbers; latencies in milliseconds, of the requests that were answered whole."""
    done = [call for call in calls if not call.error]
    tokens = sum(call.tokens for call in done)
    gaps = [after - before for call in done for before, after in zip(call.pieces, call.pieces[1:], strict=False)]
    return {
        "concurrency": concurrency,
        "offered_per_s": config.rate or None,
        "seconds": round(seconds, 3),
        "completed": len(done),
        "failed": dict(Counter(call.error for call in calls if call.error)),
        "requests_per_s": round(len(done) / seconds, 3),
        "goodput_per_s": round(sum(_good(call, config) for call in done) / seconds, 3),
        "output_tokens_per_s": round(tokens / seconds, 2),
        "total_tokens_per_s": round((tokens + sum(call.prompt_tokens for call in done)) / seconds, 2),
        "ttft_ms": spread([call.ttft for call in done]),
        "tpot_ms": spread([call.tpot for call in done if call.tpot is not None]),
        "itl_ms": spread(gaps),
        "e2el_ms": spread([call.ended for call in done]),
    }


def _good(call: Call, config: LoadConfig) -> bool:
    """Whether an answer kept to all limits."""
    told = ((call.ttft, config.ttft_ms), (call.tpot or 0.0, config.tpot_ms), (call.ended, config.e2el_ms))
    return all(not limit or seconds * 1000 <= limit for seconds, limit in told)


def spread(seconds: Sequence[float]) -> dict[str, float] | None:
    """Return mean and percentiles in milliseconds; None of nothing."""
    if not seconds:
        return None
    values = np.array(seconds) * 1000
    told = {f"p{one}": round(float(np.percentile(values, one)), 3) for one in PERCENTILES}
    return {"mean": round(float(values.mean()), 3), **told}
