"""Bad input, as a person gives it: one clear line, a hint, the right exit code, and nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import catena as c
from catena.cli.main import run
from catena.hub.fsck import check

RECIPE = """\
name: demo
steps:
  small: {stage: example.numbers, with: {rows: 3}}
  loud: {stage: example.shout, use: {source: small}}
"""


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Catena = Callable[..., Result]


def program(*words: str, workspace: Path) -> Result:
    """Run a command line as a program of its own, which holds no file open afterwards."""
    command = [sys.executable, "-m", "catena", "--workspace", str(workspace), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


def complaint(done: Result) -> str:
    """Return what was complained about; there is one error, one hint, and no traceback."""
    lines = done.stderr.strip().splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1, done.stderr
    assert sum(line.startswith("hint: ") for line in lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def catena(workspace: Path, capsys: pytest.CaptureFixture[str]) -> Catena:
    """Run a command line in this process, as a person types it."""

    def call(*words: str) -> Result:
        capsys.readouterr()
        code = run(["--workspace", str(workspace), *words])
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / ".catena"


@pytest.mark.parametrize(
    ("found", "bad", "said"),
    [
        ("example.shout", "example.shot", "r.yaml:4: unknown stage 'example.shot'. Did you mean 'example.shout'?"),
        ("rows", "rowz", "unknown key 'rowz'. Did you mean 'rows'?"),
        ("rows: 3", "rows: three", "got 'three'"),
        ("rows: 3", "rows: -3", "greater than or equal to 0"),
        ("source: small", "source: loud", "circle: loud -> loud"),
        ("use: {source: small}", "use: {}", "the input 'source' (a dataset) is missing"),
        ("use:", "user:", "Did you mean 'use'?"),
        ("}}", "}", "not valid YAML"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_runs(
    catena: Catena, found: str, bad: str, said: str, tmp_path: Path, workspace: Path
) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.replace(found, bad))
    done = catena("run", str(tmp_path / "r.yaml"))
    assert done.returncode == 2
    assert said in complaint(done)
    assert not workspace.exists()


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (None, 3, "there is no recipe file"),
        ("", 3, "is a folder, not a recipe file"),
        (b"\x8f\x00\xff\xfe junk", 4, "is not UTF-8 text (byte 0)"),
        (b"just words", 2, "a recipe is a mapping with `name` and `steps`"),
        (b"name: a\nsteps: {}", 2, "r.yaml:2: steps: it cannot be empty"),
    ],
)
def test_what_is_no_recipe_is_said(
    content: bytes | str | None, code: int, said: str, catena: Catena, tmp_path: Path, workspace: Path
) -> None:
    path = tmp_path / "r.yaml"
    if content == "":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    done = catena("run", str(path))
    assert done.returncode == code
    assert said in complaint(done)
    assert not workspace.exists()


def test_a_workspace_of_a_newer_catena(catena: Catena, workspace: Path) -> None:
    c.open(workspace).close()
    described = workspace / "workspace.json"
    described.write_text(json.dumps({**json.loads(described.read_text()), "format": 99}))
    done = catena("list")
    assert done.returncode == 5
    assert "has format 99" in complaint(done)


def test_a_damaged_file_is_found_named_and_mended(catena: Catena, tmp_path: Path, workspace: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE)
    with c.open(workspace) as ws:
        ws.run(recipe, until="small")
        (data,) = (workspace / "datasets" / ws.resolve("demo/small").table).glob("samples.lance/data/*")  # type: ignore[union-attr]
    data.write_bytes(data.read_bytes()[:-9] + b"\0" * 9)
    done = catena("run", str(recipe))
    assert done.returncode == 6
    assert data.name in complaint(done)
    found = catena("fsck")
    assert found.returncode == 6
    assert data.name in found.stdout + found.stderr
    assert catena("fsck", "--forget").returncode in (0, 6)
    assert catena("run", str(recipe)).returncode == 0
    assert catena("fsck").returncode == 0


def test_a_crawl_target_that_is_down(catena: Catena, workspace: Path) -> None:
    done = catena("do", "data.crawl", "--set", "start=[http://127.0.0.1:9/]", "--set", "retries=0")
    assert done.returncode == 8
    complaint(done)
    with c.open(workspace) as ws:
        assert ws.store.index.all_artifacts() == []
        assert not check(ws.store)


def test_an_empty_dataset_cannot_train_a_tokenizer(catena: Catena, workspace: Path) -> None:
    assert catena("do", "example.numbers", "--set", "rows=0", "--name", "none").returncode == 0
    done = catena("do", "train.tokenizer", "--use", "source=none", "--set", "split=all")
    assert done.returncode == 4
    complaint(done)


def test_binary_junk_in_place_of_text_is_a_reject_with_its_reason(catena: Catena, tmp_path: Path) -> None:
    junk = tmp_path / "notes.txt"
    junk.write_bytes(bytes(range(256)) * 40)
    done = catena("do", "data.ingest", "--set", f"paths=[{junk}]", "--name", "notes")
    assert done.returncode == 0
    assert "0 document rows, 1 rejects" in done.stdout
    shown = json.loads(catena("show", "notes", "--rejects", "--json").stdout)
    assert [row["source"].endswith("notes.txt") and bool(row["reason"]) for row in shown["rejects"]] == [True]


@pytest.mark.parametrize(
    "line",
    ["show nothing", "show demo/small@9", "chat demo/small hi", "tag demo/small none --remove", "log --limit -1"],
)
def test_every_complaint_has_a_hint(line: str, catena: Catena, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    assert catena("run", str(tmp_path / "r.yaml"), "--until", "small").returncode == 0
    done = catena(*line.split())
    assert done.returncode in (2, 3)
    complaint(done)


def test_a_full_disk_is_said_and_what_was_there_stays(small_disk: Path) -> None:
    workspace = small_disk / ".catena"
    assert program("do", "example.numbers", "--name", "kept", workspace=workspace).returncode == 0
    done = program("do", "example.numbers", "--set", "rows=100000", "--name", "big", workspace=workspace)
    assert done.returncode == 5
    assert "no space is left" in complaint(done)
    with c.open(workspace) as ws:
        assert len(list(ws.dataset("kept").samples())) == 10
        assert not check(ws.store)


def test_a_read_only_folder_is_said(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = program("do", "example.numbers", workspace=small_disk / ".catena")
    assert done.returncode == 5
    assert "cannot be written" in complaint(done)
