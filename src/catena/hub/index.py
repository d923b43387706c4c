"""The index: artifacts, names, tags and runs in SQLite (write-ahead log) or PostgreSQL. No bytes of artifacts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, OperationalError

from catena.core.errors import EnvironmentProblem, IntegrityError, MissingExtra, environment_problem
from catena.core.types import ARTIFACT, Artifact, Run
from catena.hub.schema import artifacts, names, run_inputs, runs, tag_moves


@dataclass(frozen=True, slots=True)
class NameRow:
    """One version of a name."""

    name: str
    version: int
    digest: str
    created: datetime


@dataclass(frozen=True, slots=True)
class TagMove:
    """One move of a tag; `digest` is None where it was removed."""

    name: str
    tag: str
    digest: str | None
    moved: datetime
    by: str


def make_engine(url: str) -> Engine:
    """Open a database by SQLAlchemy URL; SQLite gets the write-ahead log and waits up to 30 s for its turn."""
    try:
        engine = create_engine(url, connect_args={"timeout": 30} if url.startswith("sqlite") else {})
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"the package {error.name!r} is not installed", hint="Install it with: pip install 'catena-ai[postgres]'"
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _on_sqlite_connect)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _on_sqlite_connect(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late to keep two writers apart
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    reads = connection.get_execution_options().get("reads")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def now() -> datetime:
    """Return the time in UTC, to the millisecond (what both databases keep)."""
    stamp = datetime.now(UTC)
    return stamp.replace(microsecond=stamp.microsecond // 1000 * 1000)


class Index:
    """Questions to and changes of the database. Each method is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._insert: Any = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self.translated(), self.engine.connect().execution_options(reads=True) as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with self.translated(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn the database's refusals into our errors."""
        try:
            yield
        except DBAPIError as error:
            known = environment_problem(error, self.engine.url.database or "the index")
            if "not a database" in str(error.orig) or "malformed" in str(error.orig):
                raise IntegrityError(
                    f"the index {self.engine.url.database} is damaged: {error.orig}",
                    hint="Restore the file from a copy; the stored datasets and models themselves are untouched.",
                ) from error
            if known is None and isinstance(error, OperationalError):
                known = EnvironmentProblem(
                    f"the index cannot be used: {error.orig}", hint="`catena doctor` checks the database."
                )
            if known is None:
                raise
            raise known from error

    # -- artifacts ---------------------------------------------------------------------------------------------------

    def add_artifact(self, artifact: Artifact) -> Artifact:
        """Store an artifact's record, or return the one already there under the same digest."""
        with self._write() as connection:
            return self._add_artifact(connection, artifact)

    def _add_artifact(self, connection: Connection, artifact: Artifact) -> Artifact:
        values = {
            "digest": artifact.digest,
            "kind": artifact.kind,
            "created": artifact.created or now(),
            "body": artifact.model_dump_json(),
        }
        connection.execute(self._insert(artifacts).values(values).on_conflict_do_nothing())
        body = connection.execute(select(artifacts.c.body).where(artifacts.c.digest == artifact.digest)).scalar_one()
        stored = ARTIFACT.validate_json(body)
        if stored.files != artifact.files:  # a table that was lost and made again: the same rows in new files
            stored = stored.model_copy(update={"files": artifact.files})
            change = update(artifacts).where(artifacts.c.digest == artifact.digest)
            connection.execute(change.values(body=stored.model_dump_json()))
        return stored

    def artifact(self, digest: str) -> Artifact | None:
        """Return the artifact with this full digest."""
        with self._read() as connection:
            body = connection.execute(select(artifacts.c.body).where(artifacts.c.digest == digest)).scalar()
        return None if body is None else ARTIFACT.validate_json(body)

    def digests_starting(self, prefix: str) -> list[str]:
        """Return up to ten digests that begin so."""
        query = (
            select(artifacts.c.digest)
            .where(artifacts.c.digest.like(f"{prefix}%"))
            .order_by(artifacts.c.digest)
            .limit(10)
        )
        with self._read() as connection:
            return list(connection.execute(query).scalars())

    def all_artifacts(self) -> list[Artifact]:
        """Return every artifact, oldest first."""
        with self._read() as connection:
            bodies = list(connection.execute(select(artifacts.c.body).order_by(artifacts.c.created)).scalars())
        return [ARTIFACT.validate_json(body) for body in bodies]

    def remove_artifact(self, digest: str) -> None:
        """Forget an artifact: its record, its names, its tags, and it as the output of runs (which then run again)."""
        with self._write() as connection:
            connection.execute(update(runs).where(runs.c.output == digest).values(output=None, status="interrupted"))
            connection.execute(names.delete().where(names.c.digest == digest))
            connection.execute(tag_moves.delete().where(tag_moves.c.digest == digest))
            connection.execute(artifacts.delete().where(artifacts.c.digest == digest))

    # -- names and tags ----------------------------------------------------------------------------------------------

    def add_name(self, name: str, digest: str) -> int:
        """Make `digest` the newest version of a name, unless it is already; returns the version."""
        with self._write() as connection:
            return self._add_name(connection, name, digest)

    def _add_name(self, connection: Connection, name: str, digest: str) -> int:
        if self.engine.dialect.name == "postgresql":  # SQLite has one writer at a time already
            connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(name))))
        newest = connection.execute(
            select(names.c.version, names.c.digest)
            .where(names.c.name == name)
            .order_by(names.c.version.desc())
            .limit(1)
        ).first()
        if newest is not None and newest.digest == digest:
            return int(newest.version)
        version = 1 if newest is None else int(newest.version) + 1
        connection.execute(insert(names).values(name=name, version=version, digest=digest, created=now()))
        return version

    def versions(self, name: str | None = None, digest: str | None = None) -> list[NameRow]:
        """Return versions, oldest first, of a name, of an artifact, or of everything."""
        query = select(names).order_by(names.c.name, names.c.version)
        if name is not None:
            query = query.where(names.c.name == name)
        if digest is not None:
            query = query.where(names.c.digest == digest)
        with self._read() as connection:
            return [NameRow(row.name, row.version, row.digest, _utc(row.created)) for row in connection.execute(query)]

    def move_tag(self, name: str, tag: str, digest: str | None, by: str = "") -> None:
        """Put a tag on an artifact, or take it away (None)."""
        with self._write() as connection:
            connection.execute(insert(tag_moves).values(name=name, tag=tag, digest=digest, moved=now(), by=by))

    def tag_history(self, name: str | None = None) -> list[TagMove]:
        """Return every move of every tag (of one name), oldest first."""
        query = select(tag_moves).order_by(tag_moves.c.id)
        if name is not None:
            query = query.where(tag_moves.c.name == name)
        with self._read() as connection:
            return [
                TagMove(row.name, row.tag, row.digest, _utc(row.moved), row.by) for row in connection.execute(query)
            ]

    def tags(self, name: str | None = None) -> dict[tuple[str, str], str]:
        """Return the tags that stand now: (name, tag) to digest."""
        standing = {(move.name, move.tag): move.digest for move in self.tag_history(name)}
        return {key: digest for key, digest in standing.items() if digest is not None}

    # -- runs --------------------------------------------------------------------------------------------------------

    def put_run(self, run: Run) -> None:
        """Write a run's record, new or changed."""
        with self._write() as connection:
            self._put_run(connection, run)

    def _put_run(self, connection: Connection, run: Run) -> None:
        row = {
            "id": run.id,
            "run_group": run.group,
            "step": run.step,
            "stage": run.stage,
            "status": run.status,
            "key": run.key,
            "output": run.output,
            "started": run.started or now(),
            "body": run.model_dump_json(),
        }
        statement = self._insert(runs).values(row)
        connection.execute(
            statement.on_conflict_do_update(index_elements=["id"], set_={k: v for k, v in row.items() if k != "id"})
        )
        for name, digest in run.inputs.items():
            connection.execute(
                self._insert(run_inputs).values(run=run.id, input=name, digest=digest).on_conflict_do_nothing()
            )

    def finish(self, run: Run, artifact: Artifact, name: str, tags: tuple[str, ...] = ()) -> tuple[Artifact, int]:
        """End a run well, in one transaction: its artifact, name, tags and record appear together or not at all."""
        with self._write() as connection:
            stored = self._add_artifact(connection, artifact)
            version = self._add_name(connection, name, stored.digest)
            for tag in tags:
                connection.execute(
                    insert(tag_moves).values(name=name, tag=tag, digest=stored.digest, moved=now(), by=f"run {run.id}")
                )
            self._put_run(connection, run)
        return stored, version

    def find_runs(self, **where: Any) -> list[Run]:
        """Return runs by equal columns (id, run_group, step, stage, status, key, output), oldest first."""
        query = select(runs.c.body, runs.c.status, runs.c.output).order_by(runs.c.started, runs.c.id)
        for column, value in where.items():
            query = query.where(runs.c[column] == value)
        with self._read() as connection:
            return [_run(row.body, row.status, row.output) for row in connection.execute(query)]

    def runs_given(self, digest: str) -> list[Run]:
        """Return the runs that had this artifact as an input."""
        query = select(runs.c.body, runs.c.status, runs.c.output).join(run_inputs, run_inputs.c.run == runs.c.id)
        query = query.where(run_inputs.c.digest == digest).order_by(runs.c.started)
        with self._read() as connection:
            return [_run(row.body, row.status, row.output) for row in connection.execute(query)]


def _run(body: str, status: str, output: str | None) -> Run:
    fields: Mapping[str, Any] = json.loads(body)
    return Run.model_validate({**fields, "status": status, "output": output})


def _utc(stamp: datetime) -> datetime:
    return stamp.replace(tzinfo=UTC) if stamp.tzinfo is None else stamp.astimezone(UTC)
