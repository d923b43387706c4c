"""The same recipe on a local Ray cluster: byte-identical outputs, by command line."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import catena as c
from tests.needs import cannot_be_had

RECIPE = """\
name: shared
steps:
  raw: {stage: data.ingest, with: {paths: [rows.jsonl]}}
  tidy: {stage: data.repair, use: {source: raw}}
  kept: {stage: data.filter, use: {source: tidy}, with: {filters: {length: {min_tokens: 5}}}}
  unique: {stage: data.dedup, use: {source: kept}}
  masked: {stage: data.mask, use: {source: unique}}
  spoken: {stage: data.language, use: {source: masked}}
"""


def row(number: int) -> str:
    """Rows in pairs: of every second pair the two are nearly equal; each fifth row is too short."""
    if number % 5 == 4:
        return f"short {number}"
    pair = number // 2
    words = " ".join(str(pair * place) for place in range(40))
    return f"号码 {pair} a{pair}@acme.io {words}" + (f" and {number}" if pair % 2 else f" {number} " * 20)


SEARCH = """\
name: demo
seed: 3
steps:
  small: {stage: example.numbers, with: {rows: 4}}
  base: {stage: example.descend, use: {source: small}}
tune:
  step: base
  trials: 6
  jobs: 2
  space:
    rate: {kind: log, low: 1.0e-4, high: 0.9}
    width: {kind: int, low: 4, high: 32, step: 4}
"""


def needs_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        cannot_be_had("ray is not installed")


@pytest.mark.chain
@pytest.mark.xdist_group("ray")
def test_a_search_on_ray_has_the_same_report_and_tells_its_curves(tmp_path: Path) -> None:
    needs_ray()
    recipe = tmp_path / "search.yaml"
    recipe.write_text(SEARCH)
    with c.open(tmp_path / "local") as ws:
        here = ws.tune(recipe)
    command = [sys.executable, "-m", "catena", "-w", "ray", "tune", str(recipe), "--on", "ray", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    *events, told = [json.loads(line) for line in done.stdout.splitlines()]
    with c.open(tmp_path / "ray") as ws:
        assert told["digest"] == ws.resolve(told["ref"]).digest == here.report.digest
    metrics = [event for event in events if event["event"] == "metric" and event["name"] == "val_loss"]
    # One whose values were tried already is taken from the store, and has no curve to tell.
    ended = {f"trial {trial.number}" for trial in here.trials if trial.status == "done"}
    told_of = {event["step"] for event in metrics}
    assert told_of <= ended
    assert len(told_of) == len({trial.digest for trial in here.trials if trial.status == "done"})


@pytest.mark.chain
@pytest.mark.xdist_group("ray")
def test_a_recipe_on_ray_makes_the_same_bytes(tmp_path: Path) -> None:
    needs_ray()
    recipe = tmp_path / "shared.yaml"
    recipe.write_text(RECIPE)
    lines = [json.dumps({"text": row(number)}) for number in range(6000)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    outputs = []
    for executor in ("local", "ray"):
        command = [sys.executable, "-m", "catena", "-w", executor, "run", str(recipe), "--json", "--on", executor]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        outputs.append(json.loads(done.stdout.splitlines()[-1])["outputs"])
    assert outputs[0] == outputs[1]
    with c.open(tmp_path / "ray") as ws:
        rejected = {name: ws.dataset(f"shared/{name}").version.rejects for name in ("kept", "unique")}
    assert rejected["kept"] == 1200
    assert rejected["unique"] == 900


@pytest.mark.chain
@pytest.mark.xdist_group("ray")
def test_a_worker_of_ray_that_is_killed_costs_only_its_shard(tmp_path: Path) -> None:
    needs_ray()
    root = Path(__file__).parent.parent
    paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "tests.data.shards_on_ray", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == {"rows": [10, 10, 10, 5], "begun": {"0": 1, "10": 2, "20": 1, "30": 1}}
