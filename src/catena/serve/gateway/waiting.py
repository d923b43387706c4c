"""Waiting for whichever comes first: a replica that starts or dies, or somebody who does not want it any more."""

from __future__ import annotations

import asyncio
import contextlib

from catena.serve.gateway.child import Started


async def either(*coroutines: object) -> None:
    """Wait for whichever ends first; the others are cancelled. What that one raises is raised."""
    tasks = [asyncio.ensure_future(one) for one in coroutines]  # type: ignore[call-overload]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unless(leaving: asyncio.Event, coroutine: object) -> Started | None:
    """Wait for a start, but not for one that nobody wants any more."""
    starting: asyncio.Task[Started] = asyncio.ensure_future(coroutine)  # type: ignore[call-overload]
    with contextlib.suppress(asyncio.CancelledError):
        await either(leaving.wait(), _settled(starting))
    if starting.done() and not starting.cancelled():
        return starting.result()
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    return None


async def _settled(task: asyncio.Task[Started]) -> None:
    await asyncio.wait({task})
