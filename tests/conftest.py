"""Fixtures that every test may use: an empty workspace, and a context for calling a stage by hand."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from catena.core.events import Events
from catena.core.stage import Context
from catena.hub.store import Store, init_store
from tests.chain import Chain, start
from tests.needs import cannot_be_had

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it puts into the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MiB. Where none can be mounted the test is skipped, and fails when CI is set."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "catena-test", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        cannot_be_had("a small disk cannot be mounted here: it needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The demo's chain with small numbers, run once by command line and left alone."""
    workspace = tmp_path_factory.mktemp("chain") / ".catena"
    return Chain(workspace, start(workspace).end())
