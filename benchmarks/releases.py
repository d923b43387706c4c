"""Releases with a planted fault on a real gateway: seconds and users until they are back. And healthy ones, simulated.

    python benchmarks/releases.py [--rate 60] [--users 300] [--healthy 420] [--only faults|healthy|shadow]

The candidate begins with 5 % of users, moderation (word lists) is on. For each fault: seconds from the candidate's
first answer to the rollback, how many users had got the candidate by then, and how many of their requests failed. The
healthy releases are played by the same state machine without HTTP: one user in a hundred for whom every request fails,
some users who ask much more than others; each is looked at after every answer, until it is through. Answers are
sentences of Python's own documentation, and the candidate's differ in style: longer, shorter, about other things, in
other words (of this project's documentation), as a list, politely wrapped. `shadow` asks one gateway at a fixed rate,
with copies to a candidate and without, in turn.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import multiprocessing
import random
import re
import statistics
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
from http_load import chat_request, paced
from starlette.middleware import Middleware

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from catena.core.config import parse  # noqa: E402
from catena.govern.config import ModerationConfig  # noqa: E402
from catena.govern.moderation.moderator import Moderator  # noqa: E402
from catena.govern.moderation.train import clopper_pearson  # noqa: E402
from catena.govern.moderation.words import LISTS, read_entries  # noqa: E402
from catena.serve.config import ServeConfig  # noqa: E402
from catena.serve.gateway.app import Gateway  # noqa: E402
from catena.serve.gateway.config import DeployConfig  # noqa: E402
from catena.serve.middleware.moderation import Moderation  # noqa: E402
from catena.serve.releases.plan import Outcome, Release, ReleaseConfig  # noqa: E402
from catena.serve.server import background  # noqa: E402

REPLICA = ROOT / "tests" / "serve" / "gateway" / "replica.py"
RESULT = Path(__file__).parent / "results" / "releases.json"
BAD_WORD = next(one.word for one in read_entries(LISTS / "en.txt") if one.word.isalpha() and one.action is None)
FAULTS: dict[str, list[str]] = {
    "errors (30 %)": ["--error-rate", "0.3"],
    "three times as slow": ["--delay", "0.15"],
    "gibberish": ["--gibberish"],
    "empty": ["--empty"],
    "toxic": ["--mixed", BAD_WORD],
    "toxic, in streams": ["--mixed", BAD_WORD],
}


async def load(url: str, options: argparse.Namespace, statuses: list[int]) -> float:
    """Ask at a steady rate until the release is over; returns the seconds from the candidate's first answer."""
    dice, first = random.Random(1), 0.0
    over = asyncio.Event()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask() -> None:
            user = f"u{dice.randrange(options.users)}"
            messages = [{"role": "user", "content": "question"}]
            body = {"model": "m", "messages": messages, "user": user, "stream": options.stream}
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


def model(*more: str, delay: str = "0.05") -> dict[str, Any]:
    """A model whose one replica is a mock."""
    waits = [] if "--delay" in more else ["--delay", delay]
    return {"script": [str(REPLICA), "--natural", *waits, *more], "replicas": {"min": 1, "max": 1}}


def with_fault(fault: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Release a candidate with a fault, and see."""
    values = {"models": {"m": model()}, "candidates": {"new": model(*fault)}, "telemetry": {"gpus": False}}
    config = parse(DeployConfig, values)
    statuses: list[int] = []
    moderation = ModerationConfig(on=True, personal=False)
    with tempfile.TemporaryDirectory() as folder, Moderator(moderation, None) as moderator:
        before = [Middleware(Moderation, moderator=moderator, config=ServeConfig())]
        gateway = Gateway(config, state=Path(folder), commands=lambda name, model: model.script, middleware=before)
        with background(gateway, beside=gateway.running(), grace_seconds=30) as url:
            while not gateway.pools["m"].ready():
                time.sleep(0.05)
            start = {"model": "m", "candidate": "new", "release": {"requests": 300, "step_s": 60}}
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


def sentences(text: str) -> list[str]:
    """Return the sentences of a text that are neither very short nor very long."""
    return [one for one in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if 30 < len(one) < 300]


@cache
def corpora() -> tuple[list[str], list[str], list[str]]:
    """Return sentences of one half of the standard library's documentation, of the other half, and of our own."""
    halves: tuple[list[str], list[str]] = ([], [])
    for at, file in enumerate(sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                halves[at % 2].extend(sentences(ast.get_docstring(node) or ""))
    own = [file.read_text() for file in sorted((ROOT / "docs").glob("*.md")) if not file.name.endswith(".zh.md")]
    return *halves, sentences(" ".join(own))


STYLES = ("the same", "longer", "shorter", "other things", "other words", "a list", "polite")


def said(style: str, dice: random.Random) -> str:
    """Return an answer in a style; the stable model's is `the same`."""
    usual, others, own = corpora()
    if style == "a list":
        return "\n".join("- " + dice.choice(usual) for _ in range(4))
    source = {"other things": others, "other words": own}.get(style, usual)
    text = " ".join(dice.choice(source) for _ in range({"longer": 6, "shorter": 1}.get(style, 2)))
    return f"Certainly! Here is what I found: {text} Let me know if that helps." if style == "polite" else text


def healthy(seed: int, users: int = 300) -> tuple[str, str]:
    """Play a release of a model that is no worse; returns its style, and how it ended."""
    dice, style = random.Random(seed), STYLES[seed % len(STYLES)]
    errors, slow = dice.choice((0.0, 0.005, 0.02)), dice.uniform(0.2, 0.8)
    release = Release(f"h{seed}", ReleaseConfig(requests=200, step_s=30), 0.0)
    for now, user, cursed in traffic(dice, users):
        arm = release.arm(user)
        text = said(style if arm == "candidate" else "the same", dice)
        failed = cursed or dice.random() < errors
        times = dice.lognormvariate(-2, slow), dice.lognormvariate(-4, slow)
        decision = release.observe(Outcome(arm, user, failed, text, *times, flagged=dice.random() < 0.003), now)
        if decision is not None and decision.verdict == "step":
            release.advance(now)
        elif decision is not None:
            return style, decision.verdict if decision.verdict == "promote" else f"rollback: {decision.reason}"
    raise AssertionError


def all_healthy(count: int) -> dict[str, Any]:
    """Play so many healthy releases."""
    with multiprocessing.get_context("spawn").Pool() as workers:
        ends = list(workers.imap_unordered(healthy, range(count), chunksize=5))
    wrong = [(style, end) for style, end in ends if end != "promote"]
    low, high = clopper_pearson(len(wrong), count)
    by_style = Counter(style for style, _ in wrong)
    return {
        "healthy_releases": count,
        "false_rollbacks": len(wrong),
        "false_rollbacks_95_interval": [round(low, 4), round(high, 4)],
        "interval": "Clopper and Pearson's, two-sided",
        "by_style": {
            style: f"{by_style[style]} of {len(range(at, count, len(STYLES)))}" for at, style in enumerate(STYLES)
        },
        "reasons": wrong,
    }


def shadow(rounds: int, seconds: float, rate: float) -> dict[str, Any]:
    """Ask at a fixed rate, with copies to a candidate that is as fast, to one that hangs, and without, in turn."""
    values = {
        "models": {"m": model(delay="0.02")},
        "candidates": {"new": model(delay="0.02"), "hangs": model("--delay", "2")},
        "telemetry": {"gpus": False},
    }
    rows: dict[str, list[dict[str, float]]] = {"off": [], "new": [], "hangs": []}
    copies: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        config = parse(DeployConfig, values)
        gateway = Gateway(config, state=Path(folder), commands=lambda name, model: model.script)
        with background(gateway, beside=gateway.running(), grace_seconds=30) as url:
            while not gateway.pools["m"].ready():
                time.sleep(0.05)
            request = chat_request(url, "")
            asyncio.run(paced(url, request, 32, 1, rate))
            for round_ in range(rounds):
                for name in rows:
                    if name != "off":
                        asyncio.run(_act(url, {"model": "m", "candidate": name, "release": {"mode": "shadow"}}))
                        while (active := gateway.releases.active["m"]).phase == "starting":
                            time.sleep(0.05)
                    rows[name].append(asyncio.run(paced(url, request, 32, seconds, rate, seed=round_)))
                    if name != "off":
                        told = active.shadow.comparison.table() if active.shadow else {}
                        copies.update({f"{name} compared": told["compared"], f"{name} dropped": told["dropped"]})
                        asyncio.run(_act(f"{url}", {"act": "rollback", "reason": "enough"}, "/m"))
                        time.sleep(0.5)
    told: dict[str, Any] = {"requests_per_second": rate, "rounds": rounds, "seconds": seconds, "copies": dict(copies)}
    for name, found in rows.items():
        told[name] = {key: round(statistics.median(row[key] for row in found), 2) for key in ("p50_ms", "p99_ms")}
        for key in ("p50_ms", "p99_ms"):
            added = [row[key] - off[key] for row, off in zip(found, rows["off"], strict=True)]
            told[name][f"added_{key}"] = [round(one, 2) for one in (min(added), statistics.median(added), max(added))]
    return told


async def _act(url: str, body: Any, path: str = "") -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/admin/releases{path}", json=body) as response,
    ):
        assert response.status in (200, 201), await response.text()


def main() -> None:
    """Run, print, write the JSON; what is not run stays as it was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=60)
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--healthy", type=int, default=420)
    parser.add_argument("--only", choices=("faults", "healthy", "shadow"))
    options = parser.parse_args()
    result = json.loads(RESULT.read_text()) if options.only else {}
    if options.only in (None, "faults"):
        faults = {}
        for name, fault in FAULTS.items():
            options.stream = "streams" in name
            faults[name] = with_fault(fault, options)
            print(name, faults[name], flush=True)
        settings = {"requests_per_second": options.rate, "users": options.users, "first_step_percent": 5}
        result |= {**settings, "faults": faults}
    if options.only in (None, "healthy"):
        result |= all_healthy(options.healthy)
    if options.only in (None, "shadow"):
        result["shadow"] = shadow(5, 4.0, 100.0)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
