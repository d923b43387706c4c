"""gRPC before an engine that answers at once, and REST answers that come from the cache: calls a second, P50, P99.

    python benchmarks/grpc_calls.py [--seconds 4] [--rounds 3]

`governed` has keys, the audit (durable) and moderation of prompts and answers in front. Client and server are two
processes that share the machine's cores; 32 calls are under way at once. (Not named grpc.py: that would hide the
package from itself.)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from gateway import REPLICA, ROOT, deployment, program
from http_load import PROMPT, chat_request, closed

RESULT = Path(__file__).parent / "results" / "grpc.json"
SAID = "It reads JSON text and returns what it says; it raises JSONDecodeError where the text is no JSON."
CALLS = 32


class Codec:
    """What the routes ask of a codec that has no tools."""

    takes_tools = False

    def text(self, ids: Any) -> str:
        """Nothing."""
        return ""


class Mock:
    """An engine that answers at once."""

    codec = Codec()

    def submit(self, request: Any, on_delta: Callable[[Any], None]) -> None:
        """Answer."""
        from catena.core.generate import Completion, Delta

        on_delta(Delta(SAID, Completion(request.id, SAID, tuple(range(24)), "stop", 16)))

    def cancel(self, request_id: str) -> None:
        """Nothing to stop."""

    def stats(self) -> Mapping[str, float]:
        """Nothing to tell."""
        return {}

    def close(self) -> None:
        """Nothing to end."""


def serve_mock(folder: str, governed_too: bool) -> None:
    """Serve the mock engine over HTTP and gRPC, and print where."""
    from catena.govern.config import AuditConfig, AuthConfig, GovernConfig, ModerationConfig
    from catena.govern.keys import Keys
    from catena.hub.store import init_store
    from catena.serve.app import build_app
    from catena.serve.governed import governed
    from catena.serve.grpc.server import running
    from catena.serve.server import listen, serve

    on = governed_too
    config = GovernConfig(auth=AuthConfig(on=on), audit=AuditConfig(on=on), moderation=ModerationConfig(on=on))
    store = init_store(Path(folder) / ".catena")
    if on:
        (Path(folder) / "key").write_text(Keys(store.index).create("bench", "user")[0])
    with ExitStack() as stack:
        from catena.serve.config import ServeConfig

        bounds = ServeConfig()
        middleware = stack.enter_context(governed(store, config, bounds))
        app = build_app({"m": Mock()}, middleware=middleware)  # type: ignore[dict-item]
        ready = lambda port: print(json.dumps({"url": f"127.0.0.1:{port}"}), flush=True)  # noqa: E731
        serve(app, listen(port=0), beside=running(app, "127.0.0.1", 0, bounds, ready))


async def call(address: str, key: str, seconds: float, *, streamed: bool) -> dict[str, float]:
    """Call as fast as so many callers can."""
    import grpc

    from catena.serve.grpc import catena_pb2 as pb, catena_pb2_grpc

    request = pb.ChatRequest(
        model="m", messages=[pb.Message(role="user", content=PROMPT)], sampling=pb.Sampling(max_tokens=64)
    )
    metadata = [("authorization", f"Bearer {key}")] if key else []
    times: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = catena_pb2_grpc.CatenaStub(channel)
        until = time.perf_counter() + seconds

        async def caller() -> None:
            while (began := time.perf_counter()) < until:
                if streamed:
                    said = "".join([piece.text async for piece in stub.ChatStream(request, metadata=metadata)])
                else:
                    said = (await stub.Chat(request, metadata=metadata)).choices[0].message.content
                if said != SAID:
                    raise SystemExit(f"{address} said {said!r}")
                times.append(time.perf_counter() - began)

        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(CALLS)))
    return told(times, time.perf_counter() - began)


def told(times: list[float], spent: float) -> dict[str, float]:
    """Sum up."""
    ordered = sorted(times)
    return {
        "per_s": len(times) / spent,
        "p50_ms": ordered[len(ordered) // 2] * 1000,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1000,
    }


def cached(url: str, key: str, seconds: float) -> dict[str, float]:
    """Ask the same question, whose answer is in the cache, as fast as so many connections can."""
    found = asyncio.run(closed(url, chat_request(url, key, temperature=0), CALLS, seconds))
    return {"per_s": found["rps"], "p50_ms": found["p50_ms"], "p99_ms": found["p99_ms"]}


def measure_grpc(seconds: float, *, governed: bool) -> dict[str, dict[str, float]]:
    """Start a server and call it."""
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "key"
        command = [str(Path(__file__)), "--serve", folder, *(["--governed"] if governed else [])]
        with program(*command) as address:
            key = keys.read_text() if keys.exists() else ""
            asyncio.run(call(address, key, 1.0, streamed=False))
            return {
                "unary": asyncio.run(call(address, key, seconds, streamed=False)),
                "stream": asyncio.run(call(address, key, seconds / 2, streamed=True)),
            }


def measure_cache(seconds: float, *, governed: bool) -> dict[str, float]:
    """Start a gateway with a cache and ask it."""
    with tempfile.TemporaryDirectory() as place, program(str(REPLICA)) as upstream:
        folder = Path(place)
        command, key = deployment(folder, upstream, governed)
        file = Path(command[3])
        values = yaml.safe_load(file.read_text())
        values["cache"] = {"store": "memory"}
        values["models"]["m"]["revision"] = "1"
        file.write_text(yaml.safe_dump(values))
        with program(*command, cwd=folder) as url:
            cached(url, key, 1.0)
            return cached(url, key, seconds)


def goal(rows: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return what was wanted, and which rows reach it."""
    reached = {name: row["per_s"] >= 1000 and row["p99_ms"] < 200 for name, row in rows.items() if "stream" not in name}
    return {"per_s": 1000, "p99_ms": 200, "reached": reached}


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    parser.add_argument("--governed", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_mock(options.serve, options.governed)
        return
    rows: dict[str, list[dict[str, float]]] = {}
    for round_ in range(options.rounds):
        for governed in (False, True):
            name = "governed" if governed else "plain"
            found = {f"grpc {kind}": row for kind, row in measure_grpc(options.seconds, governed=governed).items()}
            found["rest from the cache"] = measure_cache(options.seconds, governed=governed)
            for what, row in found.items():
                rows.setdefault(f"{what}, {name}", []).append(row)
                told_ = " ".join(f"{key} {value:8.2f}" for key, value in row.items())
                print(f"{round_} {what + ', ' + name:32} {told_}", flush=True)
    medians = {
        name: {key: round(statistics.median(row[key] for row in found), 2) for key in found[0]}
        for name, found in rows.items()
    }
    result = {
        "cores": os.cpu_count(),
        "calls": CALLS,
        "load_average_5min": os.getloadavg()[1],
        "goal": goal(medians),
        "rows": medians,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "src"))
    main()
