"""10,000 clients at one server: connections are held open and silent, and ordinary clients must still be served.

    python benchmarks/connections.py [--clients 10000]

The server takes at most `max_connections` (here 2000). Silent clients lose their place after `header_timeout_s` (here
2 seconds); the others are refused with 503 and `Retry-After`, or find the connection cut where they are late to read.
Told are what became of every client, how ordinary requests fared meanwhile, and the server's memory before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

RESULTS = Path(__file__).parent / "results" / "connections.json"
BOUND, PATIENCE_S, GIVE_UP_S = 2000, 2.0, 60.0


def main() -> None:
    """Run, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--serve", action="store_true")
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    command = [sys.executable, __file__, "--serve"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        url = child.stdout.readline().strip()
        result = asyncio.run(crowd(url, arguments.clients, child.pid))
    finally:
        child.stdin.close()
        child.wait(60)
    for name, value in result.items():
        print(f"{name:24} {value}")
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(result["ordinary_wrong"] > 0 or not result["alive"])


async def crowd(url: str, clients: int, pid: int) -> dict[str, Any]:
    """Let them all come at once."""
    import psutil

    process = psutil.Process(pid)
    before = process.memory_info().rss
    ends: Counter[str] = Counter()
    ordinary: Counter[str] = Counter()
    stop = asyncio.Event()
    asking = asyncio.create_task(_ask(url, ordinary, stop))
    began = time.monotonic()
    ends.update(await asyncio.gather(*(_silent(url) for _ in range(clients))))
    seconds = time.monotonic() - began
    stop.set()
    await asking
    after: Counter[str] = Counter()
    for _ in range(20):
        await _once(url, after)
    right = {"200", "503", "closed"}
    return {
        "clients": clients,
        "bound": BOUND,
        "seconds": round(seconds, 1),
        "silent": dict(ends),
        "ordinary_meanwhile": dict(ordinary),
        "ordinary_wrong": sum(count for status, count in ordinary.items() if status not in right),
        "ordinary_afterwards": dict(after),
        "alive": after["200"] == 20,
        "mib_before": round(before / 2**20, 1),
        "mib_after": round(process.memory_info().rss / 2**20, 1),
        "load_average": os.getloadavg()[0],
    }


async def _silent(url: str) -> str:
    """Connect, say nothing, and wait for the end; return what came."""
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(GIVE_UP_S):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            with suppress(OSError):
                writer.write(b"GET /health HTTP/1.1\r\n")
            told = await reader.read()
            writer.close()
    except TimeoutError:
        return "still open"
    except OSError as error:
        return type(error).__name__
    return told.split(b" ", 2)[1].decode() if told else "closed"


async def _ask(url: str, ends: Counter[str], stop: asyncio.Event) -> None:
    while not stop.is_set():
        await _once(url, ends)
        await asyncio.sleep(0.05)


async def _once(url: str, ends: Counter[str]) -> None:
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(GIVE_UP_S):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(f"GET /health HTTP/1.1\r\nhost: {parts.netloc}\r\nconnection: close\r\n\r\n".encode())
            told = await reader.read()
            writer.close()
    except TimeoutError:
        ends["no answer"] += 1
    except OSError as error:
        ends[type(error).__name__] += 1
    else:
        ends[told.split(b" ", 2)[1].decode() if told else "closed"] += 1


def serve() -> None:
    """Serve a model that is never asked, until the standard input ends."""
    from catena.serve.app import build_app
    from catena.serve.config import ServeConfig
    from catena.serve.server import background

    class Idle:
        def stats(self) -> dict[str, float]:
            return {"alive": 1.0}

    config = ServeConfig(max_connections=BOUND, header_timeout_s=PATIENCE_S)
    with background(build_app({"idle": Idle()}, config=config), config=config) as url:  # type: ignore[dict-item]
        print(url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
