"""What the gateway costs: requests a second of one worker, added time, events of a stream, beside proxies.

    python benchmarks/gateway.py [--seconds 3] [--rounds 3] [--litellm FOLDER]

The upstream answers at once and does nothing. `catena` has replicas, routing, breaker, limits and metrics; `governed`
has keys, the durable audit and moderation too. The plain proxies parse and write JSON and know nobody. With `--litellm`
its proxy runs beside them, from a virtual environment of its own:

    python -m venv FOLDER && FOLDER/bin/pip install 'litellm[proxy]==1.101.6'

(1.82.7, 1.82.8 and 1.107.0 were published by thieves: look at a wheel before it is installed.) All run at once and are
asked in turn. Each is asked as fast as 32 connections can, and at fixed rates over 32 connections (`at_500` is 500
requests a second, whether answers come or not), where added time is told: what it takes more than the upstream alone
at the same moments. A rate is left out for who cannot keep it. Medians of rounds; everything shares the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from http_load import chat_request, closed, paced

ROOT = Path(__file__).resolve().parents[1]
REPLICA = ROOT / "tests" / "serve" / "gateway" / "replica.py"
RESULT = Path(__file__).parent / "results" / "gateway.json"
PROXY = Path(__file__).parent / "peers" / "plain_proxy.py"
STREAM_WORDS = 200
RATES = (100, 500, 800)
CONNECTIONS = 32
GOAL = {"rps_32": 1000, "added_p50_ms": 2, "added_p99_ms": 25}
WARM_UP = 8
START_S = 120


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


def deployment(folder: Path, upstream: str, governed: bool, streaming: str = "") -> tuple[list[str], str]:
    """Write a deploy file; returns the command, and a key where one is needed."""
    upstreams = {"m": upstream, **({"s": streaming} if streaming else {})}
    deploy: dict[str, Any] = {
        "port": 0,
        "models": {
            name: {"urls": [url], "served": "mock", "replicas": {"in_flight": 1000}} for name, url in upstreams.items()
        },
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
        deploy["govern"] = {"auth": {"on": True}, "audit": {"on": True}, "moderation": {"on": True}}
    file = folder / f"deploy-{governed}.yaml"
    file.write_text(yaml.safe_dump(deploy))
    return ["-m", "catena", "up", str(file), "--json"], key


@contextmanager
def litellm(folder: Path, place: Path, upstream: str, streaming: str) -> Iterator[str]:
    """Run LiteLLM's proxy with one worker; gives its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    models = [
        {
            "model_name": name,
            "litellm_params": {"model": "openai/mock", "api_base": f"{url}/v1", "api_key": "none"},
        }
        for name, url in (("m", upstream), ("s", streaming))
    ]
    config = place / "litellm.yaml"
    config.write_text(yaml.safe_dump({"model_list": models, "litellm_settings": {"telemetry": False}}))
    command = [folder / "bin" / "litellm", "--config", config, "--port", str(port), "--host", "127.0.0.1"]
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    environment.pop("PYTHONPATH", None)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(
        [*command, "--num_workers", "1", "--telemetry", "False"], env=environment, **quiet
    ) as process:
        url, until = f"http://127.0.0.1:{port}", time.monotonic() + START_S
        try:
            while True:
                try:
                    urllib.request.urlopen(f"{url}/health/liveliness", timeout=2).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > until:
                        raise SystemExit("LiteLLM did not start") from None
                    time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait(60)


Target = tuple[str, str, str, str]
"""URL for whole answers (the model is `m`), URL and model for streams, key."""


def targets(stack: ExitStack, folder: Path, peer: Path | None) -> dict[str, Target]:
    """Start everything that is compared."""
    words = " ".join(["word"] * STREAM_WORDS)
    upstream = stack.enter_context(program(str(REPLICA)))
    streaming = stack.enter_context(program(str(REPLICA), "--say", words))
    found: dict[str, Target] = {"direct": (upstream, streaming, "m", "")}
    for kind in ("httpx2", "aiohttp"):
        both = [stack.enter_context(program(str(PROXY), kind, behind)) for behind in (upstream, streaming)]
        found[f"plain {kind}"] = (both[0], both[1], "m", "")
    if peer is not None:
        url = stack.enter_context(litellm(peer, folder, upstream, streaming))
        found["litellm"] = (url, url, "s", "")
    for name in ("catena", "governed"):
        apart = folder / name
        apart.mkdir()
        command, key = deployment(apart, upstream, name == "governed", streaming)
        url = stack.enter_context(program(*command, cwd=apart))
        found[name] = (url, url, "s", key)
    return found


def measure(target: Target, seconds: float, seed: int) -> dict[str, float]:
    """Ask one of them in every way."""
    url, streams, model, key = target
    request, streamed = chat_request(url, key), chat_request(streams, key, stream=True, model=model)
    asyncio.run(closed(url, request, WARM_UP, 0.5))
    one = asyncio.run(closed(url, request, 1, seconds / 2))
    many = asyncio.run(closed(url, request, CONNECTIONS, seconds))
    events = asyncio.run(closed(streams, streamed, 16, seconds / 2))
    row = {
        "rps_32": many["rps"],
        "p50_ms_32": many["p50_ms"],
        "p99_ms_32": many["p99_ms"],
        "p50_ms_1": one["p50_ms"],
        "p99_ms_1": one["p99_ms"],
        "events_per_s_16": events["events_per_s"],
    }
    for rate in RATES:
        if many["rps"] > 1.2 * rate:
            found = asyncio.run(paced(url, request, CONNECTIONS, seconds, rate, seed=seed))
            row |= {f"p50_ms_at_{rate}": found["p50_ms"], f"p99_ms_at_{rate}": found["p99_ms"]}
    return row


def summed(rows: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return medians over rounds, and what each adds to the upstream alone: the median of the rounds' differences."""
    medians: dict[str, dict[str, float]] = {}
    for name, found in rows.items():
        common = [key for key in found[0] if all(key in row for row in found)]
        medians[name] = {key: round(statistics.median(row[key] for row in found), 3) for key in common}
        for key in common:
            if key.startswith("p") and key != "p50_ms_32" and key != "p99_ms_32":
                added = [row[key] - direct[key] for row, direct in zip(found, rows["direct"], strict=True)]
                medians[name][f"added_{key}"] = round(statistics.median(added), 3)
        share = medians[name]["events_per_s_16"] / medians["direct"]["events_per_s_16"]
        medians[name]["events_share_of_direct"] = round(share, 3)
    return medians


def goal(row: dict[str, float]) -> dict[str, Any]:
    """Return what was wanted of the governed gateway, and what reaches it: rate, and added time by way of asking."""
    ways = [key.removeprefix("added_p50_") for key in row if key.startswith("added_p50_")]
    reached = {
        way: {
            "p50": row[f"added_p50_{way}"] <= GOAL["added_p50_ms"],
            "p99": row[f"added_p99_{way}"] <= GOAL["added_p99_ms"],
        }
        for way in ways
    }
    return {**GOAL, "reached": {"rps_32": row["rps_32"] >= GOAL["rps_32"], **reached}}


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--litellm", type=Path, help="a virtual environment with LiteLLM's proxy")
    options = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as stack, tempfile.TemporaryDirectory() as place:
        found = targets(stack, Path(place), options.litellm)
        for round_ in range(options.rounds):
            for name, target in found.items():
                row = measure(target, options.seconds, round_)
                rows.setdefault(name, []).append(row)
                print(f"{round_} {name:14}", *(f"{key} {value:.2f}" for key, value in row.items()), flush=True)
    medians = summed(rows)
    result = {
        "goal": goal(medians["governed"]),
        "cores": os.cpu_count(),
        "load_average_5min": os.getloadavg()[1],
        "scheduling": "real time" if os.sched_getscheduler(0) in (os.SCHED_RR, os.SCHED_FIFO) else "usual",
        "rounds": options.rounds,
        "litellm": _version(options.litellm),
        "rows": medians,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def _version(peer: Path | None) -> str:
    if peer is None:
        return "not measured: no virtual environment with it was named"
    code = "from importlib.metadata import version; print(version('litellm'))"
    return subprocess.run(
        [peer / "bin" / "python", "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
