"""The sandbox: programs that a model wrote run in a process of their own that can reach nothing.

    parent --stdin: program--> bootstrap (`sandbox_child.py`: namespaces, mounts, limits, no rights) --exec--> python

The program sees Python's own files read-only and an empty folder in memory; no network, no other file, no other
process. Time, memory (of all its processes together), processes and what it writes are limited. Where the kernel does
not let us contain it so, nothing is run, unless that was asked for in so many words.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from math import comb
from pathlib import Path
from typing import NamedTuple

import psutil

from catena.core.errors import EnvironmentProblem
from catena.evaluate.task import LimitsConfig

CHILD = Path(__file__).parent / "sandbox_child.py"
MOST_OUTPUT = 20_000
"""Bytes of a program's output that are kept; the rest is thrown away."""
POLL_S = 0.02
REFUSED = 97
"""Exit code of the bootstrap where it cannot contain."""


class Verdict(NamedTuple):
    """How a program ended."""

    reason: str
    """passed, failed, timeout, memory, processes, not_extracted."""
    output: str = ""
    """The end of what it wrote."""

    @property
    def passed(self) -> bool:
        """Whether it ran to its end without an error."""
        return self.reason == "passed"


@dataclass(frozen=True)
class Sandbox:
    """How programs are contained."""

    uncontained: bool = False
    """Run them even where only limits hold, and files and network are open to them."""

    def check(self) -> None:
        """Raise `EnvironmentProblem` where programs cannot be contained here and must be."""
        if not self.uncontained and (why := cannot_contain()):
            raise EnvironmentProblem(
                f"programs cannot be contained on this machine, so none is run: {why}",
                hint="Allow user namespaces (or run as root in a container of its own), or accept that programs of a "
                "model may read and write your files: --allow-uncontained-code.",
            )

    def describe(self) -> str:
        """Say how programs were run."""
        return "limits only" if self.uncontained and cannot_contain() else "namespaces, read-only files, no network"

    def run(self, program: str, limits: LimitsConfig) -> Verdict:
        """Run one program to its end, or to that of its time or memory."""
        self.check()
        return _run(program, limits, contained=not (self.uncontained and cannot_contain()))


@cache
def cannot_contain() -> str:
    """Return why programs cannot be contained here; nothing where they can. Tried once, with a real program."""
    if sys.platform != "linux":
        return "it needs Linux"
    try:
        verdict = _run("print('contained')", LimitsConfig(seconds=30), contained=True)
    except OSError as error:
        return str(error)
    return "" if verdict.passed else verdict.output.strip().rpartition("\n")[2] or verdict.reason


def run_all(
    sandbox: Sandbox, programs: Sequence[str | None], limits: LimitsConfig, advance: Callable[[], None] = lambda: None
) -> list[Verdict]:
    """Run programs, as many at once as there are processors; None is one that could not be read from its answer."""
    sandbox.check()

    def one(program: str | None) -> Verdict:
        verdict = Verdict("not_extracted") if program is None else sandbox.run(program, limits)
        advance()
        return verdict

    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        return list(pool.map(one, programs))


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Return the unbiased estimate that one of k samples passes (Chen et al. 2021, arXiv 2107.03374)."""
    if samples - passed < k:
        return 1.0
    return 1.0 - comb(samples - passed, k) / comb(samples, k)


def _run(program: str, limits: LimitsConfig, *, contained: bool) -> Verdict:
    mark = secrets.token_hex(16)
    # The mark is written at the very end: a program that leaves early (sys.exit, os._exit) has not passed.
    text = f"{program}\n\nimport sys as _s\n_s.stdout.flush()\n_s.stderr.write({mark!r})\n_s.stderr.flush()\n"
    spec = {
        "program": text,
        "python": getattr(sys, "_base_executable", sys.executable),
        "roots": sorted({sys.base_prefix, sys.base_exec_prefix}),
        "contained": contained,
        "seconds": limits.seconds,
        "memory": limits.memory_mb << 20,
        "processes": limits.processes,
        "file": limits.file_mb << 20,
        "refused": REFUSED,
    }
    command = [sys.executable, "-I", "-S", "-B", str(CHILD)]
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        cwd="/",
        start_new_session=True,
        close_fds=True,
    )
    try:
        ended, output = _watch(child, json.dumps(spec).encode(), limits)
    finally:
        _kill(child)
    return _verdict(ended, child.returncode, output, mark)


def _verdict(ended: str, code: int, output: bytes, mark: str) -> Verdict:
    text = output.decode("utf-8", "replace")
    if ended == "ended" and code == 0 and text.endswith(mark):
        return Verdict("passed", text.removesuffix(mark))
    text = text.replace(mark, "")
    if ended == "ended":
        killed = code in (-signal.SIGXCPU, 128 + signal.SIGXCPU)
        ended = "timeout" if killed else "memory" if "MemoryError" in text[-300:] else "failed"
    return Verdict(ended, text)


def _watch(child: subprocess.Popen[bytes], spec: bytes, limits: LimitsConfig) -> tuple[str, bytes]:
    """Feed the program, keep the end of its output, and stop it at its limits."""
    assert child.stdin is not None
    assert child.stdout is not None
    deadline = time.monotonic() + limits.seconds
    output = b""
    try:
        child.stdin.write(spec)
        child.stdin.close()
    except BrokenPipeError:
        pass
    with selectors.DefaultSelector() as selector:
        os.set_blocking(child.stdout.fileno(), False)
        selector.register(child.stdout, selectors.EVENT_READ)
        open_ = True
        while open_ or child.poll() is None:
            if time.monotonic() > deadline:
                return "timeout", output
            memory, processes = _used(child.pid)
            if memory > limits.memory_mb << 20:
                return "memory", output
            if processes > limits.processes + 3:  # the kernel does not count those of root
                return "processes", output
            if not open_:
                time.sleep(POLL_S)
            for _ in selector.select(POLL_S) if open_ else ():
                piece = child.stdout.read(1 << 16)
                if piece == b"":
                    open_ = False
                output = (output + (piece or b""))[-MOST_OUTPUT:]
    return "ended", output


def _used(pid: int) -> tuple[int, int]:
    """Return the memory of a process and all below it, in bytes, and how many they are."""
    total, count = 0, 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            count += 1
            try:
                total += process.memory_info().rss
            except psutil.Error:
                continue
    except psutil.Error:
        return total, count
    return total, count


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End the program and all that it began: the first process of a namespace takes the others with it."""
    try:
        below = psutil.Process(child.pid).children(recursive=True)
    except psutil.Error:
        below = []
    for process in below:
        try:
            process.kill()
        except psutil.Error:
            continue
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    if child.stdout is not None:
        child.stdout.close()
    child.wait()
