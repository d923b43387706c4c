"""Fact: where one of two processes runs out of memory, both do the step again in smaller pieces."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from catena.core.events import read_events

ROOT = Path(__file__).parent.parent.parent


def test_all_processes_halve_when_one_runs_out_of_memory(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.train.short_of_memory", str(tmp_path), str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert sorted(done.stdout.splitlines()) == ["3 steps, 2 rows", "done"], done.stderr
    events = list(read_events(tmp_path / "events.jsonl"))
    said = [event["message"] for event in events if "memory ran out" in event.get("message", "")]
    assert said == ["memory ran out with 4 rows at once; step 0 again with 2"]
    parts = sorted(path.name for path in tmp_path.glob("checkpoint-*/rank-*.json"))
    assert parts == ["rank-0000.json", "rank-0001.json"]
