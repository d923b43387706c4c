"""SQL databases, real ones: SQLite in a file, PostgreSQL on loopback."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from catena.core.config import parse
from catena.core.errors import ConfigError, RemoteError, UsageError
from catena.core.stage import Context
from catena.data.collect.sql import SqlConfig, as_json, from_json
from tests.hub.conftest import postgres_url  # noqa: F401  the fixture

from .loopback import collect, counts, reasons, texts

TABLE = "CREATE TABLE notes (id INTEGER PRIMARY KEY, title TEXT, body TEXT, changed TIMESTAMP, price NUMERIC(9,2))"


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE IF EXISTS notes"))
        connection.execute(sa.text(TABLE))
    put(engine, *range(1, 8))
    yield engine
    engine.dispose()


def put(engine: sa.Engine, *numbers: int, day: int | None = None, body: str = "body") -> None:
    with engine.begin() as connection:
        for number in numbers:
            connection.execute(sa.text("DELETE FROM notes WHERE id = :id"), {"id": number})
            values = {"id": number, "t": f"title {number}", "b": body, "c": f"2026-01-{day or number:02d} 00:00:00"}
            insert = "INSERT INTO notes VALUES (:id, :t, :b, CAST(:c AS {}), 1.50)"
            kind = "TIMESTAMP" if engine.dialect.name == "postgresql" else "TEXT"
            connection.execute(sa.text(insert.format(kind)), values)


def values_of(engine: sa.Engine, **more: Any) -> dict[str, Any]:
    url = engine.url.render_as_string(hide_password=False)
    return {"url": url, "table": "notes", "key": "id", "page_rows": 3, **more}


def test_a_second_run_reads_only_from_the_last_change_on(context: Context, engine: sa.Engine) -> None:
    values = values_of(engine, cursor="changed", text=["title", "body"])
    first = collect(context, "data.collect_sql", **values)
    assert texts(context, first) == [f"title {number}\n\nbody" for number in range(1, 8)]
    put(engine, 3, day=20, body="mended")
    put(engine, 8)
    second = collect(context, "data.collect_sql", **values)
    # Row 7 has the last value of the first run: it is read again, and found to be as it was.
    assert counts(second) == {"changed": 1, "kept": 5, "new": 1, "unchanged": 1}
    assert texts(context, second)[2] == "title 3\n\nmended"
    assert collect(context, "data.collect_sql", **values).digest == second.digest
    row = next(iter(context.store.open_dataset(second).samples()))
    assert (row.metadata["id"], str(row.metadata["changed"])[:10]) == (1, "2026-01-01")


def test_without_a_cursor_every_run_finds_out_what_is_gone(context: Context, engine: sa.Engine) -> None:
    values = values_of(engine, text=["title"])
    collect(context, "data.collect_sql", **values)
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM notes WHERE id IN (2, 7)"))
    second = collect(context, "data.collect_sql", **values)
    assert counts(second) == {"gone": 2, "unchanged": 5}
    assert set(reasons(context, second).values()) == {"gone"}
    assert collect(context, "data.collect_sql", **values).digest == second.digest


def test_a_run_may_be_cut_in_pieces(context: Context, engine: sa.Engine) -> None:
    whole = collect(context, "data.collect_sql", **values_of(engine, cursor="changed"))
    parts = Context(context.store, context.workdir, 7, context.events, "parts")
    rows = [
        collect(parts, "data.collect_sql", **values_of(engine, cursor="changed", max_records=2, page_rows=2)).rows
        for _ in range(4)
    ]
    assert rows == [2, 4, 6, 7]
    assert parts.store.resolve("parts").digest == whole.digest


def test_rows_with_equal_cursor_values_are_neither_lost_nor_doubled(context: Context, engine: sa.Engine) -> None:
    put(engine, *range(1, 8), day=9)
    values = values_of(engine, cursor="changed", page_rows=2)
    assert collect(context, "data.collect_sql", **values).rows == 7
    put(engine, 10, day=9)
    assert counts(collect(context, "data.collect_sql", **values)) == {"new": 1, "unchanged": 7}


def test_a_query_is_read_like_a_table_and_nothing_can_be_written(context: Context, engine: sa.Engine) -> None:
    query = "SELECT id, title || ': ' || body AS text, price FROM notes WHERE id <> 4;"
    version = collect(context, "data.collect_sql", **values_of(engine, table="", query=query, text=["text"]))
    assert version.rows == 6
    assert texts(context, version)[0] == "title 1: body"
    if engine.dialect.name == "postgresql":
        sly = "WITH gone AS (DELETE FROM notes RETURNING *) SELECT * FROM gone"
        with pytest.raises((UsageError, RemoteError)):
            collect(context, "data.collect_sql", **values_of(engine, table="", query=sly, text=["title"]))
        with engine.connect() as connection:
            assert connection.execute(sa.text("SELECT count(*) FROM notes")).scalar() == 7


def test_rows_that_cannot_be_taken_are_rejects(context: Context, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO notes VALUES (20, '', NULL, NULL, 0)"))
        connection.execute(sa.text("UPDATE notes SET body = :b WHERE id = 5"), {"b": "x" * 1000})
        connection.execute(sa.text("UPDATE notes SET title = '', body = ' ' WHERE id = 6"))
    values = values_of(engine, cursor="changed", text=["title", "body"], max_row_bytes=100)
    version = collect(context, "data.collect_sql", **values)
    assert {int(key): why for key, why in reasons(context, version).items()} == {
        5: "too_large",
        6: "missing_text",
        20: "missing_cursor",
    }


def test_bytes_become_media(context: Context, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "files.db") as connection:
        connection.execute("CREATE TABLE files (name TEXT, kind TEXT, body BLOB)")
        rows = [("b", "image/png", b"\x89PNG"), ("a", "text/plain", b"hi"), ("c", None, b""), (None, "x/y", b"z")]
        connection.executemany("INSERT INTO files VALUES (?, ?, ?)", rows)
    connection.close()
    values = {"url": f"sqlite:///{tmp_path / 'files.db'}", "table": "files", "key": "name"}
    version = collect(context, "data.collect_sql", **values, content="body", media_type="kind")
    rows_out = [row.data for row in context.store.open_dataset(version).samples()]
    assert rows_out == [
        {"content": b"hi", "media_type": "text/plain"},
        {"content": b"\x89PNG", "media_type": "image/png"},
    ]
    assert reasons(context, version) == {"": "missing_key", "c": "missing_text"}


def test_a_database_that_is_away_or_wrong_says_so_without_the_password(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DB_PASSWORD", "s3cret")
    away = {"url": "postgresql+psycopg://me@127.0.0.1:1/shop", "password_env": "DB_PASSWORD", "table": "t", "key": "id"}
    with pytest.raises(RemoteError, match="does not answer") as caught:
        collect(context, "data.collect_sql", **away)
    assert "s3cret" not in str(caught.value)
    missing = {"url": f"sqlite:///{tmp_path / 'none.db'}", "table": "t", "key": "id"}
    with pytest.raises(RemoteError):
        collect(context, "data.collect_sql", **missing)
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(UsageError):
        collect(context, "data.collect_sql", url="nosuch://h/x", table="t", key="id")


def test_a_wrong_column_is_named_with_those_there_are(context: Context, engine: sa.Engine) -> None:
    with pytest.raises(UsageError, match="nope") as caught:
        collect(context, "data.collect_sql", **values_of(engine, text=["nope"]))
    assert "title" in caught.value.hint
    with pytest.raises((UsageError, RemoteError), match="nokey"):
        collect(context, "data.collect_sql", **values_of(engine, key="nokey"))


@pytest.mark.parametrize(
    "values",
    [
        {"url": "postgresql://me:pw@host/db", "table": "t"},
        {"url": "sqlite:///x", "table": "t; DROP TABLE t"},
        {"url": "sqlite:///x", "query": "DELETE FROM t"},
        {"url": "sqlite:///x"},
        {"table": "t"},
    ],
)
def test_a_config_that_cannot_work_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        parse(SqlConfig, {"key": "id", **values})


def test_keys_and_cursors_of_every_kind_come_back_as_they_were() -> None:
    from datetime import date, datetime, timedelta
    from decimal import Decimal
    from uuid import UUID

    for value in (1, "a", None, datetime(2026, 1, 1, 5), date(2026, 1, 1), Decimal("1.50"), UUID(int=5), timedelta(1)):
        assert from_json(as_json(value)) == value
    with pytest.raises(UsageError):
        as_json(b"x")
