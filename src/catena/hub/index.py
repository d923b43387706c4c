"""The index: artifacts, names, tags and runs in SQLite (write-ahead log) or PostgreSQL. No bytes of artifacts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, insert, make_url, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from catena.core.errors import ConfigError, EnvironmentProblem, IntegrityError, MissingExtra, environment_problem
from catena.core.types import ARTIFACT, Artifact, DatasetVersion, Run
from catena.hub import commits, replacing
from catena.hub.schema import artifacts, erased, names, run_inputs, runs, tag_moves


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


def make_engine(url: str | URL) -> Engine:
    """Open a database by SQLAlchemy URL; SQLite gets the write-ahead log and waits up to 30 s for its turn."""
    try:
        parsed = make_url(url)
        engine = create_engine(parsed, connect_args={"timeout": 30} if parsed.drivername.startswith("sqlite") else {})
    except (ArgumentError, NoSuchModuleError) as error:
        raise ConfigError(
            "the index is not a database URL that SQLAlchemy knows",
            hint="For example: postgresql+psycopg://user@host/name. Leave it empty for SQLite.",
        ) from error
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


USED_UP = "@"
"""A tag move under this mark and a number says that the version was forgotten: no tag of a person begins so."""


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
            place: dict[str, Any] = {"files": artifact.files}
            if isinstance(artifact, DatasetVersion):
                place |= {"table": artifact.table, "revision": artifact.revision}
            stored = stored.model_copy(update=place)
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
        """Forget an artifact: its record, its names, and it as the output of runs (which then run again).

        Its tags stand on nothing afterwards, and not on what they stood on before; its version numbers stay used up.
        """
        standing = [key for key, found in self.tags().items() if found == digest]
        with self._write() as connection:
            connection.execute(update(runs).where(runs.c.output == digest).values(output=None, status="interrupted"))
            used = connection.execute(select(names.c.name, names.c.version).where(names.c.digest == digest)).all()
            gone = [*standing, *((row.name, f"{USED_UP}{row.version}") for row in used)]
            for name, tag in gone:
                connection.execute(
                    insert(tag_moves).values(name=name, tag=tag, digest=None, moved=now(), by="forgotten")
                )
            connection.execute(names.delete().where(names.c.digest == digest))
            connection.execute(artifacts.delete().where(artifacts.c.digest == digest))

    # -- names and tags ----------------------------------------------------------------------------------------------

    def add_name(self, name: str, digest: str) -> int:
        """Make `digest` the newest version of a name, unless it is already; returns the version."""
        with self._write() as connection:
            return self._add_name(connection, name, digest)

    def _add_name(self, connection: Connection, name: str, digest: str, by: str = "catena") -> int:
        self._alone(connection, name)
        newest = connection.execute(
            select(names.c.version, names.c.digest)
            .where(names.c.name == name)
            .order_by(names.c.version.desc())
            .limit(1)
        ).first()
        if newest is not None and newest.digest == digest:
            return int(newest.version)
        forgotten = connection.execute(
            select(tag_moves.c.tag).where(tag_moves.c.name == name, tag_moves.c.tag.like(f"{USED_UP}%"))
        ).scalars()
        used = [int(tag.removeprefix(USED_UP)) for tag in forgotten]
        version = 1 + max([0 if newest is None else int(newest.version), *used])
        at = now()
        connection.execute(insert(names).values(name=name, version=version, digest=digest, created=at))
        found = connection.execute(select(artifacts).where(artifacts.c.digest == digest)).one()
        if by and found.kind == "dataset":
            commits.record_version(connection, name, json.loads(found.body), at, by)
        return version

    def _alone(self, connection: Connection, name: str) -> None:
        """Let one transaction at a time count a name's versions and move its branches."""
        if self.engine.dialect.name == "postgresql":  # SQLite has one writer at a time already
            connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(name))))

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

    # -- commits and branches ----------------------------------------------------------------------------------------

    def history(self, name: str) -> tuple[dict[str, commits.Commit], dict[str, str]]:
        """Return a name's commits by digest, and its branches; versions from before commits existed get theirs now."""
        with self._read() as connection:
            found = commits.read_history(connection, name), commits.read_branches(connection, name)
        if found[0]:
            return found
        with self._write() as connection:
            self._alone(connection, name)
            commits.adopt(connection, name, by="catena")
            return commits.read_history(connection, name), commits.read_branches(connection, name)

    def add_commit(self, commit: commits.Commit, branch: str, dataset: Artifact) -> str | None:
        """Write a commit as the newest of a branch; on `main` it is a new version of the name too.

        Returns its digest, or None, and nothing is written, when the branch has moved on since the first parent.
        """
        with self._write() as connection:
            self._alone(connection, commit.name)
            head = commits.read_branches(connection, commit.name).get(branch)
            if head != (commit.parents[0] if commit.parents else None):
                return None
            stored = self._add_artifact(connection, dataset)
            if branch == commits.MAIN:
                self._add_name(connection, commit.name, stored.digest, by="")
            digest = commits.write_commit(connection, commit)
            commits.move_branch(connection, commit.name, branch, digest, commit.author, commit.time)
        return digest

    def move_branch(self, name: str, branch: str, digest: str | None, by: str, expect: str | None) -> bool:
        """Point a branch at a commit, or remove it (None), if it still stands at `expect` (None: there is no such)."""
        with self._write() as connection:
            self._alone(connection, name)
            if commits.read_branches(connection, name).get(branch) != expect:
                return False
            commits.move_branch(connection, name, branch, digest, by, now())
            if branch == commits.MAIN and digest is not None:
                self._add_name(connection, name, commits.read_history(connection, name)[digest].dataset, by="")
        return True

    def erased_rows(self) -> list[tuple[str, str]]:
        """Return (row id, mark of its data) of everything that was erased."""
        with self._read() as connection:
            return [(row.row, row.mark) for row in connection.execute(select(erased))]

    def replace_datasets(
        self,
        replaced: Mapping[str, DatasetVersion],
        erasure: str,
        marks: Iterable[tuple[str, str]],
        sign: Callable[[str], str],
    ) -> None:
        """Let new datasets take the places of old ones in names, tags, runs and commits, in one transaction."""
        with self._write() as connection:
            for artifact in replaced.values():
                self._add_artifact(connection, artifact)
            moved = {old: new.digest for old, new in replaced.items() if old != new.digest}
            replacing.replace_digests(connection, moved)
            replacing.rewrite_commits(connection, replaced, erasure, sign)
            for row, mark in marks:
                values = {"row": row, "mark": mark, "erasure": erasure}
                connection.execute(self._insert(erased).values(values).on_conflict_do_nothing())

    def rewritten_commits(self, erasure: str) -> dict[str, str]:
        """Return the commits that an erasure rewrote: old digest to new."""
        with self._read() as connection:
            return replacing.rewritten_commits(connection, erasure)

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

    def finish(
        self,
        run: Run,
        artifact: Artifact,
        name: str,
        tags: tuple[str, ...] = (),
        *,
        beside: Callable[[Connection], None] | None = None,
    ) -> tuple[Artifact, int]:
        """End a run well, in one transaction: artifact, name, tags, record, and what `beside` writes, or nothing."""
        with self._write() as connection:
            stored = self._add_artifact(connection, artifact)
            version = self._add_name(connection, name, stored.digest)
            for tag in tags:
                connection.execute(
                    insert(tag_moves).values(name=name, tag=tag, digest=stored.digest, moved=now(), by=f"run {run.id}")
                )
            self._put_run(connection, run)
            if beside is not None:
                beside(connection)
        return stored, version

    def find_runs(self, **where: Any) -> list[Run]:
        """Return runs by equal columns (id, run_group, step, stage, status, key, output), oldest first."""
        query = select(runs.c.body, runs.c.status, runs.c.output).order_by(runs.c.started, runs.c.id)
        for column, value in where.items():
            query = query.where(runs.c[column] == value)
        with self._read() as connection:
            return [_run(row.body, row.status, row.output) for row in connection.execute(query)]

    def interrupt_runs(self) -> int:
        """Mark every run that is recorded as running as interrupted; for one who knows that none is (see gc)."""
        with self._write() as connection:
            change = update(runs).where(runs.c.status == "running").values(status="interrupted")
            return connection.execute(change).rowcount

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
