"""The CPU guard, with real child processes; the processor's own description is a small file here."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from catena.core.cpu import ISA_VARIABLE, SAFE_ISA, guard, guard_status

DIES = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
SOUND = "pass"


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # setenv first: monkeypatch then knows that the variable has to go again, although guard() sets it behind its back.
    for name in (ISA_VARIABLE, "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def amx(tmp_path: Path) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text(
        "processor\t: 0\nmodel name\t: Small CPU\nmicrocode\t: 0x1\nflags\t\t: fpu avx512f amx_tile amx_bf16\n\n"
        "processor\t: 1\nmodel name\t: Another CPU\n"
    )
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "cpuinfo-plain"
    path.write_text("processor\t: 0\nmodel name\t: Small CPU\nflags\t\t: fpu avx2\n")
    return path


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("*.json"))


def test_processor_that_dies_at_amx_gets_the_cap_and_children_inherit_it(amx: Path) -> None:
    guard(cpuinfo=amx, probe=DIES)
    assert os.environ[ISA_VARIABLE] == SAFE_ISA
    command = [sys.executable, "-c", f"import os; print(os.environ[{ISA_VARIABLE!r}])"]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    assert child.stdout.strip() == SAFE_ISA


def test_sound_processor_is_left_alone(amx: Path) -> None:
    guard(cpuinfo=amx, probe=SOUND)
    assert ISA_VARIABLE not in os.environ
    assert guard_status(cpuinfo=amx)["probe"] == "sound"


def test_probe_runs_once_and_the_answer_is_cached(amx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "asked"
    probe = f"open({str(mark)!r}, 'a').write('x')\n{DIES}"
    guard(cpuinfo=amx, probe=probe)
    monkeypatch.delenv(ISA_VARIABLE)
    guard(cpuinfo=amx, probe=probe)
    assert mark.read_text() == "x"
    assert os.environ[ISA_VARIABLE] == SAFE_ISA
    assert len(cached(tmp_path)) == 1


def test_other_microcode_is_asked_again(amx: Path, tmp_path: Path) -> None:
    guard(cpuinfo=amx, probe=SOUND)
    amx.write_text(amx.read_text().replace("0x1", "0x2"))
    guard(cpuinfo=amx, probe=DIES)
    assert os.environ[ISA_VARIABLE] == SAFE_ISA
    assert len(cached(tmp_path)) == 2


def test_child_killed_from_outside_says_nothing_and_is_not_cached(amx: Path, tmp_path: Path) -> None:
    guard(cpuinfo=amx, probe=KILLED)
    assert ISA_VARIABLE not in os.environ
    assert cached(tmp_path) == []


def test_without_amx_no_child_is_started(plain: Path, tmp_path: Path) -> None:
    guard(cpuinfo=plain, probe=DIES)
    assert ISA_VARIABLE not in os.environ
    assert guard_status(cpuinfo=plain)["amx"] is False


def test_limit_set_by_a_person_is_kept(amx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, "AVX2")
    guard(cpuinfo=amx, probe=DIES)
    assert os.environ[ISA_VARIABLE] == "AVX2"


def test_openmp_waits_passively_unless_a_person_says_otherwise(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard(cpuinfo=plain)
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    guard(cpuinfo=plain)
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.mark.parametrize("content", ["", "no colon here", "\x00\xff", "flags : amx_tile"])
def test_strange_descriptions_never_raise(tmp_path: Path, content: str) -> None:
    path = tmp_path / "strange"
    path.write_text(content)
    guard(cpuinfo=path, probe="raise SystemExit(3)")
    guard(cpuinfo=tmp_path / "absent", probe=DIES)
    assert ISA_VARIABLE not in os.environ


def test_cache_that_cannot_be_written_or_read_never_raises(amx: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    guard(cpuinfo=amx, probe=DIES)
    assert os.environ[ISA_VARIABLE] == SAFE_ISA


def test_guard_imports_no_torch() -> None:
    command = [
        sys.executable,
        "-c",
        "import sys; from catena.core.cpu import guard; guard(); print('torch' in sys.modules)",
    ]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_real_probe_has_a_certain_answer_here(amx: Path) -> None:
    start = time.monotonic()
    guard(cpuinfo=amx)
    assert guard_status(cpuinfo=amx)["probe"] in ("sound", "dies")
    assert time.monotonic() - start < 120
