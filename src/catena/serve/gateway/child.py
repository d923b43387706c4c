"""One replica's process: start it, learn its URL, look at it, end it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from catena.core.errors import EnvironmentProblem, RemoteError
from catena.serve.gateway.endings import from_outside, memory_kills
from catena.serve.gateway.process import Process, spawn

logger = logging.getLogger(__name__)
LINE_BYTES = 1 << 20
KEPT_LINES = 20


@dataclass(frozen=True, slots=True)
class Started:
    """What a replica says when it is ready."""

    url: str
    model: str = ""
    digest: str = ""


class Child:
    """A process on a leash. `start` it once; `ended` tells when it is gone."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name, self._command, self._environment = name, tuple(command), dict(environment)
        self._leash = -1
        self._process: Process | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._said: asyncio.Future[Started] | None = None
        self._memory_kills = memory_kills()
        self.last_words: list[str] = []
        """The last lines of its standard error."""

    @property
    def pid(self) -> int:
        """Its process id; 0 before the start."""
        return self._process.pid if self._process else 0

    @property
    def code(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.returncode if self._process else None

    def lived(self, kills: int | None) -> None:
        """Note that it answered after the kernel's count was `kills`: those were other processes."""
        self._memory_kills = kills

    def ended_by_others(self) -> bool:
        """Tell whether somebody ended it from outside, as far as can be known."""
        return from_outside(self.code, self._memory_kills, memory_kills())

    async def start(self, seconds: float) -> Started:
        """Start it and wait for its line. Raises `EnvironmentProblem` where it ends, or says nothing for so long."""
        read, self._leash = os.pipe()
        try:
            self._process = await spawn(
                (sys.executable, "-m", "catena.serve.gateway.leash", str(read), *self._command),
                {**os.environ, **self._environment},
                keep=(read,),
                limit=LINE_BYTES,
                start_new_session=True,  # Ctrl-C is for the gateway, which lets its replicas finish first
            )
        finally:
            os.close(read)
        self._said = asyncio.get_running_loop().create_future()
        self._readers = [asyncio.create_task(self._read_out()), asyncio.create_task(self._read_err())]
        ended = asyncio.create_task(self._process.wait())
        try:
            either: set[asyncio.Future[Any]] = {ended, self._said}
            await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if self._said.done():
                return self._said.result()
            if ended.done():
                await asyncio.wait(self._readers, timeout=1.0)
            how = f"ended with code {self.code}" if ended.done() else f"did not answer within {seconds:g} s"
            raise EnvironmentProblem(f"the replica {self.name} {how}", hint="\n".join(self.last_words[-5:]))
        finally:
            ended.cancel()

    async def ended(self) -> None:
        """Wait until it is gone."""
        assert self._process is not None
        await self._process.wait()

    async def stop(self, seconds: float) -> None:
        """Ask it to end, wait for so long, and end it then."""
        if self._process is None:  # it could not even be started
            await self._tidy()
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), seconds)
        except TimeoutError:
            self.kill()
            await self._process.wait()
        await self._tidy()

    def kill(self) -> None:
        """End it now."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _tidy(self) -> None:
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        if self._process is not None:
            self._process.close()
        if self._leash >= 0:
            os.close(self._leash)
            self._leash = -1

    async def _read_out(self) -> None:
        assert self._process is not None
        assert self._said is not None
        said = b""
        while line := await _line(self._process.stdout):
            if self._said.done():
                continue
            said = line if line.startswith(b"{") else said + line  # one line, or an object over several
            if (told := _started(said[:LINE_BYTES])) is not None:
                self._said.set_result(told)

    async def _read_err(self) -> None:
        assert self._process is not None
        while line := await _line(self._process.stderr):
            text = line.decode(errors="replace").rstrip()
            self.last_words = [*self.last_words[-KEPT_LINES + 1 :], text]
            logger.info("%s: %s", self.name, text)


async def _line(stream: asyncio.StreamReader) -> bytes:
    """Return the next line; of one that is too long, what there is."""
    try:
        return await stream.readline()
    except ValueError:
        return await stream.read(LINE_BYTES) or b""


def _started(line: bytes) -> Started | None:
    try:
        told = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(told, dict) or not isinstance(told.get("url"), str):
        return None
    url = told["url"].rstrip("/").removesuffix("/v1")
    return Started(url, str(told.get("model", "")), str(told.get("digest", "")))


async def healthy(session: aiohttp.ClientSession, url: str, seconds: float) -> bool:
    """Ask `/health`."""
    try:
        async with session.get(f"{url}/health", timeout=aiohttp.ClientTimeout(total=seconds)) as response:
            await response.read()
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


PREWARM: Sequence[tuple[str, Mapping[str, Any]]] = (
    ("/v1/completions", {"prompt": "Hello", "max_tokens": 1}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}),
    ("/v1/embeddings", {"input": "Hello"}),
    ("/v1/classify", {"input": "Hello"}),
)


async def prewarm(session: aiohttp.ClientSession, url: str, model: str, key: str, seconds: float) -> None:
    """Send a first request of whatever kind the model answers. Raises `RemoteError` where the server itself fails."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    for path, body in PREWARM:
        try:
            async with session.post(
                url + path,
                json={"model": model, **body},
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as response:
                await response.read()
                if response.status < 300:
                    return
                if response.status >= 500:
                    raise RemoteError(f"{url} answered its first request with {response.status}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RemoteError(f"{url} did not answer its first request: {error}") from error
    logger.warning("%s refuses every kind of first request; it is taken as it is", url)
