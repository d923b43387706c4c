"""The official Node client takes the same tour. Where Node or the client cannot be had it is skipped; CI fails then."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.needs import cannot_be_had

CLIENT = "openai@7.57.0"
OLDEST = 20
"""Version of Node that the client is known to run on."""
TRIES = 3
TOUR = Path(__file__).parent / "tour.mjs"


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the client installed."""
    if not (shutil.which("node") and shutil.which("npm")):
        cannot_be_had("Node and npm are not installed: sh scripts/system-packages")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    if int(version.lstrip("v").partition(".")[0]) < OLDEST:
        pytest.skip(f"{CLIENT} is not for Node {version.strip()}")
    folder = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", CLIENT]
    for _ in range(TRIES):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        if not done.returncode:
            return folder
    return cannot_be_had(f"{CLIENT} cannot be installed: {done.stderr.strip().splitlines()[-1:]}")


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
