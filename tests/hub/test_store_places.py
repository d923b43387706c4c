"""Where a store lies: workspaces that are missing, broken or newer, full disks, and ones that can only be read."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from catena.core.errors import (
    DataError,
    DiskFull,
    IntegrityError,
    NotFound,
    NotWritable,
    WorkspaceTooNew,
)
from catena.core.types import DatasetVersion
from catena.hub.store import Store, init_store, open_store

Put = Callable[..., Any]

# -- workspaces ------------------------------------------------------------------------------------------------------


def test_init_on_a_workspace_changes_nothing(store: Store, put_documents: Put) -> None:
    put_documents(store, "one")
    again = init_store(store.root)
    assert again.resolve("pages") == store.resolve("pages")
    again.close()


def test_missing_workspace_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as error:
        open_store(tmp_path)
    assert error.value.hint == "Make one with: catena init"


@pytest.mark.parametrize("content", ["", "{", "\x00", "[]", "null", '"x"'])
def test_broken_description_of_a_workspace_is_a_data_error(store: Store, content: str) -> None:
    (store.root / "workspace.json").write_text(content)
    with pytest.raises(DataError):
        open_store(store.root)


def test_workspace_of_a_newer_format_is_refused(store: Store) -> None:
    (store.root / "workspace.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(WorkspaceTooNew, match="format 99"):
        open_store(store.root)


def test_index_of_a_newer_schema_is_refused_and_left_alone(store: Store) -> None:
    with store.index.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(WorkspaceTooNew, match="schema 9999"):
        open_store(store.root)
    with store.index.engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"


def test_index_that_is_not_a_database_gives_one_clear_error(store: Store) -> None:
    store.close()
    for path in store.root.glob("catena.db*"):
        path.unlink()
    (store.root / "catena.db").write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises((DataError, IntegrityError), match="not a database"):
        open_store(store.root)


# -- full and read-only disks ----------------------------------------------------------------------------------------


def test_full_disk_is_one_clear_error_and_leaves_nothing_half_written(small_disk: Path, put_documents: Put) -> None:
    store = init_store(small_disk / ".catena")
    kept = put_documents(store, "one")
    big = [os.urandom(100_000).hex() for _ in range(30)]
    with pytest.raises(Exception) as error:
        put_documents(store, *big, name="big")
    from catena.core.errors import environment_problem

    assert isinstance(environment_problem(error.value), DiskFull), repr(error.value)
    assert not list(store.datasets.glob(".writing-*"))
    assert [sample.text for sample in store.open_dataset(kept).samples()] == ["one"]
    assert {row.name for row in store.index.versions()} == {"pages"}
    put_documents(store, "two")
    store.close()


def test_full_disk_for_a_model_leaves_no_part(small_disk: Path, tmp_path: Path, put_model: Put) -> None:
    store = init_store(small_disk / ".catena")
    with pytest.raises(OSError, match="No space left"):
        put_model(store, os.urandom(3 << 20))
    assert not [name for name, _ in store.files.all() if name.endswith(".part")]
    put_model(store)
    store.close()


def test_read_only_workspace_can_be_read_and_refuses_writes(small_disk: Path, put_documents: Put) -> None:
    store = init_store(small_disk / ".catena")
    version = put_documents(store, "one")
    store.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(NotWritable):
        init_store(small_disk / "other" / ".catena")
    with pytest.raises(NotWritable):
        write_to(small_disk / ".catena", version)


def write_to(root: Path, version: DatasetVersion) -> None:
    opened = open_store(root)
    assert opened.resolve("pages").digest == version.digest
    opened.index.add_name("again", version.digest)
