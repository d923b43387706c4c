"""The parent's side of reading: child processes that are used again, watched, and replaced when a file kills them.

A document on which the child dies or says nothing for too long is one reject; reading goes on with the next document of
the same file, in a new child. What the document gave before is taken back, so that the outcome does not depend on when
it was stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from catena.core.errors import Cancelled, EnvironmentProblem
from catena.data.collect.child import last_lines
from catena.data.formats.pieces import Reading, Reject
from catena.data.formats.wire import BEGIN, END, FINISHED, FRAME, PIECES, pack

# One child, one core: libraries that would start a thread for each core, or reserve memory for it, are told not to.
SINGLE = {
    "RAYON_NUM_THREADS": "1",
    "TOKIO_WORKER_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "PYTHONWARNINGS": "ignore",
}
# What a child is told of the environment: enough to start Python, no secret.
PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "LD_LIBRARY_PATH", "TMPDIR", "SYSTEMROOT", "VIRTUAL_ENV")
WATCH_EVERY_S = 0.1
COPY_BYTES = 1 << 20
GRACE_S = 2.0
START_S = 120.0


class _Died(Exception):
    """The child is gone; `reason` is `timeout`, `out_of_memory` or `reader_died`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class Child:
    """One child process; safe to use from one thread."""

    def __init__(self, reading: Reading, folder: Path) -> None:
        self._reading, self.folder = reading, folder
        self._scratch, self._log = folder / "scratch", folder / "reader.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._deadline: float | None = None
        self._late = False
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="reader-watch")
        folder.mkdir(parents=True, exist_ok=True)
        self._watcher.start()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._end()
        self._watcher.join()

    def read(self, path: Path, name: str, spool: BinaryIO) -> None:
        """Append the pieces of a file to the spool, rejects for what the child died of included."""
        start = 0
        while not self._closing.is_set():
            progress = _Progress(spool, start)
            try:
                self._ask(path, name, start)
                self._take(progress)
                return
            except _Died as death:
                self._end()
                if self._closing.is_set():
                    break
                progress.undo()
                spool.write(pack(Reject(death.reason, death.detail), progress.member, ""))
                if not progress.began:
                    return  # not even one more document: the rest of the file cannot be reached
                start = progress.number + 1
        raise Cancelled("reading was stopped")

    def stop(self) -> None:
        """End the child from another thread; `read` raises `Cancelled`."""
        self._closing.set()
        process = self._process
        if process is not None:
            _kill(process)

    def _ask(self, path: Path, name: str, start: int) -> None:
        process = self._process or self._ready()
        assert process.stdin is not None
        self._late, self._deadline = False, time.monotonic() + self._reading.limits.seconds
        request = json.dumps({"path": str(path), "name": name, "start": start}) + "\n"
        try:
            process.stdin.write(request.encode())
            process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None

    def _take(self, progress: _Progress) -> None:
        """Copy frames until the file ends."""
        while True:
            kind, length = FRAME.unpack(self._bytes(FRAME.size))
            self._deadline = time.monotonic() + self._reading.limits.seconds
            if kind == END:
                self._deadline = None
                return
            if kind == PIECES:
                while length:
                    part = self._bytes(min(length, COPY_BYTES))
                    progress.spool.write(part)
                    length -= len(part)
            elif kind == BEGIN:
                begun = json.loads(self._bytes(length))
                progress.begin(begun["number"], begun["member"])
            elif kind == FINISHED:
                progress.finish()

    def _bytes(self, count: int) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        found = self._process.stdout.read(count)
        if len(found) < count:
            raise self._death()
        return found

    def _death(self) -> _Died:
        assert self._process is not None
        code = self._process.wait()
        seconds = self._reading.limits.seconds
        if self._late:
            return _Died("timeout", f"no row came for {seconds:g} seconds")
        said = last_lines(self._log)
        if "memory allocation" in said or "MemoryError" in said or "bad_alloc" in said:
            return _Died("out_of_memory", "limits.memory_bytes is too low for it")
        return _Died("reader_died", f"the process that read it ended with code {code}")

    def _ready(self) -> subprocess.Popen[bytes]:
        """Start a child and wait until it can be asked; that it cannot start is no fault of the file's."""
        process = self._start()
        self._late, self._deadline = False, time.monotonic() + START_S
        try:
            self._bytes(FRAME.size)
        except _Died as death:
            if self._closing.is_set():
                raise
            raise EnvironmentProblem(
                f"the process that reads files does not start: {last_lines(self._log) or death.detail}",
                hint="Raise limits.memory_bytes if it is low.",
            ) from None
        return process

    def _start(self) -> subprocess.Popen[bytes]:
        for left in self._scratch.glob("*") if self._scratch.exists() else ():
            left.unlink()
        self._scratch.mkdir(exist_ok=True)
        env = {**{name: os.environ[name] for name in PASSED if name in os.environ}, **SINGLE}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "catena.data.formats.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                start_new_session=True,
            )
        job = {"reading": self._reading.model_dump(mode="json"), "scratch": str(self._scratch)}
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        return self._process

    def _watch(self) -> None:
        while not self._closing.wait(WATCH_EVERY_S):
            deadline, process = self._deadline, self._process
            if deadline is not None and process is not None and time.monotonic() > deadline:
                self._late, self._deadline = True, None
                _kill(process)

    def _end(self) -> None:
        process, self._process, self._deadline = self._process, None, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        try:
            process.wait(GRACE_S if self._closing.is_set() else 0)
        except subprocess.TimeoutExpired:
            _kill(process)
            process.wait()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


class _Progress:
    """Where in the spool the document that is being read begins."""

    def __init__(self, spool: BinaryIO, start: int) -> None:
        self.spool, self.number, self.member = spool, start - 1, ""
        self.began = False
        self._sound = spool.tell()

    def begin(self, number: int, member: str) -> None:
        """A document begins."""
        self.number, self.member, self.began = number, member, True
        self._sound = self.spool.tell()

    def finish(self) -> None:
        """The document is whole, and stays whatever happens next."""
        self._sound = self.spool.tell()

    def undo(self) -> None:
        """Take back what an unfinished document gave."""
        self.spool.seek(self._sound)
        self.spool.truncate()
