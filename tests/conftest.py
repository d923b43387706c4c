"""Fixtures that every test may use: an empty workspace, and a context for calling a stage by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.nodeid import NodeId

from catena.core.events import Events
from catena.core.stage import Context
from catena.hub.store import Store, init_store
from tests.chain import Chain, start


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let `--dist loadgroup` keep tests of one `xdist_group` on one worker.

    It goes by an "@group" at the end of a test's id, which pytest-xdist 3.8 writes where pytest 9.2 does not read it.
    """
    if getattr(config.option, "loadgroup", False):
        for item in items:
            group = item.get_closest_marker("xdist_group")
            if group is not None and "@" not in item.nodeid.rpartition("]")[2]:
                item._id = NodeId.parse(f"{item.nodeid}@{group.args[0]}")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty workspace."""
    opened = init_store(tmp_path / ".catena")
    yield opened
    opened.close()


@pytest.fixture
def context(store: Store, tmp_path: Path) -> Context:
    """What a stage is handed; its events go to `events.jsonl`."""
    workdir = tmp_path / "workdir"
    workdir.mkdir()
    return Context(store, workdir, 7, Events(tmp_path / "events.jsonl"), "test")


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The demo's chain with small numbers, run once by command line and left alone."""
    workspace = tmp_path_factory.mktemp("chain") / ".catena"
    return Chain(workspace, start(workspace).end())
