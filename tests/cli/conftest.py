"""The command line in this process and as a program, and a workspace that a small recipe has filled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from catena.cli.main import run as run_line

RECIPE = """\
name: demo
steps:
  small: {stage: example.numbers, with: {rows: 4}}
  loud: {stage: example.shout, use: {source: small}, tags: [best]}
"""


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Catena = Callable[..., Result]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, with no setting from outside."""
    for name in [name for name in os.environ if name.startswith("CATENA_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def catena(here: Path, capsys: pytest.CaptureFixture[str]) -> Catena:
    """Run a command line in this process."""

    def call(*arguments: str) -> Result:
        capsys.readouterr()
        code = run_line(list(arguments))
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def program(here: Path) -> Catena:
    """Run a command line as a program of its own."""

    def call(*arguments: str, stdin: str = "") -> Result:
        command = [sys.executable, "-m", "catena", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        return Result(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def recipe(here: Path) -> Path:
    path = here / "demo.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def filled(catena: Catena, recipe: Path) -> Catena:
    """The command line over a workspace in which the recipe has run once."""
    assert catena("run", str(recipe), "--quiet").code == 0
    return catena
