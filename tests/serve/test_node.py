"""The official Node client takes the same tour. Skipped where Node, or the client's package, cannot be had."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

CLIENT = "openai@7.57.0"
TOUR = Path(__file__).parent / "tour.mjs"


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the client installed."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("Node is not installed")
    folder = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", CLIENT]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        pytest.skip(f"{CLIENT} cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
    return folder


def test_the_official_node_client_passes_a_tour(url: str, node_folder: Path) -> None:
    shutil.copy(TOUR, node_folder)
    environment = {"PATH": os.environ["PATH"], "NO_PROXY": "127.0.0.1"}
    command = ["node", TOUR.name, url]
    done = subprocess.run(
        command, cwd=node_folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["models"] == ["tiny", "hermes"]
    assert told["chat"]
    assert told["city"] in ("北京", "Paris")
    assert told["tool"] == "weather"
    assert told["dimensions"] == [48, 48]
    assert told["refused"] == "temperature"
