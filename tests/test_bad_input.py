"""Bad input, as a person gives it: one clear line, a hint, the right exit code, and nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import catena as c
from catena.hub.fsck import check

RECIPE = """\
name: demo
steps:
  small: {stage: example.numbers, with: {rows: 3}}
  loud: {stage: example.shout, use: {source: small}}
"""


def catena(*words: str, workspace: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "catena", "--workspace", str(workspace), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """Return what was complained about; there is one error, one hint, and no traceback."""
    lines = done.stderr.strip().splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1, done.stderr
    assert sum(line.startswith("hint: ") for line in lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


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
    found: str, bad: str, said: str, tmp_path: Path, workspace: Path
) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.replace(found, bad))
    done = catena("run", str(tmp_path / "r.yaml"), workspace=workspace)
    assert done.returncode == 2
    assert said in complaint(done)
    assert not workspace.exists()


def test_a_recipe_that_is_not_there(tmp_path: Path, workspace: Path) -> None:
    done = catena("run", str(tmp_path / "none.yaml"), workspace=workspace)
    assert done.returncode == 3
    assert "none.yaml" in complaint(done)


def test_a_workspace_of_a_newer_catena(workspace: Path) -> None:
    c.open(workspace).close()
    described = workspace / "workspace.json"
    described.write_text(json.dumps({**json.loads(described.read_text()), "format": 99}))
    done = catena("list", workspace=workspace)
    assert done.returncode == 5
    assert "has format 99" in complaint(done)


def test_a_damaged_file_is_found_named_and_mended(tmp_path: Path, workspace: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE)
    with c.open(workspace) as ws:
        ws.run(recipe, until="small")
        (data,) = (workspace / "datasets" / ws.resolve("demo/small").table).glob("samples.lance/data/*")  # type: ignore[union-attr]
    data.write_bytes(data.read_bytes()[:-9] + b"\0" * 9)
    done = catena("run", str(recipe), workspace=workspace)
    assert done.returncode == 6
    assert data.name in complaint(done)
    found = catena("fsck", workspace=workspace)
    assert found.returncode == 6
    assert data.name in found.stdout + found.stderr
    assert catena("fsck", "--forget", workspace=workspace).returncode in (0, 6)
    assert catena("run", str(recipe), workspace=workspace).returncode == 0
    assert catena("fsck", workspace=workspace).returncode == 0


def test_a_crawl_target_that_is_down(workspace: Path) -> None:
    done = catena("do", "data.crawl", "--set", "start=[http://127.0.0.1:9/]", "--set", "retries=0", workspace=workspace)
    assert done.returncode == 8
    complaint(done)
    with c.open(workspace) as ws:
        assert ws.store.index.all_artifacts() == []
        assert not check(ws.store)


def test_an_empty_dataset_cannot_train_a_tokenizer(workspace: Path) -> None:
    assert catena("do", "example.numbers", "--set", "rows=0", "--name", "none", workspace=workspace).returncode == 0
    done = catena("do", "train.tokenizer", "--use", "source=none", "--set", "split=all", workspace=workspace)
    assert done.returncode == 4
    complaint(done)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MiB. Where none can be mounted the test is skipped, and fails when CI is set."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], check=False).returncode
    )
    if not mounted:
        pytest.fail("cannot mount a tmpfs") if os.environ.get("CI") else pytest.skip("mounting a disk needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_said_and_what_was_there_stays(small_disk: Path) -> None:
    workspace = small_disk / ".catena"
    assert catena("do", "example.numbers", "--name", "kept", workspace=workspace).returncode == 0
    done = catena("do", "example.numbers", "--set", "rows=100000", "--name", "big", workspace=workspace)
    assert done.returncode == 5
    assert "no space is left" in complaint(done)
    with c.open(workspace) as ws:
        assert len(list(ws.dataset("kept").samples())) == 10
        assert not check(ws.store)


def test_a_read_only_folder_is_said(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = catena("do", "example.numbers", workspace=small_disk / ".catena")
    assert done.returncode == 5
    assert "cannot be written" in complaint(done)
