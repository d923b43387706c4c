"""Who ended a replica: itself, maybe of a request, or somebody from outside."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from catena.serve.gateway import child
from catena.serve.gateway.endings import from_outside, memory_kills, told
from tests.needs import cannot_be_had

from .conftest import Running, Start, eventually, mock


@pytest.mark.parametrize(
    ("code", "before", "now", "outside"),
    [
        (None, 0, 0, False),
        (0, 0, 0, True),
        (1, 0, 0, False),
        (70, 0, 0, False),
        (-signal.SIGTERM, 0, 0, True),
        (-signal.SIGINT, 0, 5, True),
        (-signal.SIGSEGV, 0, 0, False),
        (-signal.SIGABRT, 0, 0, False),
        (-signal.SIGKILL, 3, 3, True),
        (-signal.SIGKILL, 3, 4, False),
        (-signal.SIGKILL, None, None, False),
        (-signal.SIGKILL, None, 3, False),
        (-signal.SIGKILL, 3, None, False),
    ],
)
def test_by_how_it_ended_and_by_what_the_kernel_counted(
    code: int | None, before: int | None, now: int | None, outside: bool
) -> None:
    assert from_outside(code, before, now) is outside


@pytest.mark.parametrize(
    ("text", "count"), [(b"nr_free 7\noom_kill 12\n", 12), (b"nr_free 7\n", None), (b"oom_kill x\n", None)]
)
def test_the_kernels_count_is_read_where_it_tells_one(tmp_path: Path, text: bytes, count: int | None) -> None:
    (tmp_path / "vmstat").write_bytes(text)
    assert memory_kills(tmp_path / "vmstat") == count
    assert memory_kills(tmp_path / "nothing") is None


def test_a_process_that_somebody_kills_is_no_crash() -> None:
    before = memory_kills()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        process.kill()
    assert from_outside(process.returncode, before, memory_kills()) is (before is not None)


def test_what_is_told() -> None:
    assert told(None, False) == "does not answer /health"
    assert told(3, False) == "ended with code 3"
    assert told(-signal.SIGSEGV, False) == "ended by SIGSEGV"
    assert told(-signal.SIGKILL, True) == "was ended from outside (SIGKILL)"
    assert told(-99, False) == "ended by signal 99"


def test_a_replica_that_could_not_be_started_leaves_nothing_open() -> None:
    async def tried() -> None:
        one = child.Child("m", ("nothing.py",), {"TOO_LONG": "x" * (1 << 22)})
        with pytest.raises(OSError, match="Argument list too long"):
            await one.start(5)
        await one.stop(1)

    asyncio.run(tried())  # what opens once, opens here
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        asyncio.run(tried())
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def kill_under(running: Running, times: int) -> None:
    """Kill so many replicas one after the other, each while it has the one request that there is."""
    pool = running.gateway.pools["m"]
    for _ in range(times):
        busy = eventually(lambda: [one for one in pool.ready() if one.running])[0]
        ended = pool.slots[busy.id].child
        assert ended is not None
        os.kill(ended.pid, signal.SIGKILL)
        eventually(lambda busy=busy: not busy.ready)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_whose_replicas_are_killed_from_outside_is_answered_in_the_end(start: Start, stream: bool) -> None:
    if memory_kills() is None:
        cannot_be_had("the kernel does not tell what it ended for want of memory")
    running = start({"m": mock("--delay", "1", min=3)}, routing={"attempts": 1})
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        answer = threads.submit(running.chat, "hi", stream=stream)
        kill_under(running, 2)
        assert answer.result().status_code == 200
    assert running.gateway.pools["m"].poison.convictions == 0
    assert running.gateway.pools["m"].deaths == 2
    assert 'status="200"' in running.get("/metrics").text


def test_a_request_that_eats_all_memory_gets_no_third_replica(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's count rises at each death, as it does where it ends a process for want of memory."""
    count = iter(range(10**6, 10**7))
    monkeypatch.setattr(child, "memory_kills", lambda: next(count))
    running = start({"m": mock("--delay", "1", min=3)})
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        answer = threads.submit(running.chat, "hi")
        kill_under(running, 2)
        assert (answer.result().status_code, answer.result().json()["error"]["code"]) == (422, "request_ends_replicas")
    assert running.gateway.pools["m"].deaths == 2
