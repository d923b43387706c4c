"""The same recipe on a local Ray cluster: byte-identical outputs, by command line."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = """\
name: shared
steps:
  raw: {stage: example.numbers, with: {rows: 6000, word: "number 号码"}}
  kept: {stage: data.filter, use: {source: raw}, with: {filters: {length: {min_tokens: 1}}}}
  unique: {stage: data.dedup, use: {source: kept}}
  masked: {stage: data.mask, use: {source: unique}}
  spoken: {stage: data.language, use: {source: masked}}
"""


@pytest.mark.chain
@pytest.mark.xdist_group("ray")
def test_a_recipe_on_ray_makes_the_same_bytes(tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.fail("ray is not installed") if os.environ.get("CI") else pytest.skip("ray is not installed")
    recipe = tmp_path / "shared.yaml"
    recipe.write_text(RECIPE)
    outputs = []
    for executor in ("local", "ray"):
        command = [sys.executable, "-m", "catena", "-w", str(tmp_path / executor), "run", str(recipe), "--json"]
        done = subprocess.run([*command, "--on", executor], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        outputs.append(json.loads(done.stdout.splitlines()[-1])["outputs"])
    assert outputs[0] == outputs[1]
