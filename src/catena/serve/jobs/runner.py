"""Works jobs off: takes one, asks for it like anybody else, writes each result once. Many gateways may do so at once.

    claim (lease) --> check lines --> for each line without a result: wait for calm -> ask -> journal --> files --> done
         ^                                                              |
         '-- beat: the lease goes on, or the job is another's now <-----'

A kill loses at most what was asked and not yet written; that is asked again, and there is one result all the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any

import orjson
from starlette.types import ASGIApp

from catena.core.errors import CatenaError, IntegrityError
from catena.serve.errors import UNEXPECTED
from catena.serve.inner import Answered, Asked, ask
from catena.serve.jobs import background
from catena.serve.jobs.batches import usage
from catena.serve.jobs.config import JobsConfig
from catena.serve.jobs.files import Files
from catena.serve.jobs.journal import Journal
from catena.serve.jobs.lines import Line, answered, check, failed, parsed, whole
from catena.serve.jobs.queue import Lost, Queue
from catena.serve.jobs.tables import Job, Result
from catena.serve.jobs.who import behalf
from catena.serve.wire import error_body

logger = logging.getLogger(__name__)
BUSY = (429, 503)
LONGEST_PAUSE_S = 30.0
CALM_S = 0.05
SWEEP_S = 60.0
READ_AHEAD = 64


class Runner:
    """The jobs that one gateway works on."""

    def __init__(
        self, queue: Queue, files: Files, config: JobsConfig, app: ASGIApp, busy: Callable[[str], bool]
    ) -> None:
        self._queue, self._files, self._config, self._app, self._busy = queue, files, config, app, busy
        self.owner = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._slots = asyncio.Semaphore(config.concurrency)
        self._running: dict[str, tuple[Job, asyncio.Task[None]]] = {}
        self._aside: set[asyncio.Task[None]] = set()
        self._awake = asyncio.Event()
        self._ended: set[str] = set()
        """Jobs that were cancelled or that others have: nothing more of them is asked."""
        self._problem = ""

    def wake(self, id: str) -> None:
        """Look for new jobs now, and how this one stands."""
        self._awake.set()
        if id in self._running:
            self._run(self._beat())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    async def run(self) -> None:
        """Work until cancelled; then what was taken is given back."""
        self._run(self._again(self._config.lease_s / 3, self._beat))
        self._run(self._again(SWEEP_S, self._sweep))
        self._run(self._seal())
        try:
            while True:
                self._awake.clear()
                if not await self._claim():
                    try:
                        async with asyncio.timeout(self._config.poll_s):
                            await self._awake.wait()
                    except TimeoutError:
                        pass
        finally:
            tasks = [*self._aside, *(task for _, task in self._running.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            try:
                await asyncio.to_thread(self._queue.release, self.owner)
            except CatenaError:
                pass  # the database is away; the leases end by themselves

    async def _again(self, seconds: float, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except Exception:  # or nobody would do it any more: a lease would end, old files would stay
                logger.exception("work beside the jobs failed; it is tried again")

    async def _claim(self) -> bool:
        batches = [job for job, _ in self._running.values() if job.kind == "batch"]
        if len(self._running) - len(batches) >= 2 * self._config.concurrency:
            return False
        busy, room = {job.tenant for job in batches}, len(batches) < self._config.batches
        try:
            take = asyncio.to_thread(self._queue.claim, self.owner, self._config.lease_s, busy, batches=room)
            job = await take
        except CatenaError as error:
            if error.message != self._problem:
                logger.warning("jobs wait: %s", error)
            self._problem = error.message
            return False
        self._problem = ""
        if job is None:
            return False
        task = asyncio.create_task(self._work(job))
        self._running[job.id] = job, task
        return True

    async def _beat(self) -> None:
        """Hold what is worked on; what failed is not, so its lease ends and it is tried again."""
        held = dict(self._running)
        try:
            mine = await asyncio.to_thread(self._queue.beat, self.owner, self._config.lease_s, list(held))
        except CatenaError:
            return
        for id, work in held.items():
            if self._running.get(id) is not work:  # it ended while the database was asked
                continue
            job, task = work
            if id not in mine:
                self._ended.add(id)
                if job.kind == "response":
                    task.cancel()
            elif mine[id] == "cancelling":
                self._ended.add(id)

    async def _sweep(self) -> None:
        try:
            await asyncio.to_thread(self._files.sweep)
            for id in await asyncio.to_thread(self._queue.old, self._config.keep_s):
                await asyncio.to_thread(self._queue.remove, id)
        except CatenaError as error:
            logger.warning("old jobs and files stay for now: %s", error)

    async def _seal(self) -> None:
        """Seal what was kept in clear before there was a sealer; then forget what is erased, whenever that happens."""
        seen: Any = None
        sealed = False
        while self._files.seals.on:
            now = self._files.seals.generation()
            try:
                if not sealed:
                    texts, files = await asyncio.to_thread(self._queue.seal), await asyncio.to_thread(self._files.seal)
                    if texts or files:
                        logger.warning("%d texts and %d files of jobs lay in clear and are sealed now", texts, files)
                    sealed = True
                if now != seen:
                    await asyncio.to_thread(self._files.remove_erased)
                    for id in await asyncio.to_thread(self._queue.erased_jobs):
                        await asyncio.to_thread(self._queue.remove, id)
                    seen = now
            except (CatenaError, OSError) as error:
                logger.warning("what is kept of jobs is not sealed, or not forgotten, yet: %s", error)
            await asyncio.sleep(self._config.poll_s)

    # -- one job -----------------------------------------------------------------------------------------------------

    async def _work(self, job: Job) -> None:
        try:
            await (self._response(job) if job.kind == "response" else self._batch(job))
        except Lost as error:
            logger.info("%s: %s", job.id, error)
        except CatenaError as error:
            logger.warning("%s waits: %s", job.id, error)
        except Exception:
            logger.exception("%s could not be worked on; it is tried again when its lease ends", job.id)
        finally:
            self._running.pop(job.id, None)
            self._ended.discard(job.id)
            self._awake.set()

    async def _response(self, job: Job) -> None:
        def begun(found: Job) -> dict[str, Any] | None:
            return {"status": "in_progress"} if found.status == "queued" else None

        await asyncio.to_thread(self._queue.change, job.id, begun, owner=self.owner)
        answer = await self._answer(job, Line(0, job.id, orjson.loads(job.input)))
        if answer is None:
            error = {"code": "expired", "message": "no model had time for it before it expired"}
            status, body = "failed", job.body | {"error": error}
        else:
            status, body = background.body_of(job, answer)

        def done(found: Job) -> dict[str, Any] | None:
            return {"status": status, "body": body} if found.active else None

        await asyncio.to_thread(self._queue.change, job.id, done, owner=self.owner)

    async def _batch(self, job: Job) -> None:
        source = await asyncio.to_thread(self._queue.file, job.input, job.tenant, over=True)
        if source is None:
            await self._fail(job, [whole("file_not_found", f"the file {job.input} is not there any more")])
            return

        def lines() -> Iterator[bytes]:
            return self._files.lines(source)

        checked = await self._checked(job, lines) if job.status == "validating" else job
        if checked is not None:
            if checked.status == "cancelling":
                self._ended.add(job.id)
            await self._lines(checked, lines)
            await self._finish(checked, lines)

    async def _checked(self, job: Job, lines: Callable[[], Iterator[bytes]]) -> Job | None:
        """Check a batch's lines before anything is asked; None where the batch failed by them."""
        try:
            found = await asyncio.to_thread(lambda: check(lines(), job.endpoint, self._config.max_requests))
        except (IntegrityError, OSError) as error:
            found = [whole("file_damaged", f"the file cannot be read: {error}")], 0, ""
        errors, total, model = found
        if errors:
            await self._fail(job, errors)
            return None

        def begun(found: Job) -> dict[str, Any]:
            body = found.body | {"total": total, "model": model, "in_progress_at": int(time.time())}
            return {"status": "in_progress" if found.status == "validating" else found.status, "body": body}

        return await asyncio.to_thread(self._queue.change, job.id, begun, owner=self.owner)

    async def _fail(self, job: Job, errors: list[dict[str, Any]]) -> None:
        def told(found: Job) -> dict[str, Any]:
            body = found.body | {"errors": errors, "counts": (0, 0), "failed_at": int(time.time())}
            return {"status": "failed", "body": body}

        await asyncio.to_thread(self._queue.change, job.id, told, owner=self.owner)

    def _over(self, job: Job) -> bool:
        return job.id in self._ended or time.time() >= job.expires

    async def _lines(self, job: Job, lines: Callable[[], Iterator[bytes]]) -> None:
        """Ask for every line that has no result."""
        done = await asyncio.to_thread(self._queue.done, job.id)
        journal = Journal(lambda found: self._queue.add_results(job.id, self.owner, found))
        source, turn = _read(lines), asyncio.Lock()

        async def take() -> Line | None:
            async with turn:
                while (line := await anext(source, None)) is not None and line.number in done:
                    pass
                return line

        async def worker() -> None:
            while not self._over(job) and (line := await take()) is not None:
                answer = await self._answer(job, line)
                if answer is not None:
                    await journal.put(answered(line, f"{job.id}-{line.number}", answer))

        workers = [asyncio.create_task(worker()) for _ in range(self._config.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for one in workers:
                one.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await source.aclose()
        await journal.close()

    async def _answer(self, job: Job, line: Line) -> Answered | None:
        """Return the answer to a line; None where the job ended before there was one."""
        asked = Asked(
            job.endpoint,
            orjson.dumps(line.body),
            headers=((b"x-request-id", f"{job.id}-{line.number}".encode()),),
            behalf=behalf(job.who, job.tenant),
        )
        tries, pause = 0, 0.2
        while not self._over(job):
            async with self._slots:
                await self._calm(line.model, job)
                if self._over(job):
                    return None
                answer = await self._asked(asked)
            if answer.status < 500 and answer.status not in BUSY:
                return answer
            tries += answer.status not in BUSY
            if tries >= self._config.attempts:
                return answer
            told = answer.headers.get(b"retry-after", b"")
            wanted = max(pause, float(told) if told.isdigit() else 0.0)
            await self._sleep(min(wanted, LONGEST_PAUSE_S), job)
            pause = min(pause * 2, LONGEST_PAUSE_S)
        return None

    async def _asked(self, asked: Asked) -> Answered:
        try:
            return await ask(self._app, asked)
        except Exception:
            logger.exception("a request of a job failed")
            return Answered(500, {}, orjson.dumps(error_body(UNEXPECTED, "server_error")))

    async def _calm(self, model: str, job: Job) -> None:
        until = time.monotonic() + self._config.patience_s
        while self._busy(model) and time.monotonic() < until and not self._over(job):
            await asyncio.sleep(CALM_S)

    async def _sleep(self, seconds: float, job: Job) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._over(job):
            await asyncio.sleep(min(left, 0.5))

    async def _finish(self, job: Job, lines: Callable[[], Iterator[bytes]]) -> None:
        """Make the two files of a batch and end it."""

        done = await asyncio.to_thread(self._queue.done, job.id)
        short = len(done) < job.body["total"]

        def closing(found: Job) -> dict[str, Any] | None:
            if short or found.status != "in_progress":
                return None
            return {"status": "finalizing", "body": found.body | {"finalizing_at": int(time.time())}}

        held = await asyncio.to_thread(self._queue.change, job.id, closing, owner=self.owner)
        status = "cancelled" if held and held.status == "cancelling" else "expired" if short else "completed"
        if status == "expired":
            if time.time() < job.expires:
                raise Lost("not every line has a result")
            message = "this request could not be executed before the completion window expired"
            missing = [
                failed(line, "batch_expired", message)
                for line in await asyncio.to_thread(lambda: list(parsed(lines())))
                if line.number not in done
            ]
            await self._store(job, missing)
        await asyncio.to_thread(self._end, job, status)

    async def _store(self, job: Job, found: list[Result]) -> None:
        for at in range(0, len(found), 500):
            await asyncio.to_thread(self._queue.add_results, job.id, self.owner, found[at : at + 500])

    def _end(self, job: Job, status: str) -> None:
        good, bad, prompt, written = self._queue.counts(job.id)
        keep_s = job.body["keep_s"] or self._config.keep_s
        like = self._queue.kept_body(job.id)
        names: dict[str, Any] = {"counts": (good, bad), "usage": usage(prompt, written)}
        with self._files.locked():
            made = []
            for key, wanted, count in (("output", True, good), ("error", False, bad)):
                if not count:
                    continue
                lines = (f"{line}\n".encode() for line in self._queue.lines_of(job.id, good=wanted))
                whose = (job.tenant, f"{job.id}_{key}.jsonl")
                made.append(self._files.batch_output(lines, whose, keep_s, like))
                names[f"{key}_file_id"] = made[-1].id

            def told(found: Job) -> dict[str, Any]:
                return {"status": status, "body": found.body | names | {f"{status}_at": int(time.time())}}

            self._queue.finish(job.id, self.owner, told, made)


async def _read(lines: Callable[[], Iterator[bytes]]) -> AsyncGenerator[Line, None]:
    """Read a file's lines in a thread, some at a time."""
    found = parsed(lines())

    def some() -> list[Line]:
        return [line for _, line in zip(range(READ_AHEAD), found, strict=False)]

    while batch := await asyncio.to_thread(some):
        for line in batch:
            yield line
