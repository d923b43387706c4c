"""Processes that train together, for the tests of that: forked from one that holds torch already.

Nothing of a team can hang. It meets at a store of the parent, on a socket that was there before anybody was forked. The
parent ends all when one ends badly, with what it said; each ends itself, with its stack, after `LIMIT_S`. They write to
the parent's own standard error and never to a pipe that fills.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from transformers.models.llama import modeling_llama

from catena.train.parallel.contract import listen

HELD = modeling_llama  # imported here once, and not by each process
ROOT = Path(__file__).parent.parent.parent
LIMIT_S = 900.0


def run_module(module: str, *words: str, strict: bool = True) -> str:
    """Run a module that starts a team, as a process of its own; `strict`: warnings are errors. Returns its output."""
    command = [sys.executable, *(["-W", "error"] if strict else []), "-m", module, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryFile("w+") as said:
        started = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = started.wait(LIMIT_S + 60)
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)
                started.wait()
        said.seek(0)
        text = said.read()
    assert code == 0, text
    return text


def work_together(count: int, work: Callable[[int], None]) -> None:
    """Fork `count` processes, call `work` with the number of each, and exit when one of them has failed."""
    meeting = listen()
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(meeting.getsockname()[1])}
    os.environ.update(address, TORCHELASTIC_USE_AGENT_STORE="True")
    children = [_fork(number, work, meeting.fileno()) for number in range(count)]
    # As torchrun's agent does, this process holds the store; it starts its thread, so after the last fork.
    store = dist.TCPStore(
        "127.0.0.1",
        meeting.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=LIMIT_S),
        master_listen_fd=meeting.detach(),
    )
    while children:
        child, status = os.wait()
        children.remove(child)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
            sys.exit(f"one of {count} processes ended with {os.waitstatus_to_exitcode(status)}")
    del store


def _fork(number: int, work: Callable[[int], None], meeting: int) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.close(meeting)
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        work(number)
        code = 0
    except BaseException:
        sys.stderr.write(f"process {number}: {traceback.format_exc()}")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def become(rank: int, world: int, word: str) -> None:
    """Make this process one of `world` that know the word."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), CATENA_TRAINING=word)
