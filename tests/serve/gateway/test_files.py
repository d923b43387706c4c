"""What files leave behind: no open descriptor, and no part that a kill left."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from catena.serve.jobs import runner
from catena.serve.jobs.files import Files
from catena.serve.jobs.queue import Queue

from .conftest import Start, eventually
from .test_jobs import client_for as client_for


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_many_files_leave_no_descriptor_open(start: Start, client_for: Any) -> None:
    client = client_for(start())
    client.files.create(file=("first", b"{}\n"), purpose="batch")  # what opens once, opens here
    before = descriptors()
    for number in range(40):
        file = client.files.create(file=("a", b"{}\n" * (number + 1)), purpose="batch")
        assert client.files.content(file.id).read()
    eventually(lambda: descriptors() < before + 20)


def test_two_files_at_once_do_not_share_the_room_for_one(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    running, both, looks, used = start(jobs={"max_tenant_bytes": 3000}), threading.Barrier(2), count(), Queue.used

    def looked(queue: Queue, tenant: str) -> int:
        found = used(queue, tenant)
        if next(looks) < 2:
            both.wait(30)
        return found

    def upload(name: str) -> int:
        form = {"purpose": (None, "batch"), "file": (name, name.encode() * 2000)}
        return running.client.post(f"{running.url}/v1/files", files=form).status_code

    monkeypatch.setattr(Queue, "used", looked)
    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(upload, "ab")) == [200, 413]


def test_a_sweep_that_fails_once_is_tried_again(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runner, "SWEEP_S", 0.05)
    swept: list[str] = []

    def sweep(files: Files) -> None:
        swept.append("tried")
        if len(swept) == 1:
            raise PermissionError("not yours")

    monkeypatch.setattr(Files, "sweep", sweep)
    start()
    eventually(lambda: len(swept) > 2)
    assert "it is tried again" in caplog.text


def test_what_a_kill_left_half_written_goes_and_what_is_being_written_stays(start: Start, tmp_path: Path) -> None:
    parts = tmp_path / "state" / "parts"
    parts.mkdir(parents=True)
    old, new = parts / "part-old", parts / "part-new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    running = start()
    assert running.gateway.jobs is not None
    running.gateway.jobs.files.sweep()
    assert (old.exists(), new.exists()) == (False, True)
