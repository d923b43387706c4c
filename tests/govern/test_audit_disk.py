"""A disk that is full under the audit: it stops or degrades as the policy says, and tells."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from catena.core.errors import CatenaError, DiskFull
from catena.govern.audit import log as module
from catena.govern.audit.log import Log
from catena.govern.audit.reading import Query, entries
from catena.govern.audit.verify import verify
from tests.govern.logs import (
    CONFIG,
    Open,
    Patch,
    fill,
    open_log as open_log,
    root as root,
)


class Disk:
    """The system's pwrite, which can be out of space, also in the middle of a write."""

    def __init__(self) -> None:
        self.full = False
        self._real = os.pwrite

    def __call__(self, descriptor: int, data: Any, at: int) -> int:
        if not self.full:
            return self._real(descriptor, data, at)
        self._real(descriptor, bytes(data)[:7], at)
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def disk(monkeypatch: Patch) -> Disk:
    made = Disk()
    monkeypatch.setattr(module.os, "pwrite", made)
    monkeypatch.setattr(module, "RETRY_S", 0.05)
    return made


def until_written(log: Log) -> None:
    for _ in range(400):
        if not log.problem:
            return
        time.sleep(0.05)
    raise AssertionError("it was never written again")


def test_a_full_disk_stops_where_the_policy_says_so(root: Path, open_log: Open, disk: Disk) -> None:
    log = open_log(when_full="stop")
    fill(log, 2)
    disk.full = True
    for _ in range(3):
        with pytest.raises(DiskFull, match="no space is left"):
            fill(log, 1)
    disk.full = False
    until_written(log)
    fill(log, 1)
    kinds = [entry["kind"] for entry in entries(root, CONFIG)]
    assert kinds == ["act", "act", "gap", "act"]
    assert verify(root, CONFIG, deep=True).sound


def test_a_full_disk_degrades_where_the_policy_says_so_and_tells(
    root: Path, open_log: Open, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log(when_full="degrade")
    fill(log, 2)
    disk.full = True
    fill(log, 5)
    assert log.status()["lost_total"] == 5
    assert "records of the audit were lost" in caplog.text
    disk.full = False
    until_written(log)
    fill(log, 1)
    [gap] = entries(root, CONFIG, Query(kind="gap"))
    assert gap["lost"] == 5
    assert verify(root, CONFIG, deep=True).sound


def test_a_problem_is_told_to_everybody_who_waits(root: Path, open_log: Open, disk: Disk) -> None:
    log = open_log()
    disk.full = True
    told: list[CatenaError | None] = []
    done = threading.Event()

    def note(problem: CatenaError | None) -> None:
        told.append(problem)
        done.set()

    log.write("lovelace", lambda: {"kind": "request"}, note)
    assert done.wait(30)
    assert isinstance(told[0], DiskFull)
