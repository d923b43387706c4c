"""Replicas are killed, Redis and PostgreSQL stopped and started under load: what becomes of the requests.

    python benchmarks/chaos.py [--seconds 60] [--every 2] [--replicas 3] [--connections 16] [--only governed]

Half of the requests are streams. A request is lost where it gets no first token; a stream that is cut after its first
token is counted by itself, since nothing can be done about it. First replicas are only killed from outside; then one
request in a hundred crashes its replica as well (SIGSEGV).

The same once more with all that governs on (keys, limits, durable audit, moderation), while a batch is worked on: each
request must be in the audit once, with its answer, and each line of the batch must have one result.

Last, a governed gateway (keys in PostgreSQL, limits and cache in Redis, durable audit) has Redis and PostgreSQL taken
away and given back in turn. Afterwards each answer must be in the audit once, with its request.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from catena.core.config import parse  # noqa: E402
from catena.serve.gateway.app import Gateway  # noqa: E402
from catena.serve.gateway.config import DeployConfig  # noqa: E402
from catena.serve.server import background  # noqa: E402

REPLICA = ROOT / "tests" / "serve" / "gateway" / "replica.py"
RESULT = Path(__file__).parent / "results" / "chaos.json"


async def one(session: aiohttp.ClientSession, url: str, number: int, tally: Counter[str], killers: bool) -> None:
    """Ask once; see what comes."""
    stream, poison = number % 2 == 0, bool(killers) and number % 100 == 99
    text = f"die {number}" if poison else f"question {number}"
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "stream": stream}
    tally["asked"] += 1
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            data = await response.read()
    except (aiohttp.ClientError, TimeoutError):
        tally["lost: no answer"] += 1
        return
    if poison:
        tally["killers refused" if response.status == 422 else f"killers: {response.status}"] += 1
    elif response.status == 422:
        tally["lost: taken for a killer"] += 1
    elif response.status != 200:
        tally[f"lost: {response.status}"] += 1
    elif b"replica_ended" in data:
        tally["cut after the first token"] += 1
    elif stream and not data.endswith(b"data: [DONE]\n\n"):
        tally["lost: ended early"] += 1
    else:
        tally["answered"] += 1


async def run(
    url: str, gateway: Gateway, options: argparse.Namespace, killers: bool, key: str = ""
) -> tuple[Counter[str], int]:
    """Load, and kill, for so long."""
    head = {"authorization": f"Bearer {key}"} if key else {}
    tally: Counter[str] = Counter()
    until, numbers, dice, kills = time.monotonic() + options.seconds, iter(range(10**9)), random.Random(1), 0
    timeout = aiohttp.ClientTimeout(total=120)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=head) as session:

        async def client() -> None:
            while time.monotonic() < until:
                await one(session, url, next(numbers), tally, killers)

        async def killer() -> int:
            killed = 0
            while time.monotonic() < until - 1:
                await asyncio.sleep(options.every)
                slots = [slot for slot in gateway.pools["m"].slots.values() if slot.phase == "ready" and slot.child]
                if slots:
                    os.kill(dice.choice(slots).child.pid, signal.SIGKILL)
                    killed += 1
            return killed

        killing = asyncio.create_task(killer())
        await asyncio.gather(*(client() for _ in range(options.connections)))
        kills = await killing
    return tally, kills


def play_governed(options: argparse.Namespace) -> dict[str, object]:
    """Run a governed gateway under load and with a batch, and kill its replicas."""
    from catena.govern.audit.reading import Query, entries
    from catena.govern.audit.verify import verify
    from catena.govern.config import GovernConfig
    from catena.govern.keys import Keys
    from catena.hub.store import init_store
    from catena.serve.governed import governed, sealer_of

    govern = parse(GovernConfig, {"auth": {"on": True}, "audit": {"on": True}, "moderation": {"on": True}})
    script = [str(REPLICA), "--obey", "--delay", "0.02", "--hello-s", "0.02", "--token-s", "0.01"]
    replicas = {"min": options.replicas, "max": options.replicas, "backoff_s": 0.1}
    values = {
        "models": {"m": {"script": script, "replicas": replicas}},
        "limits": {
            "rules": [{"per": "key", "requests": "1000000/hour"}, {"per": "key", "tokens": "1000000000/day"}],
        },
        "telemetry": {"gpus": False},
    }
    config = parse(DeployConfig, values)
    with tempfile.TemporaryDirectory() as folder:
        store = init_store(Path(folder) / "workspace")
        key, own = (Keys(store.index).create(name, "user")[0] for name in ("load", "batch"))
        with governed(store, govern, config.http) as middleware:
            gateway = Gateway(
                config,
                state=Path(folder) / "state",
                commands=lambda name, model: model.script,
                middleware=middleware,
                sealer=sealer_of(store, govern),
            )
            with background(gateway, beside=gateway.running(), grace_seconds=30) as url:
                while len(gateway.pools["m"].ready()) < options.replicas:
                    time.sleep(0.1)
                jobs = Batch(url, own, lines=int(options.seconds * 20))
                tally, kills = asyncio.run(run(url, gateway, options, killers=False, key=key))
                batch = jobs.ended()
                ended = gateway.pools["m"].deaths
        live = [one for one in entries(store.root, govern.audit, Query(subject="load")) if "/chat/" in one["path"]]
        asked = [one for one in entries(store.root, govern.audit, Query(subject="batch")) if "/chat/" in one["path"]]
        sound = verify(store.root, govern.audit, deep=True).sound
        store.close()
    of_lines = Counter(one["id"] for one in asked if one["kind"] == "request")
    return {
        "killed_from_outside": kills,
        "replicas_that_ended": ended,
        "requests": dict(sorted(tally.items())),
        "lost_before_first_token": sum(count for name, count in tally.items() if name.startswith("lost")),
        "audit": {**_in_audit(live, tally["asked"]), "sound": sound},
        "batch": batch | {"lines_not_in_the_audit": batch["lines"] - len(of_lines)},
    }


def _in_audit(told: list[dict[str, Any]], asked: int) -> dict[str, int]:
    """Count the records of requests and answers, and what is wrong with them."""
    requests = Counter(one["id"] for one in told if one["kind"] == "request")
    answers = Counter(one["id"] for one in told if one["kind"] == "answer")
    return {
        "requests": len(requests),
        "answers": len(answers),
        "twice": sum(count > 1 for count in (*requests.values(), *answers.values())),
        "without_answer": len(requests.keys() - answers.keys()),
        "missing": asked - len(requests),
    }


class Batch:
    """A batch that is worked on beside the load."""

    def __init__(self, url: str, key: str, lines: int) -> None:
        import openai

        self._client, self._lines = openai.OpenAI(base_url=f"{url}/v1", api_key=key), lines
        body = {"model": "m", "temperature": 0}
        data = [
            {
                "custom_id": f"line {number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {**body, "messages": [{"role": "user", "content": f"the question of line {number} of all"}]},
            }
            for number in range(lines)
        ]
        file = self._client.files.create(
            file=("batch.jsonl", "\n".join(map(json.dumps, data)).encode()), purpose="batch"
        )
        self._id = self._client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        ).id

    def ended(self) -> dict[str, Any]:
        """Wait for its end; returns what became of its lines."""
        began = time.monotonic()
        while (batch := self._client.batches.retrieve(self._id)).status not in ("completed", "failed", "expired"):
            if time.monotonic() - began > 600:
                raise SystemExit(f"the batch does not end: {batch}")
            time.sleep(0.2)
        found: Counter[str] = Counter()
        refused: Counter[str] = Counter()
        wrong = 0
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            for text in self._client.files.content(file).text.splitlines():
                line = json.loads(text)
                found[line["custom_id"]] += 1
                if file == batch.output_file_id:
                    wrong += f"of {line['custom_id']} of all" not in json.dumps(line["response"])
                else:
                    refused[str(line["response"]["status_code"])] += 1
        return {
            "status": batch.status,
            "lines": self._lines,
            "good": batch.request_counts.completed if batch.request_counts else 0,
            "results_missing": self._lines - len(found),
            "results_twice": sum(count > 1 for count in found.values()),
            "with_another_lines_answer": wrong,
            "refused_by_status": dict(refused),
            "seconds_after_the_load": round(time.monotonic() - began, 1),
        }


def play_stores(options: argparse.Namespace) -> dict[str, object]:
    """Run a governed gateway under load; take Redis and PostgreSQL away, one after the other and both."""
    from tests.serve.gateway.postgres import postgres_running
    from tests.serve.gateway.redis import redis_running

    from catena.govern.audit.reading import Query, entries
    from catena.govern.audit.verify import verify
    from catena.govern.config import GovernConfig
    from catena.govern.keys import Keys
    from catena.hub.store import init_store
    from catena.serve.governed import governed

    govern = parse(GovernConfig, {"auth": {"on": True}, "audit": {"on": True}})
    script = [str(REPLICA), "--obey", "--delay", "0.02", "--digest", "d"]
    with tempfile.TemporaryDirectory() as folder, postgres_running() as postgres, redis_running() as redis:
        store = init_store(Path(folder) / "workspace", index_url=postgres.url)
        key = Keys(store.index).create("load", "developer")[0]
        values = {
            "models": {"m": {"script": script, "replicas": {"min": options.replicas, "max": options.replicas}}},
            "limits": {"store": redis.url, "rules": [{"per": "key", "requests": "1000000/hour"}]},
            "cache": {"store": redis.url},
            "telemetry": {"gpus": False},
        }
        config = parse(DeployConfig, values)
        with governed(store, govern, config.http) as middleware:
            gateway = Gateway(
                config, state=Path(folder) / "state", commands=lambda name, model: model.script, middleware=middleware
            )
            with background(gateway, beside=gateway.running(), grace_seconds=30) as url:
                while len(gateway.pools["m"].ready()) < options.replicas:
                    time.sleep(0.1)
                tally, stops = asyncio.run(run_stores(url, options, key, (redis, postgres)))
        told = [one for one in entries(store.root, govern.audit, Query(subject="load")) if "/chat/" in one["path"]]
        sound = verify(store.root, govern.audit, deep=True).sound
        store.close()
    return {
        "stopped_and_started": stops,
        "requests": dict(sorted(tally.items())),
        "lost": sum(count for name, count in tally.items() if name.startswith("lost")),
        "audit": {**_in_audit(told, tally["asked"]), "sound": sound},
    }


async def run_stores(
    url: str, options: argparse.Namespace, key: str, servers: tuple[Any, Any]
) -> tuple[Counter[str], dict[str, int]]:
    """Load for so long, and take stores away meanwhile."""
    tally: Counter[str] = Counter()
    stops: Counter[str] = Counter()
    until, numbers, pause = time.monotonic() + options.seconds, iter(range(10**9)), max(1.0, options.every)
    head = {"authorization": f"Bearer {key}"}
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=head) as session:

        async def client() -> None:
            while time.monotonic() < until:
                await one(session, url, next(numbers), tally, killers=False)

        async def taker() -> None:
            redis, postgres = servers
            for gone in itertools.cycle(((redis,), (postgres,), (redis, postgres))):
                if time.monotonic() > until - 4 * pause:
                    return
                await asyncio.sleep(pause)
                for server in gone:
                    await asyncio.to_thread(server.stop)
                    stops[type(server).__name__] += 1
                await asyncio.sleep(pause)
                for server in gone:
                    await asyncio.to_thread(server.start)

        await asyncio.gather(taker(), *(client() for _ in range(options.connections)))
    return tally, dict(stops)


def main() -> None:
    """Run, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--every", type=float, default=2)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--only", choices=("replicas", "governed", "stores"), help="leave the rest as it was")
    options = parser.parse_args()
    result = json.loads(RESULT.read_text()) if options.only and RESULT.exists() else {}
    how = {"seconds": options.seconds, "replicas": options.replicas, "connections": options.connections}
    if options.only in (None, "replicas"):
        result |= {
            **how,
            "killed_from_outside_only": play(options, killers=False),
            "and_one_killer_in_a_hundred": play(options, killers=True),
        }
    if options.only in (None, "governed"):
        result["governed_and_a_batch"] = {**how, **play_governed(options)}
    if options.only in (None, "stores"):
        result["redis_and_postgresql_away"] = {**how, **play_stores(options)}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def play(options: argparse.Namespace, *, killers: bool) -> dict[str, object]:
    """Run a gateway of its own under load, and kill."""
    script = [str(REPLICA), "--obey", "--delay", "0.02", "--hello-s", "0.02", "--token-s", "0.01"]
    replicas = {"min": options.replicas, "max": options.replicas, "backoff_s": 0.1}
    values = {"models": {"m": {"script": script, "replicas": replicas}}, "telemetry": {"gpus": False}}
    config = parse(DeployConfig, values)
    with tempfile.TemporaryDirectory() as folder:
        gateway = Gateway(config, state=Path(folder), commands=lambda name, model: model.script)
        with background(gateway, beside=gateway.running(), grace_seconds=30) as url:
            while len(gateway.pools["m"].ready()) < options.replicas:
                time.sleep(0.1)
            tally, kills = asyncio.run(run(url, gateway, options, killers))
            ended = gateway.pools["m"].deaths
    return {
        "killed_from_outside": kills,
        "replicas_that_ended": ended,
        "requests": dict(sorted(tally.items())),
        "lost_before_first_token": sum(count for name, count in tally.items() if name.startswith("lost")),
    }


if __name__ == "__main__":
    main()
