"""The same index in a real PostgreSQL: transactions, tags, versions given at once, locks across connections."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from catena.core.errors import EnvironmentProblem, NotFound, WorkspaceTooNew
from catena.core.types import Run
from catena.hub import versions
from catena.hub.erase import erase
from catena.hub.fsck import check, collect_garbage
from catena.hub.index import now
from catena.hub.store import Store, init_store, open_store
from tests.hub.edits import BASE, edit, put, retext, texts

Put = Callable[..., Any]

NAMES_AT_ONCE = """
import sys
from pathlib import Path
from catena.core.sample import Sample
from catena.hub.store import init_store
store = init_store(Path(sys.argv[1]), index_url=sys.argv[3])
for number in range(10):
    with store.new_dataset("document") as writer:
        writer.add(Sample("a", {"text": f"{sys.argv[2]} {number}"}))
        version = writer.commit()
    store.index.add_artifact(version)
    store.index.add_name("pages", version.digest)
"""


@pytest.fixture
def database(postgres_url: str) -> str:
    """The URL of a new database."""
    name = f"t{uuid.uuid4().hex[:10]}"
    engine = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return postgres_url.removesuffix("/postgres") + f"/{name}"


@pytest.fixture
def store(tmp_path: Path, database: str) -> Iterator[Store]:
    opened = init_store(tmp_path / ".catena", index_url=database)
    yield opened
    opened.close()


def test_workspace_remembers_its_database(store: Store, database: str, put_documents: Put) -> None:
    version = put_documents(store, "one")
    assert json.loads((store.root / "workspace.json").read_text())["index"] == database
    assert not (store.root / "catena.db").exists()
    again = open_store(store.root)
    assert again.resolve("pages").digest == version.digest
    again.close()


def test_references_tags_and_history(store: Store, put_documents: Put) -> None:
    first, second = put_documents(store, "one"), put_documents(store, "two")
    store.tag("pages@1", "good")
    store.tag("pages@2", "good")
    assert store.resolve("pages@good").digest == second.digest
    assert store.resolve(first.digest[:8]).digest == first.digest
    store.untag("pages", "good")
    assert [move.digest for move in store.index.tag_history("pages")] == [first.digest, second.digest, None]
    with pytest.raises(NotFound):
        store.resolve("pages@good")


def test_run_is_written_and_rewritten(store: Store, put_documents: Put) -> None:
    source = put_documents(store, "one")
    run = Run(id="r1", group="g", step="s", stage="s", key="k", inputs={"source": source.digest}, started=now())
    store.index.put_run(run)
    assert store.index.find_runs(status="running") == [run]
    output = put_documents(store, "two", name="other")
    ended = run.model_copy(update={"status": "done", "output": output.digest, "ended": now()})
    stored, version = store.index.finish(ended, output, "made", ("best",))
    assert (stored.digest, version) == (output.digest, 1)
    assert [found.id for found in store.index.runs_given(source.digest)] == ["r1"]
    store.index.remove_artifact(output.digest)
    assert store.index.find_runs(key="k", status="done") == []


def test_two_processes_that_make_and_name_at_once_lose_nothing(tmp_path: Path, database: str) -> None:
    root = tmp_path / ".catena"
    command = [sys.executable, "-c", NAMES_AT_ONCE, str(root)]
    children = [
        subprocess.Popen([*command, who, database], stderr=subprocess.PIPE, text=True) for who in ("left", "right")
    ]
    for child in children:
        _, error = child.communicate()
        assert child.returncode == 0, error
    store = open_store(root)
    rows = store.index.versions("pages")
    assert [row.version for row in rows] == list(range(1, 21))
    assert len({row.digest for row in rows}) == 20
    store.close()


def test_locks_exclude_other_connections_and_end(store: Store) -> None:
    other = open_store(store.root)
    with store.lock("x"), other.lock("x", wait=False) as free:
        assert not free
    with store.lock("x", shared=True), other.lock("x", shared=True, wait=False) as free:
        assert free
        with other.lock("x", wait=False) as alone:
            assert not alone
    with other.lock("x", wait=False) as free:
        assert free
    other.close()


def test_gc_refuses_beside_a_run_and_fsck_finds_nothing(store: Store, put_documents: Put) -> None:
    put_documents(store, "one")
    with store.lock("gc", shared=True), pytest.raises(EnvironmentProblem):
        collect_garbage(store)
    assert collect_garbage(store).files == 0
    assert check(store) == []


def test_newer_schema_is_refused(store: Store) -> None:
    with store.index.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(WorkspaceTooNew):
        open_store(store.root)


def test_server_that_is_away_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="the index cannot be used"):
        init_store(tmp_path / ".catena", index_url="postgresql+psycopg://catena@127.0.0.1:1/none")


def test_versions_are_committed_merged_and_erased(store: Store, tmp_path: Path) -> None:
    put(store, BASE)
    versions.create_branch(store, "pages", "fix")
    versions.commit_file(store, "pages", edit(store, tmp_path, "pages@fix", retext("k01", "fix")), branch="fix")
    versions.commit_file(store, "pages", edit(store, tmp_path, "pages", retext("k02", "main")))
    assert versions.merge(store, "pages", "fix").status == "merged"
    erase(store, "pages", ids=["k03"])
    assert texts(store, "pages") == {k: v for k, v in {**BASE, "k01": "fix", "k02": "main"}.items() if k != "k03"}
    assert versions.verify(store, "pages") == []
