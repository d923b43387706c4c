"""Releases with a planted fault on a real gateway: seconds and users until they are back. And healthy ones, simulated.

    python benchmarks/releases.py [--rate 60] [--users 300] [--healthy 200]

The candidate begins with 5 % of users. For each fault: seconds from the candidate's first answer to the rollback, how
many users had got the candidate by then, and how many of their requests failed. The healthy releases are played by the
same state machine without HTTP: equal models, one user in a hundred for whom every request fails, some users who ask
much more than others; each is looked at after every answer, until it is through.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from catena.core.config import parse  # noqa: E402
from catena.serve.gateway.app import Gateway  # noqa: E402
from catena.serve.gateway.config import DeployConfig  # noqa: E402
from catena.serve.releases.evidence import interval  # noqa: E402
from catena.serve.releases.plan import Outcome, Release, ReleaseConfig  # noqa: E402
from catena.serve.server import background  # noqa: E402

REPLICA = ROOT / "tests" / "serve" / "gateway" / "replica.py"
RESULT = Path(__file__).parent / "results" / "releases.json"
FAULTS: dict[str, list[str]] = {
    "errors (30 %)": ["--error-rate", "0.3"],
    "three times as slow": ["--delay", "0.15"],
    "gibberish": ["--gibberish"],
    "empty": ["--empty"],
    "toxic": ["--say", "the model answers with a poisonous word and then it ends as it should be"],
}
WATCH = {"words": ["poisonous"]}


async def load(url: str, options: argparse.Namespace, statuses: list[int]) -> float:
    """Ask at a steady rate until the release is over; returns the seconds from the candidate's first answer."""
    dice, first = random.Random(1), 0.0
    over = asyncio.Event()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask() -> None:
            user = f"u{dice.randrange(options.users)}"
            body = {"model": "m", "messages": [{"role": "user", "content": "question"}], "user": user}
            async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                await response.read()
                statuses.append(response.status)

        async def status() -> None:
            nonlocal first
            while not over.is_set():
                async with session.get(f"{url}/admin/releases/m") as response:
                    told = await response.json()
                if response.status == 404:
                    over.set()
                elif not first and told["answers"]["candidate"]:
                    first = time.monotonic()
                await asyncio.sleep(0.05)

        looking, began, tasks = asyncio.create_task(status()), time.monotonic(), []
        while not over.is_set() and time.monotonic() - began < 180:
            tasks.append(asyncio.create_task(ask()))
            await asyncio.sleep(dice.expovariate(options.rate))
        ended = time.monotonic()
        over.set()
        await asyncio.gather(looking, *tasks)
    return ended - (first or ended)


def with_fault(fault: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Release a candidate with a fault, and see."""

    def model(*more: str) -> dict[str, Any]:
        delay = [] if "--delay" in more else ["--delay", "0.05"]
        return {"script": [str(REPLICA), "--natural", *delay, *more], "replicas": {"min": 1, "max": 1}}

    values = {"models": {"m": model()}, "candidates": {"new": model(*fault)}, "telemetry": {"gpus": False}}
    config = parse(DeployConfig, values)
    statuses: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        gateway = Gateway(config, state=Path(folder), commands=lambda name, model: model.script)
        with background(gateway, beside=gateway.running(), grace_seconds=30) as url:
            while not gateway.pools["m"].ready():
                time.sleep(0.05)
            start = {"model": "m", "candidate": "new", "release": {"watch": WATCH, "requests": 300, "step_s": 60}}
            seconds = asyncio.run(_start_and_load(url, start, options, statuses))
            change = gateway.releases.log.entries()[-1]
    return {
        "ended_by": change["act"],
        "reason": change.get("reason"),
        "seconds": round(seconds, 2),
        "users_touched": change.get("users"),
        "requests_asked": len(statuses),
        "requests_failed": sum(status != 200 for status in statuses),
    }


async def _start_and_load(url: str, start: Any, options: argparse.Namespace, statuses: list[int]) -> float:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/admin/releases", json=start) as response,
    ):
        assert response.status == 201, await response.text()
    return await load(url, options, statuses)


def traffic(dice: random.Random, users: int) -> Iterator[tuple[float, str, bool]]:
    """Yield (time, user, whether nothing works for that user), now slower and now faster."""
    now = 0.0
    cursed = {f"u{number}" for number in range(users) if dice.random() < 0.01}
    while True:
        now += dice.expovariate(20.0 * (1.2 + dice.uniform(-1, 1)))
        user = f"u{int(users * dice.random() ** 2)}"  # some ask much more than others
        yield now, user, user in cursed


def healthy(seed: int, users: int) -> str:
    """Play a release of an equal model; returns how it ended."""
    dice = random.Random(seed)
    words = "the model answers this question with a few plain words and then it ends as it should".split()  # noqa: SIM905
    errors, slow = dice.choice((0.0, 0.005, 0.02)), dice.uniform(0.2, 0.8)
    release = Release(f"h{seed}", ReleaseConfig(requests=200, step_s=30), 0.0)
    for now, user, cursed in traffic(dice, users):
        text = " ".join(dice.choice(words) for _ in range(20))
        failed = cursed or dice.random() < errors
        times = dice.lognormvariate(-2, slow), dice.lognormvariate(-4, slow)
        outcome = Outcome(release.arm(user), user, failed, text, *times, flagged=dice.random() < 0.003)
        decision = release.observe(outcome, now)
        if decision is not None and decision.verdict == "step":
            release.advance(now)
        elif decision is not None:
            return decision.verdict if decision.verdict == "promote" else f"rollback: {decision.reason}"
    raise AssertionError


def main() -> None:
    """Run, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=60)
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--healthy", type=int, default=200)
    options = parser.parse_args()
    faults = {}
    for name, fault in FAULTS.items():
        faults[name] = with_fault(fault, options)
        print(name, faults[name], flush=True)
    ends = [healthy(seed, options.users) for seed in range(options.healthy)]
    wrong = [end for end in ends if end != "promote"]
    low, high = interval(len(wrong), len(ends))
    result = {
        "requests_per_second": options.rate,
        "users": options.users,
        "first_step_percent": 5,
        "faults": faults,
        "healthy_releases": len(ends),
        "false_rollbacks": len(wrong),
        "false_rollbacks_95_interval": [round(low, 4), round(high, 4)],
        "reasons": wrong,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
