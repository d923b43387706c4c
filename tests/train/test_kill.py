"""Fact: a training that was killed at 20 random moments, and stopped at 5, ends with the bits of one left alone."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file

from catena.core.events import read_events
from tests.train.killed import KILLS, STEPS, STOPPED, TERMS

ROOT = Path(__file__).parent.parent.parent


def test_training_killed_at_random_moments_ends_with_the_same_bits(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.train.killed", str(tmp_path), "3"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    codes = Counter(json.loads(done.stdout)["codes"])
    assert codes == {-signal.SIGKILL: KILLS, STOPPED: TERMS, 0: 1}, done.stderr

    calm, killed = (load_file(tmp_path / name / "trained.safetensors") for name in ("calm", "killed"))
    assert calm.keys() == killed.keys()
    assert all(torch.equal(calm[name], killed[name]) for name in calm)
    assert any(held.abs().max() > 0 for name, held in calm.items() if "lora_B" in name)

    events = list(read_events(tmp_path / "killed" / "events.jsonl"))
    resumed = [event["message"] for event in events if "going on from step" in event.get("message", "")]
    assert len(resumed) >= KILLS  # all lives but the first, and those that ended before they said it
    curves = [
        {(event["at_step"], event["name"]): event["value"] for event in read_events(tmp_path / name / "events.jsonl")
         if event.get("name") in ("loss", "val_loss")}
        for name in ("calm", "killed")
    ]  # fmt: skip
    assert curves[0] == curves[1]
    assert max(step for step, _ in curves[0]) == STEPS
