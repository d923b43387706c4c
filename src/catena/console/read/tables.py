"""Reading the index for pages: a connection, a page of a list, and a mark that changes when the index does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from sqlalchemy import Connection, func, select

from catena.hub.schema import artifacts, names, runs, tag_moves
from catena.hub.store import Store

Row = TypeVar("Row")


@dataclass(frozen=True)
class Found(Generic[Row]):
    """A page of a list, and how many there are in all."""

    rows: tuple[Row, ...]
    total: int


def page_of(rows: Sequence[Row], offset: int, limit: int) -> Found[Row]:
    """Return `limit` rows from `offset` on."""
    return Found(tuple(rows[offset : offset + limit]), len(rows))


@contextmanager
def reading(store: Store) -> Iterator[Connection]:
    """A connection that only reads; the database's refusals come out as our errors."""
    with store.index.translated(), store.index.engine.connect().execution_options(reads=True) as connection:
        yield connection


def stamp(store: Store) -> tuple[object, ...]:
    """Return what changes whenever an artifact, a name, a tag or the end of a run is written."""
    with reading(store) as connection:
        counted = [
            connection.execute(select(func.count(), func.max(table.c[column])).select_from(table)).one()
            for table, column in ((artifacts, "created"), (names, "created"), (tag_moves, "id"))
        ]
        ended = connection.execute(select(func.count(runs.c.output))).scalar()
    return (*(tuple(row) for row in counted), ended)
