"""What the gateway costs: requests a second of one worker, added time, events of a stream, beside two plain proxies.

    python benchmarks/gateway.py [--seconds 4] [--rounds 3]

The upstream answers at once and does nothing. `catena` has replicas, routing, breaker, limits and metrics; `governed`
has keys and the audit too (and moderation where it is built). The plain proxies parse and write JSON and know nobody.
Rounds are interleaved, and medians are told: everything shares the machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
REPLICA = ROOT / "tests" / "serve" / "gateway" / "replica.py"
RESULT = Path(__file__).parent / "results" / "gateway.json"
PROXY = Path(__file__).parent / "peers" / "plain_proxy.py"
PROMPT = "Tell me in a few words what the function json.loads does, and what it raises."
STREAM_WORDS = 200


class Client(asyncio.Protocol):
    """One connection that asks, waits, and asks again: as little as a client can do."""

    def __init__(self, request: bytes) -> None:
        self.request, self.times, self.events = request, [], 0
        self.statuses: dict[int, int] = {}
        self._buffer, self._began = b"", 0.0
        self._chunked = self._headed = False
        self._length = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.until = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def go(self, until: float) -> None:
        self.until = until
        self._ask()

    def _ask(self) -> None:
        self._buffer, self._headed = b"", False
        self._began = time.perf_counter()
        self._transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._headed:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end].lower()
            status = int(head[9:12])
            self.statuses[status] = self.statuses.get(status, 0) + 1
            self._chunked = b"transfer-encoding: chunked" in head
            self._length = 0 if self._chunked else int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
            self._buffer, self._headed = self._buffer[end + 4 :], True
        if self._chunked:
            self.events += data.count(b"data: ")
            if not self._buffer.endswith(b"0\r\n\r\n"):
                self._buffer = self._buffer[-16:]
                return
        elif len(self._buffer) < self._length:
            return
        self.times.append(time.perf_counter() - self._began)
        if time.perf_counter() < self.until:
            self._ask()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


def request_of(url: str, key: str, stream: bool) -> bytes:
    host = url.removeprefix("http://")
    body = json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 64, "stream": stream}
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    auth = f"authorization: Bearer {key}\r\n" if key else ""
    return (head + auth + f"content-length: {len(body)}\r\n\r\n").encode() + body


async def load(url: str, key: str, connections: int, seconds: float, stream: bool = False) -> dict[str, Any]:
    """Ask as fast as so many connections can, for so long."""
    host, _, port = url.removeprefix("http://").partition(":")
    loop, request = asyncio.get_running_loop(), request_of(url, key, stream)
    clients = []
    for _ in range(connections):
        _, client = await loop.create_connection(lambda: Client(request), host, int(port))
        clients.append(client)
    began = time.perf_counter()
    for client in clients:
        client.go(began + seconds)
    await asyncio.gather(*(client.done for client in clients))
    spent = time.perf_counter() - began
    times = sorted(one for client in clients for one in client.times)
    statuses = {status for client in clients for status in client.statuses}
    if statuses != {200}:
        raise SystemExit(f"{url} answered {statuses}")
    return {
        "rps": len(times) / spent,
        "p50_ms": times[len(times) // 2] * 1000,
        "p99_ms": times[int(len(times) * 0.99)] * 1000,
        "events_per_s": sum(client.events for client in clients) / spent,
    }


@contextmanager
def program(*command: str, cwd: Path | None = None) -> Iterator[str]:
    """Run something that prints a JSON object with its URL; gives the URL."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, *command], cwd=cwd, env=environment, **quiet) as process:
        try:
            text = ""
            while True:
                line = process.stdout.readline()
                if not line:
                    raise SystemExit(f"{command} did not start")
                text += line
                try:
                    yield_url = json.loads(text)["url"]
                    break
                except json.JSONDecodeError:
                    continue
            yield yield_url.removesuffix("/v1")
        finally:
            process.terminate()
            process.wait(60)


def deployment(folder: Path, upstream: str, governed: bool) -> tuple[list[str], str]:
    """Write a deploy file; returns the command, and a key where one is needed."""
    deploy: dict[str, Any] = {
        "port": 0,
        "models": {"m": {"urls": [upstream], "served": "mock", "replicas": {"in_flight": 1000}}},
        "limits": {
            "rules": [{"per": "key", "requests": "100000000/hour"}, {"per": "key", "tokens": "10000000000/day"}]
        },
        "telemetry": {"gpus": False},
    }
    key = ""
    if governed:
        init = [sys.executable, "-m", "catena", "--workspace", ".catena"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        subprocess.run([*init, "init"], cwd=folder, check=True, capture_output=True, env=environment)
        made = subprocess.run(
            [*init, "keys", "create", "bench", "--json"], cwd=folder, check=True, capture_output=True, env=environment
        )
        key = json.loads(made.stdout)["key"]
        deploy["govern"] = {"auth": {"on": True}, "audit": {"on": True}}
        if (ROOT / "src" / "catena" / "serve" / "middleware" / "moderation.py").exists():
            deploy["govern"]["moderation"] = {"on": True}
    file = folder / f"deploy-{governed}.yaml"
    file.write_text(yaml.safe_dump(deploy))
    return ["-m", "catena", "up", str(file), "--json"], key


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as stack, tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        upstream = stack.enter_context(program(str(REPLICA)))
        words = " ".join(["word"] * STREAM_WORDS)
        streaming = stack.enter_context(program(str(REPLICA), "--say", words))
        for round_ in range(options.rounds):
            for name in ("direct", "plain httpx2", "plain aiohttp", "catena", "governed"):
                with ExitStack() as inner:
                    urls, key = [upstream, streaming], ""
                    for at, behind in enumerate((upstream, streaming)):
                        if name.startswith("plain"):
                            urls[at] = inner.enter_context(program(str(PROXY), name.split()[1], behind))
                        elif name != "direct":
                            apart = folder / f"{round_}-{name}-{at}"
                            apart.mkdir()
                            command, found = deployment(apart, behind, name == "governed")
                            urls[at] = inner.enter_context(program(*command, cwd=apart))
                            key = found if at == 0 else key
                            keys = found
                    first, second = key, (keys if name == "governed" else "")
                    asyncio.run(load(urls[0], first, 8, 0.5))
                    one = asyncio.run(load(urls[0], first, 1, options.seconds / 2))
                    many = asyncio.run(load(urls[0], first, 32, options.seconds))
                    events = asyncio.run(load(urls[1], second, 16, options.seconds / 2, stream=True))
                row = {
                    "rps_32": many["rps"],
                    "p50_ms_32": many["p50_ms"],
                    "p99_ms_32": many["p99_ms"],
                    "p50_ms_1": one["p50_ms"],
                    "p99_ms_1": one["p99_ms"],
                    "events_per_s_16": events["events_per_s"],
                }
                rows.setdefault(name, []).append(row)
                print(f"{round_} {name:14}", *(f"{key} {value:9.2f}" for key, value in row.items()), flush=True)
    medians = {
        name: {key: round(statistics.median(row[key] for row in found), 3) for key in found[0]}
        for name, found in rows.items()
    }
    direct = medians["direct"]
    for one in medians.values():
        one["added_p50_ms_1"] = round(one["p50_ms_1"] - direct["p50_ms_1"], 3)
        one["added_p99_ms_1"] = round(one["p99_ms_1"] - direct["p99_ms_1"], 3)
        one["events_share_of_direct"] = round(one["events_per_s_16"] / direct["events_per_s_16"], 3)
    moderation = (ROOT / "src" / "catena" / "serve" / "middleware" / "moderation.py").exists()
    load_average = os.getloadavg()[1]
    result = {"cores": os.cpu_count(), "load_average_5min": load_average, "moderation": moderation, "rows": medians}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
