"""HTTP to an engine: JSON out, JSON or server-sent events back, and errors in Catena's words. One event loop's own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import orjson

from catena.core.errors import CatenaError, EnvironmentProblem, RemoteError, UsageError
from catena.infer.backends.wire import Call, nonsense

FOR_NOW = frozenset({429, 503})
"""Statuses that say: later."""
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 20.0
LONGEST_EVENT = 64 << 20


class Later(RemoteError):
    """The engine refused for now, or was not there: worth another try. `after` is when it says to come back."""

    def __init__(self, message: str, after: float | None = None, *, status: int = 503) -> None:
        super().__init__(message, hint="Try again in a moment.")
        self.after = after
        self.http_status = status


class Channel:
    """Connections to one engine."""

    def __init__(self, name: str, url: str, key: str, *, connect_s: float, silence_s: float, local: bool) -> None:
        self.name, self.url = name, url.rstrip("/")
        self._silence = silence_s
        headers = {"authorization": f"Bearer {key}"} if key else {}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=silence_s)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=timeout,
            headers=headers,
            trust_env=not local,  # proxies of the environment are for other machines than this one
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def get(self, path: str, seconds: float) -> Any:
        """Return the JSON at a path, or None where there is none."""
        try:
            timeout = aiohttp.ClientTimeout(total=seconds)
            async with self._session.get(self.url + path, timeout=timeout) as response:
                return orjson.loads(await response.read()) if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError, OSError):
            return None

    async def alive(self, url: str, seconds: float) -> bool:
        """Ask whether a URL answers 200."""
        try:
            async with self._session.get(url, timeout=aiohttp.ClientTimeout(total=seconds)) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def events(self, call: Call, retries: int) -> AsyncIterator[Mapping[str, Any]]:
        """Send a call and give its events, or its one answer.

        What is refused for now, or finds nobody, is sent again as long as nothing came. Raises `UsageError` for what
        the engine refuses, `RemoteError` where it fails, is silent too long, or breaks off.
        """
        for attempt in range(retries + 1):
            came = False
            try:
                async for event in self._once(call):
                    came = True
                    yield event
                return
            except Later as error:
                if came or attempt == retries:
                    raise
                backoff = min(FIRST_WAIT_S * 2**attempt, LONGEST_WAIT_S) * random.uniform(0.5, 1)
                await asyncio.sleep(min(error.after, LONGEST_WAIT_S) if error.after is not None else backoff)

    async def _once(self, call: Call) -> AsyncIterator[Mapping[str, Any]]:
        try:
            async with self._session.post(self.url + call.path, json=call.body) as response:
                if response.status != 200:
                    raise self._refused(response.status, response.headers, await response.read())
                if call.stream:
                    async for event in self._stream(response):
                        yield event
                else:
                    yield self._decoded(await response.read())
        except TimeoutError as error:
            raise RemoteError(f"{self.name} at {self.url} said nothing for {self._silence:g} s") from error
        except aiohttp.ClientConnectorError as error:
            raise Later(f"nobody answers at {self.url}", status=502) from error
        except (aiohttp.ClientError, OSError) as error:
            what = str(error) or type(error).__name__
            raise RemoteError(f"{self.name} at {self.url} broke off in the middle of an answer: {what}") from error

    async def _stream(self, response: aiohttp.ClientResponse) -> AsyncIterator[Mapping[str, Any]]:
        """Read server-sent events; one that says [DONE] ends them. A stream without that end was cut."""
        rest = b""
        async for chunk in response.content.iter_any():
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LONGEST_EVENT:
                raise nonsense(self.name, "an event without an end")
            for line in lines:
                if not line.startswith(b"data:"):
                    if line.startswith(b"error:"):
                        raise self._told(self._decoded(line.removeprefix(b"error:")))
                    continue
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    return
                event = self._decoded(data)
                if event.get("error"):
                    raise self._told(event)
                yield event

    def _decoded(self, data: bytes) -> Mapping[str, Any]:
        try:
            found = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise nonsense(self.name, data) from error
        if not isinstance(found, dict):
            raise nonsense(self.name, data)
        return found

    def _told(self, event: Mapping[str, Any]) -> CatenaError:
        """Return the error that an event in the middle of a stream tells."""
        inner = event.get("error") or event
        message = inner.get("message") if isinstance(inner, Mapping) else inner
        return RemoteError(f"{self.name} failed while it answered: {str(message)[:500]}")

    def _refused(self, status: int, headers: Mapping[str, str], body: bytes) -> CatenaError:
        message = _message(body) or f"status {status}"
        if status in FOR_NOW:
            wait = headers.get("retry-after", "")
            return Later(f"{self.name} is full: {message}", float(wait) if wait.isdecimal() else None)
        if status in (401, 403):
            return EnvironmentProblem(f"{self.name} at {self.url} wants another key: {message}", hint="See `key_env`.")
        if 400 <= status < 500:
            return UsageError(f"{self.name} refused: {message}")
        return RemoteError(f"{self.name} failed with status {status}: {message}")


def _message(body: bytes) -> str:
    """Return what an error's body says: OpenAI's form, the others' forms, or its text."""
    try:
        found: Any = orjson.loads(body)
        for key in ("error", "message", "detail"):
            while isinstance(found, Mapping) and found.get(key):
                found = found[key]
    except orjson.JSONDecodeError:
        found = body.decode(errors="replace")
    return str(found).strip()[:500]
