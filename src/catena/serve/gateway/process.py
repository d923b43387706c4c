"""A child process whose output is read by the event loop, on any loop.

Started by `subprocess` and not by the loop: uvloop forks with all that is registered for a fork (of libraries that do
not bear one), while `subprocess` goes to the new program at once.
"""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any


class Process:
    """One child; made by `spawn`."""

    def __init__(self, popen: subprocess.Popen[bytes], out: asyncio.StreamReader, err: asyncio.StreamReader) -> None:
        self._popen, self.stdout, self.stderr = popen, out, err
        self._pipes: list[asyncio.BaseTransport] = []
        self._ended = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wait() -> None:
            popen.wait()
            try:
                loop.call_soon_threadsafe(self._ended.set)
            except RuntimeError:
                pass  # the loop is closed: nobody waits

        threading.Thread(target=wait, name=f"catena-child-{popen.pid}", daemon=True).start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it runs."""
        return self._popen.returncode

    async def wait(self) -> None:
        """Wait until it is gone."""
        await self._ended.wait()

    def terminate(self) -> None:
        """Ask it to end."""
        self._popen.terminate()

    def kill(self) -> None:
        """End it."""
        self._popen.kill()

    def close(self) -> None:
        """Close its pipes."""
        for pipe in self._pipes:
            pipe.close()

    async def read(self, pipe: IO[bytes], into: asyncio.StreamReader) -> None:
        """Give what comes out of a pipe to a reader."""
        protocol = asyncio.StreamReaderProtocol(into)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
        self._pipes.append(transport)


async def spawn(
    command: Sequence[str], environment: Mapping[str, str], *, keep: Sequence[int], limit: int, **options: Any
) -> Process:
    """Start a command; `keep` are descriptors that it inherits, `limit` the longest line that is read at once."""

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=keep,
            env=environment,
            **options,
        )

    popen = await asyncio.to_thread(start)
    made = Process(popen, asyncio.StreamReader(limit), asyncio.StreamReader(limit))
    for pipe, into in ((popen.stdout, made.stdout), (popen.stderr, made.stderr)):
        assert pipe is not None
        await made.read(pipe, into)
    return made
