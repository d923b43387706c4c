"""The doctor: each finding says what to do, and a missing or dying part is a finding, not a crash."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from catena.cli.doctor import check_compute, check_disk, check_index, check_library_path, measured, memory_limit
from catena.hub.store import init_store
from tests.cli.conftest import Catena

NAMES = {"python", "cores", "memory", "disk", "cpu guard", "redis", "postgresql", "workspace"}


def test_quick_look_has_every_check_and_ends_well(filled: Catena) -> None:
    result = filled("doctor", "--quick", "--json")
    assert result.code == 0
    assert {check["name"] for check in result.json} >= NAMES
    assert {"name", "status", "value", "advice"} == set(result.json[0])
    assert {check["status"] for check in result.json} <= {"ok", "warn"}
    assert "2 versions" in result.json[-1]["value"]


def test_lines_for_people_begin_with_the_status(catena: Catena) -> None:
    assert all(line.split()[0] in ("ok", "warn", "fail", "->") for line in catena("doctor", "--quick").out.splitlines())


def test_measurement_comes_from_a_child_process() -> None:
    was_there = "torch" in sys.modules
    found = measured()
    assert ("torch" in sys.modules) == was_there
    names = [check.name for check in check_compute(found)]
    assert names[:3] == ["blas", "GFLOP/s", "memory read"]
    assert found["gflops"]["float32"] > 0


@pytest.mark.parametrize(
    ("error", "status"),
    [("No module named 'torch'", "warn"), ("the measurement was ended by signal 4", "fail")],
)
def test_measurement_that_fails_is_a_finding(error: str, status: str) -> None:
    (check,) = check_compute({"error": error})
    assert (check.status, check.value) == (status, error)
    assert check.advice


def test_newer_or_broken_workspace_is_a_finding(tmp_path: Path, catena: Catena) -> None:
    root = tmp_path / "w"
    init_store(root).close()
    assert check_index(root).status == "ok"
    (root / "workspace.json").write_text('{"format": 99}')
    assert check_index(root).status == "fail"
    assert catena("doctor", "--quick", "--workspace", str(root)).code == 5


def test_library_path_with_foreign_libraries_is_a_finding(tmp_path: Path) -> None:
    assert list(check_library_path("")) == []
    assert [check.status for check in check_library_path(str(tmp_path))] == ["ok"]
    assert [check.status for check in check_library_path(f"{tmp_path}:")] == ["warn"]
    assert [check.status for check in check_library_path(str(tmp_path / "absent"))] == ["warn"]
    (tmp_path / "libcudnn.so.8").touch()
    (check,) = check_library_path(str(tmp_path))
    assert (check.status, check.value) == ("warn", "libcudnn.so.8")


@pytest.mark.parametrize(("text", "limit"), [("max\n", None), ("4294967296\n", 4 << 30), ("", None)])
def test_memory_limit_of_a_container_is_read(tmp_path: Path, text: str, limit: int | None) -> None:
    (tmp_path / "memory.max").write_text(text)
    assert memory_limit(tmp_path / "memory.max") == limit
    assert memory_limit(tmp_path / "absent") is None


def test_disk_of_a_folder_that_is_not_there_yet_is_its_parents(tmp_path: Path) -> None:
    assert check_disk(tmp_path / "a" / "b").status in ("ok", "warn")
