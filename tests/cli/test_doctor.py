"""The doctor: each finding says what to do, and a missing or dying part is a finding, not a crash."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from catena.cli.doctor import (
    Check,
    check_compute,
    check_cores,
    check_disk,
    check_gpus,
    check_index,
    check_library_path,
    check_memory,
    cudnn_version,
    examine,
    measured,
)
from catena.hub.schema import HEAD
from catena.hub.store import init_store, open_store
from tests.cli.conftest import Catena

LIBRARIES = {"GPU", "CUDA", "cuDNN", "NCCL", "LD_LIBRARY_PATH"}
NAMES = {"python", "cores", "memory", "disk", "cpu guard", "redis", "postgresql", "workspace", *LIBRARIES}


def test_quick_look_has_every_check_and_ends_well(filled: Catena) -> None:
    result = filled("doctor", "--quick", "--json")
    assert result.code == 0
    assert {check["name"] for check in result.json} >= NAMES
    assert {"name", "status", "value", "advice", "data"} == set(result.json[0])
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
    assert check_library_path("") == Check("LD_LIBRARY_PATH", "ok", "not set", data={"folders": []})
    assert check_library_path(str(tmp_path)).status == "ok"
    assert check_library_path(f"{tmp_path}:").status == "warn"
    assert check_library_path(str(tmp_path / "absent")).status == "warn"
    (tmp_path / "libcudnn.so.8").touch()
    check = check_library_path(str(tmp_path))
    assert (check.status, check.value) == ("warn", "libcudnn.so.8")


GPU: dict[str, Any] = {
    "name": "NVIDIA H100",
    "memory_gib": 79.6,
    "capability": "9.0",
    "gflops": {"float32": 51000, "bfloat16": 640000, "float16": None},
}
CUDA = {"cuda": "12.8", "cudnn": 91002, "nccl": "2.27.3"}


def by_name(checks: Iterable[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.mark.parametrize("found", [{}, {"error": ""}, {"error": "No module named 'torch'"}, {"gpus": [GPU], **CUDA}])
def test_gpu_and_its_libraries_have_a_line_in_every_case(found: dict[str, Any], tmp_path: Path) -> None:
    for driver in (tmp_path, tmp_path / "absent"):
        checks = by_name(check_gpus(found, driver))
        assert checks.keys() == LIBRARIES - {"LD_LIBRARY_PATH"}
        assert found.get("gpus") or all("none" in check.value for check in checks.values())


def test_what_a_gpu_was_measured_to_do_is_shown(tmp_path: Path) -> None:
    checks = by_name(check_gpus({"gpus": [GPU], **CUDA}, tmp_path))
    assert checks["GPU"].value.endswith("GFLOP/s: float32 51000, bfloat16 640000, float16 none")
    assert checks["GPU"].data["gflops"]["bfloat16"] == 640000
    assert [checks[name].value for name in ("CUDA", "cuDNN", "NCCL")] == ["12.8", "9.10.2", "2.27.3"]
    assert cudnn_version(8902) == "8.9.2"


def test_what_is_wrong_with_a_gpu_says_what_to_do(tmp_path: Path) -> None:
    old = by_name(check_gpus({"cuda": "12.8", "errors": {"gpu": "driver too old"}}, tmp_path))["GPU"]
    assert (old.status, old.value) == ("warn", "none that torch sees: driver too old")
    assert "12.8" in old.advice
    assert "CUDA build" in by_name(check_gpus({"cuda": None}, tmp_path))["GPU"].advice
    wrong = by_name(check_gpus({"gpus": [GPU], "cuda": "12.8", "errors": {"cudnn": "incompatible"}}, tmp_path))
    assert (wrong["cuDNN"].status, wrong["NCCL"].status) == ("warn", "ok")
    assert "LD_LIBRARY_PATH" in wrong["cuDNN"].advice


def test_every_check_has_its_numbers() -> None:
    found = {"gflops": {"float32": 100.0}, "read_gb_per_s": 12.5, "threads": {"2": 100.0}, "best_threads": 2}
    checks = by_name([*examine(None, quick=True), *check_compute(found)])
    assert checks["GFLOP/s"].data == {"gflops": {"float32": 100.0}}
    assert checks["memory read"].data == {"read_gb_s": 12.5}
    assert (checks["blas"].data["best_threads"], checks["blas"].data["threads"]) == (2, {"2": 100.0})
    assert checks["memory"].data["total_bytes"] > checks["memory"].data["free_bytes"] > 0
    assert checks["disk"].data["free_bytes"] > 0
    assert 0 < checks["cores"].data["usable"] <= checks["cores"].data["present"]


def test_a_busy_machine_is_said_beside_what_it_was_measured_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (1000.0, 0.0, 0.0))
    check = check_cores()
    assert (check.status, check.data["load"]) == ("warn", 1000.0)
    assert "load 1000.0" in check.value
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    assert "load" not in check_cores().value


def group(root: Path, **files: str) -> Path:
    """Write the files of a control group; `__` stands for a dot."""
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text)
    return root


V1_CPU = {"cpu__cfs_quota_us": "50000\n", "cpu__cfs_period_us": "100000\n"}


def test_processors_of_a_container_are_those_of_its_quota(tmp_path: Path) -> None:
    none = tmp_path / "none"
    second = group(tmp_path / "v2", cpu__max="50000 100000\n")
    first = tmp_path / "v1"
    group(first / "cpu" / "docker" / "x", **V1_CPU)
    (tmp_path / "groups").write_text("4:cpu,cpuacct:/docker/x\n1:name=systemd:/\n0::/\n")
    for root in (second, first):
        check = check_cores(root, tmp_path / "groups")
        assert (check.data["limit"], check.data["usable"], check.status) == (0.5, 0.5, "warn")
        assert "limit of this container" in check.value
    for free in ({"cpu__max": "max 100000\n"}, {**V1_CPU, "cpu__cfs_quota_us": "-1\n"}, {}):
        assert check_cores(group(tmp_path / f"free{len(free)}", **free), none).data["limit"] is None
    nested = group(tmp_path / "nested" / "a", cpu__max="25000 100000\n").parent
    group(nested / "a" / "b", cpu__max="max 100000\n")
    (tmp_path / "groups").write_text("0::/a/b\n")
    assert check_cores(nested, tmp_path / "groups").data["limit"] == 0.25


def test_memory_of_a_container_is_what_its_limit_leaves(tmp_path: Path) -> None:
    second = group(tmp_path / "v2", memory__max=f"{1 << 28}\n", memory__current=f"{1 << 27}\n")
    names = {"memory__limit_in_bytes": f"{1 << 28}\n", "memory__usage_in_bytes": f"{1 << 27}\n"}
    first = group(tmp_path / "v1" / "memory", **names).parent
    for root in (second, first):
        check = check_memory(root, tmp_path / "absent")
        assert (check.status, check.data["limit_bytes"], check.data["free_bytes"]) == ("warn", 1 << 28, 1 << 27)
    group(second, memory__stat=f"anon 1\ninactive_file {1 << 26}\n")  # given back when somebody needs it
    assert check_memory(second, tmp_path / "absent").data["free_bytes"] == (1 << 27) + (1 << 26)
    unlimited = group(tmp_path / "free", memory__max="max\n", memory__limit_in_bytes="9223372036854771712\n")
    assert check_memory(unlimited, tmp_path / "absent").data["limit_bytes"] is None


def schema_of(root: Path) -> str:
    with closing(sqlite3.connect(root / "catena.db")) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


@pytest.mark.parametrize(("version", "status"), [("0001", "ok"), ("9999", "fail")])
def test_an_index_of_another_schema_is_told_and_left_as_it_is(tmp_path: Path, version: str, status: str) -> None:
    root = tmp_path / "a folder?" / "w"
    init_store(root).close()
    with closing(sqlite3.connect(root / "catena.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
        connection.commit()
    check = check_index(root)
    assert (check.status, check.data["schema"], check.data["newest_schema"]) == (status, version, HEAD)
    assert ("next run brings it up to date" in check.advice) == (status == "ok")
    assert schema_of(root) == version


def test_an_index_that_is_gone_or_damaged_is_a_finding_and_not_made_anew(tmp_path: Path) -> None:
    init_store(tmp_path).close()
    open_store(tmp_path).close()
    for file in tmp_path.glob("catena.db*"):
        file.unlink()
    assert (check_index(tmp_path).status, (tmp_path / "catena.db").exists()) == ("fail", False)
    (tmp_path / "catena.db").write_bytes(b"not a database at all" * 100)
    assert check_index(tmp_path).status == "fail"


def test_disk_of_a_folder_that_is_not_there_yet_is_its_parents(tmp_path: Path) -> None:
    assert check_disk(tmp_path / "a" / "b").status in ("ok", "warn")
