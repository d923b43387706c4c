"""An audit to write into and to look at, for its tests: `root` and `open_log` are fixtures to import."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from catena.govern.audit.log import Log
from catena.govern.config import AuditConfig

ROOT = Path(__file__).parents[2]
CONFIG = AuditConfig()
NOW = time.time_ns()
SECRET = "the secret of "
Patch = pytest.MonkeyPatch
Open = Callable[..., Log]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "w" / "locks").mkdir(parents=True)
    return tmp_path / "w"


@pytest.fixture
def open_log(root: Path) -> Iterator[Open]:
    opened: list[Log] = []

    def make(**options: Any) -> Log:
        opened.append(Log(root, AuditConfig.model_validate(options)))
        return opened[-1]

    yield make
    for log in opened:
        log.close()


def fill(log: Log, count: int, subjects: tuple[str, ...] = ("lovelace", "hopper")) -> None:
    """Write entries of some subjects, in several commits."""
    for number in range(count):
        subject = subjects[number % len(subjects)]
        log.act({"act": "test", "number": number, "said": SECRET + subject}, subject)


def segment(root: Path) -> Path:
    [path] = (root / "audit" / "segments").glob("*.log")
    return path


def independent(root: Path) -> int:
    """The exit code of the verifier that shares no code with ours."""
    script = [sys.executable, str(ROOT / "scripts" / "verify_audit.py")]
    places = [str(root / "audit"), str(root / "checkpoints"), str(root / "keys" / "govern.pub")]
    return subprocess.run([*script, *places], capture_output=True, check=False, timeout=60).returncode
