"""Jobs and their results in a database: each method is one transaction, safe for many gateways and for kills.

Words (what is asked, what was answered, what people see of a job) are sealed under their tenant's key, where there is
a sealer (`sealing.py`). What was erased is as if it were not there.

A job belongs to who holds its lease. Whoever is silent for longer loses it; what they still write is refused, and a
result that is there already stays (`results` has the line as its key).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Row, Select, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from catena.core.errors import CatenaError
from catena.govern.seal import Erased
from catena.hub.index import Index, make_engine
from catena.serve.jobs.sealing import HEAD_TEXT, START, Seals
from catena.serve.jobs.tables import ACTIVE, FileRow, Job, Result, files, jobs, metadata, results

COLUMNS = [jobs.c[name] for name in Job.__slots__]
AT_ONCE = 500
CLEANED = 1
"""`user_version` of a SQLite file that was written anew since its words are sealed."""
CLOSING_S = 30.0
"""How long a close waits for transactions under way."""


class Lost(CatenaError):
    """The job is another gateway's by now, or it was cancelled."""


class Queue:
    """The queue of one or many gateways."""

    def __init__(self, url: str | URL, seals: Seals | None = None) -> None:
        self._index, self._seals = Index(make_engine(url)), seals or Seals()
        self._opened = False
        self._idle = threading.Condition()
        self._users = 0

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        self.open()
        with self._in_use(), self._index.translated(), self._index.engine.begin() as connection:
            yield connection

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        self.open()
        with self._in_use(), self._index.translated(), self._index.engine.connect() as opened:
            yield opened.execution_options(reads=True)

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._idle:
            self._users += 1
        try:
            yield
        finally:
            with self._idle:
                self._users -= 1
                self._idle.notify_all()

    def open(self) -> None:
        """Make the tables where there are none."""
        if not self._opened:
            with self._in_use(), self._index.translated(), self._index.engine.begin() as connection:
                if self._index.engine.dialect.name == "postgresql":  # two gateways may start at once
                    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7274652907)")
                metadata.create_all(connection)
            self._opened = True

    def close(self) -> None:
        """Give the connections back, when the threads that are at work have ended theirs."""
        with self._idle:
            self._idle.wait_for(lambda: not self._users, CLOSING_S)
        self._index.engine.dispose()

    # -- files -------------------------------------------------------------------------------------------------------

    def add_file(self, row: FileRow) -> None:
        """Note a file."""
        with self._write() as connection:
            connection.execute(insert(files).values(_values(row)))

    def file(self, id: str, tenant: str, *, over: bool = False) -> FileRow | None:
        """Return a tenant's file; with `over` also one whose time is over, as long as a job needs it."""
        query = select(files).where(files.c.id == id, files.c.tenant == tenant)
        with self._read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None or (_expired(row) and not over) else FileRow(*row)

    def files_of(self, tenant: str, purpose: str, page: tuple[str, int, bool]) -> list[FileRow]:
        """Return a page (after an id, at most so many, oldest first) of a tenant's files."""
        after, limit, forward = page
        query = select(files).where(files.c.tenant == tenant)
        query = query.where((files.c.expires.is_(None)) | (files.c.expires > time.time()))
        if purpose:
            query = query.where(files.c.purpose == purpose)
        with self._read() as connection:
            return [FileRow(*row) for row in connection.execute(_page(query, files, after, limit, forward))]

    def used(self, tenant: str) -> int:
        """Return how many bytes a tenant's files have."""
        with self._read() as connection:
            query = select(func.coalesce(func.sum(files.c.bytes), 0)).where(files.c.tenant == tenant)
            return int(connection.execute(query).scalar_one())

    def remove_file(self, id: str) -> bool:
        """Forget a file; tells whether nobody else has the same bytes."""
        with self._write() as connection:
            gone = delete(files).where(files.c.id == id).returning(files.c.sha256)
            sha256 = connection.execute(gone).scalar_one_or_none()
            return not connection.execute(select(files.c.id).where(files.c.sha256 == sha256).limit(1)).first()

    def has_bytes(self, sha256: str) -> bool:
        """Tell whether any file has these bytes."""
        with self._read() as connection:
            return connection.execute(select(files.c.id).where(files.c.sha256 == sha256).limit(1)).first() is not None

    def needed(self, file: str) -> bool:
        """Tell whether a job that is not finished reads a file."""
        query = select(jobs.c.id).where(jobs.c.kind == "batch", jobs.c.input == file, jobs.c.status.in_(ACTIVE))
        with self._read() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def expired_files(self) -> list[FileRow]:
        """Return files whose time is over."""
        with self._read() as connection:
            return [FileRow(*row) for row in connection.execute(select(files).where(files.c.expires <= time.time()))]

    # -- jobs --------------------------------------------------------------------------------------------------------

    def add(self, job: Job, most: int) -> bool:
        """Put a job in; tells whether its tenant has fewer than `most` of the kind that are not finished."""
        same = (jobs.c.tenant == job.tenant, jobs.c.kind == job.kind, jobs.c.status.in_(ACTIVE))
        with self._write() as connection:
            if connection.execute(select(func.count()).select_from(jobs).where(*same)).scalar_one() >= most:
                return False
            connection.execute(insert(jobs).values(self._sealed(job)))
            return True

    def get(self, id: str, tenant: str | None = None, kind: str = "batch") -> Job | None:
        """Return a job, of a tenant only where one is named."""
        query = select(*COLUMNS).where(jobs.c.id == id, jobs.c.kind == kind)
        if tenant is not None:
            query = query.where(jobs.c.tenant == tenant)
        with self._read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else self._job(row)

    def jobs_of(self, tenant: str, kind: str, after: str, limit: int) -> list[Job]:
        """Return a page of a tenant's jobs, newest first."""
        query = select(*COLUMNS).where(jobs.c.tenant == tenant, jobs.c.kind == kind)
        with self._read() as connection:
            found = map(self._job, connection.execute(_page(query, jobs, after, limit, False)))
            return [job for job in found if job is not None]

    def change(
        self, id: str, change: Callable[[Job], Mapping[str, Any] | None], *, owner: str | None = None
    ) -> Job | None:
        """Change a job by what `change` says of it (columns; None: nothing); returns it as it is then.

        With `owner` only that one's; raises `Lost` otherwise.
        """
        with self._write() as connection:
            job, body = self._locked(connection, id)
            if owner is not None and (job is None or job.owner != owner):
                raise Lost("the job is another's by now")
            wanted = None if job is None else change(job)
            if job is None or wanted is None:
                return job
            values = dict(wanted)
            if "body" in wanted:
                values["body"] = self._seals.put(json.dumps(wanted["body"]), job.tenant, _about(id), like=body)
            if wanted.get("status", job.status) not in ACTIVE:
                values |= {"owner": "", "lease": 0.0, "ended": time.time()}
            connection.execute(update(jobs).where(jobs.c.id == id).values(values))
            return self._locked(connection, id)[0]

    def remove(self, id: str) -> None:
        """Forget a job."""
        with self._write() as connection:
            connection.execute(delete(results).where(results.c.job == id))
            connection.execute(delete(jobs).where(jobs.c.id == id))

    def claim(self, owner: str, lease_s: float, busy: Collection[str], *, batches: bool) -> Job | None:
        """Take a job that nobody holds: responses first, then batches of tenants that are not `busy`, oldest first."""
        moment = time.time()
        query = select(*COLUMNS).where(jobs.c.status.in_(ACTIVE), jobs.c.lease < moment)
        if not batches:
            query = query.where(jobs.c.kind == "response")
        order = (jobs.c.kind.desc(), jobs.c.tenant.in_(list(busy)), jobs.c.created)
        query = query.order_by(*order).limit(1)
        with self._read() as connection:  # most looks find nothing, and need not write
            if connection.execute(query).first() is None:
                return None
        with self._write() as connection:
            row = connection.execute(query.with_for_update(skip_locked=True)).one_or_none()
            if row is None:
                return None
            values = {"owner": owner, "lease": moment + lease_s}
            connection.execute(update(jobs).where(jobs.c.id == row.id).values(values))
            job = self._locked(connection, row.id)[0]
        if job is None:  # erased since the last look
            self.remove(row.id)
        return job

    def beat(self, owner: str, lease_s: float, held: Collection[str]) -> dict[str, str]:
        """Hold these jobs for longer; returns those that are one's own still, with their states."""
        mine = (jobs.c.owner == owner, jobs.c.id.in_(held))
        with self._write() as connection:
            active = update(jobs).where(*mine, jobs.c.status.in_(ACTIVE))
            connection.execute(active.values(lease=time.time() + lease_s))
            rows = connection.execute(select(jobs.c.id, jobs.c.status).where(*mine))
            return {row.id: row.status for row in rows}

    def release(self, owner: str) -> None:
        """Let others have one's jobs at once."""
        with self._write() as connection:
            connection.execute(update(jobs).where(jobs.c.owner == owner).values(owner="", lease=0.0))

    def old(self, keep_s: float) -> Sequence[str]:
        """Return jobs that were finished so long ago."""
        with self._read() as connection:
            return connection.execute(select(jobs.c.id).where(jobs.c.ended < time.time() - keep_s)).scalars().all()

    # -- results -----------------------------------------------------------------------------------------------------

    def add_results(self, job: str, owner: str, found: Sequence[Result]) -> None:
        """Write results; those of lines that have one already are dropped. Raises `Lost` for who has no lease."""
        dialect: Any = postgresql if self._index.engine.dialect.name == "postgresql" else sqlite
        with self._write() as connection:
            held, body = self._locked(connection, job)
            if held is None or held.owner != owner:
                raise Lost("the job is another's by now")
            rows = [self._kept(one, held, body) for one in found]
            connection.execute(dialect.insert(results).on_conflict_do_nothing(), rows)

    def done(self, job: str) -> set[int]:
        """Return the lines that have a result."""
        with self._read() as connection:
            return set(connection.execute(select(results.c.line).where(results.c.job == job)).scalars())

    def counts(self, job: str) -> tuple[int, int, int, int]:
        """Return how many results are good, how many bad, and tokens of prompts and answers."""
        sums = (func.coalesce(func.sum(results.c[name]), 0) for name in ("prompt", "written"))
        query = select(results.c.good, func.count(), *sums).where(results.c.job == job).group_by(results.c.good)
        with self._read() as connection:
            found = {bool(row[0]): row for row in connection.execute(query)}
        total = [sum(int(row[column]) for row in found.values()) for column in (2, 3)]
        return (*(found[good][1] if good in found else 0 for good in (True, False)), total[0], total[1])  # type: ignore[return-value]

    def lines_of(self, job: str, *, good: bool) -> Iterator[str]:
        """Yield what is to stand in a batch's file, in the order of the lines."""
        last = -1
        while True:
            query = select(results.c.line, results.c.body).where(
                results.c.job == job, results.c.good == good, results.c.line > last
            )
            with self._read() as connection:
                rows = connection.execute(query.order_by(results.c.line).limit(AT_ONCE)).all()
            for row in rows:
                yield self._seals.get(row.body, _about(job, row.line))
            if len(rows) < AT_ONCE:
                return
            last = rows[-1].line

    def finish(self, id: str, owner: str, change: Callable[[Job], Mapping[str, Any]], made: Sequence[FileRow]) -> Job:
        """End a batch with the files of its results, which are forgotten as rows. Raises `Lost`."""
        with self._write() as connection:
            job, body = self._locked(connection, id)
            if job is None or job.owner != owner:
                raise Lost("the job is another's by now")
            wanted = change(job)
            for row in made:
                connection.execute(insert(files).values(_values(row)))
            told = self._seals.put(json.dumps(wanted["body"]), job.tenant, _about(id), like=body)
            values = {**wanted, "body": told, "owner": "", "lease": 0.0, "ended": time.time()}
            connection.execute(update(jobs).where(jobs.c.id == id).values(values))
            connection.execute(delete(results).where(results.c.job == id))
            ended = self._locked(connection, id)[0]
        if ended is None:
            raise Lost("the job was erased meanwhile")
        return ended

    # -- words -------------------------------------------------------------------------------------------------------

    def kept_body(self, id: str) -> str:
        """Return what people see of a job as it lies there: its key is that of what belongs to it."""
        with self._read() as connection:
            return connection.execute(select(jobs.c.body).where(jobs.c.id == id)).scalar_one_or_none() or ""

    def erased_jobs(self) -> list[str]:
        """Return jobs whose words nobody can read any more."""
        with self._read() as connection:
            rows = connection.execute(select(jobs.c.id, func.substr(jobs.c.body, 1, HEAD_TEXT).label("head"))).all()
        return [row.id for row in rows if self._seals.erased(row.head)]

    def all_files(self) -> list[FileRow]:
        """Return every file."""
        with self._read() as connection:
            return [FileRow(*row) for row in connection.execute(select(files))]

    def move_file(self, id: str, sha256: str) -> None:
        """Note that a file's bytes lie under another digest now."""
        with self._write() as connection:
            connection.execute(update(files).where(files.c.id == id).values(sha256=sha256))

    def seal(self) -> int:
        """Seal what was written in clear before; returns how many texts. Others wait for no longer than a row."""
        count = 0
        with self._read() as connection:
            found = [(row.id, row.tenant) for row in connection.execute(select(jobs.c.id, jobs.c.tenant))]
        for id, tenant in found if self._seals.on else ():
            with self._write() as connection:
                row = connection.execute(select(*COLUMNS).where(jobs.c.id == id).with_for_update()).one_or_none()
                if row is None:
                    continue
                columns = ("body", "input") if row.kind == "response" else ("body",)
                clear = {name: text for name in columns if not (text := getattr(row, name)).startswith(START)}
                if clear:
                    values = {name: self._seals.put(text, tenant, _about(id)) for name, text in clear.items()}
                    connection.execute(update(jobs).where(jobs.c.id == id).values(values))
                mine = results.c.job == id
                lines = select(results.c.line, results.c.body).where(mine, results.c.body.not_like(f"{START}%"))
                old = connection.execute(lines).all()
                for one in old:
                    body = self._seals.put(one.body, tenant, _about(id, one.line))
                    connection.execute(update(results).where(mine, results.c.line == one.line).values(body=body))
                count += len(clear) + len(old)
        if self._seals.on and self._index.engine.dialect.name == "sqlite":
            self._clean(bool(count))
        return count

    def _clean(self, now: bool) -> None:
        """Write a SQLite file anew, once or `now`: or the old words stay in pages that are free."""
        with self._in_use(), self._index.translated(), closing(self._index.engine.raw_connection()) as connection:
            cursor = connection.cursor()
            if now or cursor.execute("PRAGMA user_version").fetchone()[0] < CLEANED:
                cursor.execute("VACUUM")
                cursor.execute(f"PRAGMA user_version={CLEANED}")
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _locked(self, connection: Connection, id: str) -> tuple[Job | None, str]:
        """Return a job that nobody else changes meanwhile, and its body as it is kept."""
        row = connection.execute(select(*COLUMNS).where(jobs.c.id == id).with_for_update()).one_or_none()
        return (None, "") if row is None else (self._job(row), row.body)

    def _job(self, row: Row[Any]) -> Job | None:
        """Return a job; None for one that was erased."""
        values, about = dict(row._mapping), _about(row.id)
        try:
            body, asked = self._seals.get(row.body, about), self._seals.get(row.input, about)
        except Erased:
            return None
        return Job(**values | {"who": json.loads(row.who), "body": json.loads(body), "input": asked})

    def _sealed(self, job: Job) -> dict[str, Any]:
        values, about = _values(job) | {"lease": 0.0}, _about(job.id)
        for name in ("body", "input") if job.kind == "response" else ("body",):
            values[name] = self._seals.put(values[name], job.tenant, about)
        return values

    def _kept(self, result: Result, job: Job, like: str) -> dict[str, Any]:
        body = self._seals.put(result.body, job.tenant, _about(job.id, result.line), like=like)
        return _values(result) | {"job": job.id, "body": body}


def _about(job: str, line: int | None = None) -> str:
    """Return what a sealed text is bound to, so that none passes for another."""
    return f"job {job}" if line is None else f"job {job} line {line}"


def _page(query: Select[Any], table: Any, after: str, limit: int, forward: bool) -> Select[Any]:
    """Return a query for what follows a row, by time and then by id."""
    if after:
        at = select(table.c.created).where(table.c.id == after).scalar_subquery()
        column, id = table.c.created, table.c.id
        beyond = (column > at, id > after) if forward else (column < at, id < after)
        query = query.where(beyond[0] | ((column == at) & beyond[1]))
    order = (table.c.created, table.c.id) if forward else (table.c.created.desc(), table.c.id.desc())
    return query.order_by(*order).limit(limit)


def _expired(row: Row[Any]) -> bool:
    return row.expires is not None and row.expires <= time.time()


def _values(row: FileRow | Job | Result) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in row.__slots__}
    return {name: json.dumps(value) if isinstance(value, dict) else value for name, value in values.items()}
