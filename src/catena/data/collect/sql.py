"""The stage `data.collect_sql`: rows of a table or a query of any SQLAlchemy database become samples.

    config -> read-only connection -> pages by key (no OFFSET) -> rows -> what is new

The database is only read: SQLite by `query_only`, PostgreSQL and others that know it by a read-only transaction.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import Field, model_validator

from catena.core.config import Config
from catena.core.errors import RemoteError, UsageError
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, Shape
from catena.data.collect.client import secret_of
from catena.data.collect.cursor import Past, collect
from catena.data.collect.fragment import fragment_text
from catena.data.collect.journal import Batch, Item

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

WORD = re.compile(r"[^\W\d]\w*", re.UNICODE)


class SqlConfig(Config):
    """Which rows to collect, and what of them becomes a sample."""

    url: str = ""
    """SQLAlchemy address without a password, for example `postgresql+psycopg://reader@host/shop`."""
    url_env: str = ""
    """Environment variable that holds the whole address, password included; in place of `url`."""
    password_env: str = ""
    """Environment variable that holds the password of the user in `url`."""
    table: str = ""
    """Table or view to read, with its schema if need be (`sales.notes`)."""
    query: str = ""
    """One SELECT to read instead of a table; pages and cursor are wrapped round it."""
    key: str
    """Column that identifies a row: unique and never empty."""
    cursor: str = ""
    """Column that grows with every new or changed row (a time of change, a serial number); with it, later runs read
    only rows from the last value on. Without it every run reads all rows, and finds out which are gone."""
    text: tuple[str, ...] = ()
    """Columns of text, joined by a blank line; every text column if empty."""
    html: bool = False
    """The texts are HTML."""
    content: str = ""
    """Column of bytes (a picture, a file): rows become media in place of documents."""
    media_type: str = "application/octet-stream"
    """Media type of `content`, or the name of the column that holds it."""
    metadata: tuple[str, ...] = ()
    """Columns to keep as metadata; every column that is not text if empty."""
    page_rows: int = Field(1000, ge=1, le=100_000)
    """Rows to read at once."""
    max_records: int = Field(10_000_000, ge=1)
    """About the most rows of one run (the page under way is finished); the next run goes on there."""
    max_row_bytes: int = Field(50_000_000, ge=1)
    """Largest text or content of a row; a larger one is rejected."""
    timeout_s: float = Field(600.0, gt=0)
    """Longest time for a statement, in seconds, where the database can be told (PostgreSQL, MySQL)."""
    license: str | None = None
    """Licence of what is collected, for example an SPDX identifier."""

    @model_validator(mode="after")
    def _fields_fit(self) -> SqlConfig:
        if bool(self.url) == bool(self.url_env):
            raise ValueError("give `url`, or `url_env` with the name of the variable that holds it")
        if bool(self.table) == bool(self.query):
            raise ValueError("give a `table`, or a `query`")
        if re.match(r"[^:]+://[^/@]*:[^/@]+@", self.url):
            raise ValueError("`url` must not hold a password; use `password_env`, or `url_env` for the whole address")
        if not all(WORD.fullmatch(part) for part in self.table.split(".")) and self.table:
            raise ValueError(f"{self.table!r} is not the name of a table")
        if self.query and not re.match(r"\s*(select|with)\b", self.query, re.IGNORECASE):
            raise ValueError("`query` has to be one SELECT")
        return self


@stage("data.collect_sql", volatile=True)
def collect_sql(ctx: Context, cfg: SqlConfig) -> DatasetVersion:
    """Collect rows of a database table or query, and later only new and changed ones.

    Rows with the last cursor value are read again in the next run, since more of them may have come; a row that is as
    it was stays as it is. Reasons of rejects: `missing_key`, `missing_cursor`, `missing_text`, `too_large`,
    `lone_surrogate`, `not_storable`; without `cursor` also `gone`. Raises `RemoteError` when the database fails.
    """
    return collect(ctx, SqlConnector(cfg), cfg.max_records)


@dataclass
class SqlConnector:
    """One table or query. A position holds the last (cursor value, key) that was read."""

    cfg: SqlConfig
    name: str = "collect_sql"
    passing: frozenset[str] = frozenset()
    shape: Shape = field(init=False)
    license: str | None = field(init=False)
    identity: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        limits = {"page_rows", "max_records", "timeout_s", "url", "url_env", "password_env"}
        self.shape = "media" if self.cfg.content else "document"
        self.license = self.cfg.license
        self.identity = {"connector": self.name, **self.cfg.model_dump(mode="json", exclude=limits)}

    def batches(self, past: Past) -> Iterator[Batch]:
        """Read page after page, in the order of (cursor column, key)."""
        cfg = self.cfg
        position = dict(past.position or {"after": None, "top": past.cursor.get("top"), "seen": 0})
        with _translated(), _reading(cfg) as connection:
            while True:
                rows = self._page(connection, past.cursor.get("top"), position["after"])
                items = [self._item(row) for row in rows]
                if rows:
                    last = [as_json(rows[-1][name]) for name in filter(None, (cfg.cursor, cfg.key))]
                    top = last[0] if cfg.cursor else None
                    position = {"after": last, "top": top, "seen": position["seen"] + len(rows)}
                if len(rows) < cfg.page_rows:
                    break
                yield Batch(tuple(items), position)
            gone = () if cfg.cursor or past.before is None else tuple(self._gone(connection, past))
            left_out = tuple(self._left_out(connection))
        yield Batch((*items, *gone, *left_out), position, {"top": position["top"]})

    def _page(self, connection: Connection, top: Any, after: Sequence[Any] | None) -> list[Mapping[str, Any]]:
        """Read the rows behind `after`, or from the cursor's last value on."""
        import sqlalchemy as sa

        cfg = self.cfg
        key: Any = sa.column(cfg.key)
        order = [sa.column(cfg.cursor), key] if cfg.cursor else [key]
        asked = sa.select(sa.text("*")).select_from(_source(cfg)).order_by(*order).limit(cfg.page_rows)
        if after is not None:
            values = [from_json(value) for value in after]
            if cfg.cursor:
                asked = asked.where(sa.or_(order[0] > values[0], sa.and_(order[0] == values[0], key > values[1])))
            else:
                asked = asked.where(key > values[0])
        elif cfg.cursor and top is not None:
            asked = asked.where(order[0] >= from_json(top))
        asked = asked.where(*(column.is_not(None) for column in order))
        rows: list[Mapping[str, Any]] = [dict(row) for row in connection.execute(asked).mappings()]
        for name in filter(None, (cfg.key, cfg.cursor)):
            if rows and name not in rows[0]:
                raise UsageError(f"there is no column {name!r}", hint=f"Columns: {', '.join(rows[0])}.")
        return rows

    def _gone(self, connection: Connection, past: Past) -> Iterator[Item]:
        """Yield the rows of the version before whose key is not in the table any more."""
        import sqlalchemy as sa

        column: Any = sa.column(self.cfg.key)
        keys = connection.execute(sa.select(column).select_from(_source(self.cfg))).scalars()
        there = {sortable(key) for key in keys}
        for key in past.known("key"):
            if key not in there:
                yield Item(key, "gone")

    def _left_out(self, connection: Connection) -> Iterator[Item]:
        """Yield rejects for the rows that no page can reach: without a key, or without a cursor value."""
        import sqlalchemy as sa

        key: Any = sa.column(self.cfg.key)
        place = f"sql:{self.cfg.table or 'query'}"
        count = sa.select(sa.func.count()).select_from(_source(self.cfg)).where(key.is_(None))
        without = connection.execute(count).scalar() or 0
        if without:
            detail = f"{without} rows have nothing in {self.cfg.key}"
            yield Item("", "reject", source=place, reason="missing_key", detail=detail)
        if self.cfg.cursor:
            empty = sa.and_(sa.column(self.cfg.cursor).is_(None), key.is_not(None))
            for value in connection.execute(sa.select(key).select_from(_source(self.cfg)).where(empty)).scalars():
                detail = f"nothing in {self.cfg.cursor}"
                yield Item(sortable(value), "reject", source=f"{place}#{value}", reason="missing_cursor", detail=detail)

    def _item(self, row: Mapping[str, Any]) -> Item:
        """Make a sample of a row, or a reject."""
        cfg = self.cfg
        name = sortable(row[cfg.key])
        place = f"sql:{cfg.table or 'query'}#{row[cfg.key]}"
        texts = cfg.text or tuple(column for column, value in row.items() if isinstance(value, str))
        apart = {*texts, cfg.content} if not cfg.metadata else set()
        kept = cfg.metadata or tuple(column for column in row if column not in apart and column != "key")
        missing = [column for column in (*texts, *cfg.metadata) if column not in row]
        if missing:
            raise UsageError(f"there is no column {missing[0]!r}", hint=f"Columns: {', '.join(row)}.")
        facts = {column: as_plain(row[column]) for column in kept}
        if cfg.content:
            body = row.get(cfg.content)
            if not isinstance(body, bytes | memoryview | bytearray) or not bytes(body):
                return Item(
                    name, "reject", {}, facts, place, reason="missing_text", detail=f"no bytes in {cfg.content}"
                )
            media_type = str(row.get(cfg.media_type) or cfg.media_type)
            data: dict[str, Any] = {"content": bytes(body), "media_type": media_type}
        else:
            parts = [str(row[column]) for column in texts if row[column] is not None]
            parts = [fragment_text(part) if cfg.html else part for part in parts]
            data = {"text": "\n\n".join(part for part in parts if part.strip())}
        size = max(len(value) for value in data.values())
        if size > cfg.max_row_bytes:
            return Item(name, "reject", {}, facts, place, reason="too_large", detail=f"{size} bytes")
        if data.get("text") == "":
            return Item(name, "reject", {}, facts, place, reason="missing_text", detail="every text column is empty")
        return Item(name, data=data, metadata=facts, source=place)


def _source(cfg: SqlConfig) -> Any:
    """Return what stands behind FROM."""
    import sqlalchemy as sa

    if cfg.query:
        # In a bare string a colon would be a parameter, and a semicolon another statement.
        text = cfg.query.strip().rstrip(";").replace(":", r"\:")
        return sa.text(f"({text}) AS collected")
    schema, _, table = cfg.table.rpartition(".")
    return sa.table(table, schema=schema or None)


def _engine(cfg: SqlConfig) -> Engine:
    import sqlalchemy as sa

    address = sa.make_url(secret_of(cfg.url_env) if cfg.url_env else cfg.url)
    if cfg.password_env:
        address = address.set(password=secret_of(cfg.password_env))
    options: dict[str, Any] = {}
    if address.get_backend_name() == "sqlite" and address.database not in (None, "", ":memory:"):
        # Opened by its plain path, a file that is not there would be made.
        options = {"uri": True}
        address = address.set(database=f"file:{address.database}", query={"mode": "ro", "uri": "true"})
    if address.get_backend_name() == "postgresql":
        options = {"options": f"-c statement_timeout={int(cfg.timeout_s * 1000)}"}
    return sa.create_engine(address, connect_args=options, poolclass=sa.NullPool)


@contextmanager
def _reading(cfg: SqlConfig) -> Iterator[Connection]:
    """Open a connection that cannot write, with one view of the data for the whole run where the database has it."""
    engine = _engine(cfg)
    with engine.connect() as connection:
        backend = engine.dialect.name
        if backend == "sqlite":
            connection.exec_driver_sql("PRAGMA query_only = ON")
        elif backend in ("postgresql", "mysql", "mariadb"):
            isolated = connection.execution_options(isolation_level="REPEATABLE READ")
            isolated.exec_driver_sql("SET TRANSACTION READ ONLY") if backend == "postgresql" else None
        yield connection
        connection.rollback()


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the database's errors into ours; never with the address, which may hold a password."""
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError, SQLAlchemyError

    try:
        yield
    except (NoSuchModuleError, ArgumentError, ModuleNotFoundError) as error:
        raise UsageError(f"the database address cannot be used: {error}", hint="See SQLAlchemy's list.") from None
    except OperationalError as error:
        raise RemoteError(
            f"the database does not answer: {_first_line(error)}",
            hint="See whether it runs and the address is right; then run again: it goes on where it was.",
        ) from None
    except SQLAlchemyError as error:
        raise UsageError(f"the database refuses the query: {_first_line(error)}", hint="Try it by hand.") from None


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


def sortable(key: Any) -> str:
    """Return a row's key as text in the order of the keys."""
    return f"{key:020d}" if isinstance(key, int) and key >= 0 else str(as_plain(key))


def as_plain(value: Any) -> Any:
    """Return a database value as JSON has it; bytes by their length."""
    if value is None or isinstance(value, bool | int | float | str | list | dict):
        return value
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    return str(value)


TYPES: dict[str, Any] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "Decimal": Decimal,
    "UUID": UUID,
    "timedelta": lambda text: timedelta(seconds=float(text)),
}


def as_json(value: Any) -> Any:
    """Return a key or cursor value as JSON that `from_json` reads back as the same type."""
    if value is None or isinstance(value, int | float | str):
        return value
    if isinstance(value, timedelta):
        return {"timedelta": str(value.total_seconds())}
    kind = type(value).__name__
    if kind not in TYPES:
        raise UsageError(
            f"a column of type {kind} can be neither key nor cursor", hint="Take a number, a text, a time, or a UUID."
        )
    return {kind: value.isoformat() if isinstance(value, date) else str(value)}


def from_json(value: Any) -> Any:
    """Return what `as_json` was given."""
    if isinstance(value, dict):
        ((kind, text),) = value.items()
        return TYPES[kind](text)
    return value
