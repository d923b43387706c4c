"""1000 users at once before a governed gateway: errors, latencies, and whether memory stays where it is.

    python benchmarks/locust_gateway.py [--users 1000] [--seconds 180] [--locust PATH]

`catena up` runs as a program of its own with keys, durable audit, moderation, limits and feedback, and two replicas
that answer after 100 ms without a model. Locust (`pip install locust`, in an environment of its own) is the load; it
shares the machine. Memory is looked at every second; its slope is that of a line through the second half.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from catena.govern.audit.verify import verify
from catena.govern.config import AuditConfig
from catena.govern.keys import Keys
from catena.hub.store import init_store

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "locust_gateway.json"
REPLICA = ROOT / "tests" / "serve" / "gateway" / "replica.py"
DEPLOY: dict[str, Any] = {
    "port": 0,
    "models": {"m": {"script": [str(REPLICA), "--delay", "0.1", "--natural"]}},
    "http": {"max_connections": 4000, "keep_alive_s": 60},
    "limits": {"rules": [{"per": "key", "requests": "60/minute", "roles": ["user"]}]},
    "govern": {"auth": {"on": True}, "audit": {"on": True}, "moderation": {"on": True}},
    "telemetry": {"gpus": False},
}


class Memory(threading.Thread):
    """Looks at a process and its children every second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process, self.ended = psutil.Process(pid), threading.Event()
        self.began = time.monotonic()
        self.seconds: list[float] = []
        self.gateway: list[float] = []
        self.replicas: list[float] = []

    def run(self) -> None:
        """Look until told to stop."""
        while not self.ended.wait(1.0):
            try:
                children = [child.memory_info().rss for child in self._process.children(recursive=True)]
                own = self._process.memory_info().rss
            except psutil.Error:
                return
            self.seconds.append(time.monotonic() - self.began)
            self.gateway.append(own / 2**20)
            self.replicas.append(sum(children) / 2**20)


def slope(seconds: list[float], values: list[float]) -> float:
    """Return MiB a minute of the second half, by least squares."""
    half = len(values) // 2
    xs, ys = seconds[half:], values[half:]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return 60 * above / sum((x - mean_x) ** 2 for x in xs)


def prepare(folder: Path, replicas: int) -> Path:
    """Make a workspace with keys, and the deploy file; returns the workspace."""
    root = folder / ".catena"
    store = init_store(root)
    keys = Keys(store.index)
    made = {
        "ordinary": [keys.create(f"ordinary-{number}", "developer")[0] for number in range(40)],
        "greedy": [keys.create(f"greedy-{number}", "user")[0] for number in range(10)],
    }
    store.close()
    (folder / "keys.json").write_text(json.dumps(made))
    DEPLOY["models"]["m"]["replicas"] = {"min": replicas, "max": replicas, "in_flight": 512}
    (folder / "deploy.yaml").write_text(yaml.safe_dump(DEPLOY))
    return root


def load(options: argparse.Namespace, folder: Path, url: str) -> None:
    """Run Locust."""
    command = [options.locust, "-f", str(Path(__file__).parent / "locust_users.py"), "--headless", "--only-summary"]
    command += ["-u", str(options.users), "-r", str(options.rate), "-t", f"{options.seconds}s", "--host", url]
    command += [
        "--csv",
        str(folder / "load"),
        "--csv-full-history",
        "--stop-timeout",
        "30",
        "--exit-code-on-error",
        "0",
    ]
    environment = {**os.environ, "CATENA_LOCUST_KEYS": str(folder / "keys.json"), "PYTHONPATH": ""}
    subprocess.run(command, env=environment, check=True, timeout=options.seconds + 240)


def table(folder: Path, name: str) -> list[dict[str, str]]:
    """Return a CSV of Locust's."""
    with (folder / f"load_{name}.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def draw(folder: Path, memory: Memory) -> None:
    """Draw memory and latencies over time."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = [row for row in table(folder, "stats_history") if row["Name"] == "Aggregated" and row["50%"] != "N/A"]
    begin = int(rows[0]["Timestamp"])
    at = [int(row["Timestamp"]) - begin for row in rows]
    with rc_context({"svg.hashsalt": "catena", "svg.fonttype": "none"}):
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(memory.seconds, memory.gateway, label="gateway")
        left.plot(memory.seconds, memory.replicas, label="replicas")
        left.set(xlabel="seconds", ylabel="MiB", ylim=(0, None))
        for name in ("50%", "95%", "99%"):
            right.plot(at, [float(row[name]) for row in rows], label=f"P{name[:-1]}")
        right.set(xlabel="seconds", ylabel="milliseconds (of 100 the replica's)", yscale="log")
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")
        figure.savefig(RESULT.with_suffix(".svg"), format="svg", metadata={"Date": None})


def told(folder: Path, memory: Memory, options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Return what is written down."""
    rows = {row["Name"]: row for row in table(folder, "stats")}
    latencies = {
        name: {
            "requests": int(row["Request Count"]),
            "failures": int(row["Failure Count"]),
            "requests_per_s": round(float(row["Requests/s"]), 1),
            **{f"p{part}_ms": float(row[f"{part}%"]) for part in (50, 95, 99)},
            "max_ms": round(float(row["Max Response Time"]), 1),
        }
        for name, row in rows.items()
    }
    checked = verify(root, AuditConfig(), deep=True)
    return {
        "users": options.users,
        "seconds": options.seconds,
        "replicas": options.replicas,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "latencies": latencies,
        "failures": [{"what": row["Error"], "times": int(row["Occurrences"])} for row in table(folder, "failures")],
        "memory": {
            "gateway_mib": {"first": round(memory.gateway[0], 1), "last": round(memory.gateway[-1], 1)},
            "gateway_slope_mib_per_minute": round(slope(memory.seconds, memory.gateway), 2),
            "replicas_slope_mib_per_minute": round(slope(memory.seconds, memory.replicas), 2),
        },
        "audit": {"records": checked.records, "sound": checked.sound},
    }


def main() -> None:
    """Run, print, write the JSON and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=180)
    parser.add_argument("--rate", type=float, default=50, help="users that begin in a second")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--locust", default="locust")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = prepare(folder, options.replicas)
        command = [
            sys.executable,
            "-m",
            "catena",
            "up",
            str(folder / "deploy.yaml"),
            "--json",
            "--workspace",
            str(root),
        ]
        with (folder / "gateway.log").open("w") as log:
            gateway = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert gateway.stdout is not None
            lines = []
            for line in gateway.stdout:
                lines.append(line)
                if line.rstrip() == "}":
                    break
            url = json.loads("".join(lines))["url"].removesuffix("/v1")
            memory = Memory(gateway.pid)
            memory.start()
            load(options, folder, url)
            memory.ended.set()
            memory.join(10)
        finally:
            gateway.terminate()
            gateway.wait(60)
        result = told(folder, memory, options, root)
        draw(folder, memory)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
