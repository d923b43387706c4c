"""Every collector, killed with SIGKILL in the middle of a batch and again before its end: nothing lost, nothing twice.

The API's and the crawl's requests after a kill are counted in `test_collect_api` and `test_crawl`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from catena.core.stage import Context
from catena.core.types import DatasetVersion
from catena.hub.store import Store

from . import (
    test_collect_feed as feeds,
    test_collect_hf as hf,
    test_collect_mediawiki as wikis,
    test_collect_warc as warc,
)
from .loopback import FAST, Asked, Reply, loopback
from .stores import run, samples
from .test_collect_sql import TABLE, put

FORKER = """
import json, os, signal, sys
from pathlib import Path
import orjson
from catena.core.config import parse
from catena.core.events import Events
from catena.core.stage import Context, stage_of
from catena.data.collect import cursor, journal
from catena.flow.table import STAGES
from catena.hub.datasets import DatasetWriter
from catena.hub.store import open_store

append, marks = journal.Journal._append, []

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def cut_short(self, lines):
    marks.extend(line for line in lines if "mark" in line)
    if len(marks) > 1:
        with self._path.open("ab") as stream:
            stream.write(orjson.dumps(lines[0]) + b"\\n" + orjson.dumps(lines[-1])[:-3])
        die()
    append(self, lines)

def work(root, name, values, where):
    cursor.BATCH_ITEMS = 2
    if where == "batch":
        journal.Journal._append = cut_short
    else:
        DatasetWriter.commit = die
    stage = stage_of(STAGES.load(name))
    context = Context(open_store(Path(root) / ".catena"), Path(root) / "workdir", 7, Events(), "test")
    stage.function(context, parse(stage.config, values))

for name in ("objects", "warc", "sql", "feed", "mediawiki", "hf", "api"):
    STAGES.load("data.collect_" + name)
for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            work(*json.loads(line))
        finally:
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

Dying = Callable[..., int]
"""Run a collector in a process that kills itself in the second batch, or before the version is made; its exit code."""


@pytest.fixture(scope="module")
def dying() -> Iterator[Dying]:
    """One interpreter that has everything imported, and forks for each run."""
    command = [sys.executable, "-c", FORKER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as forker:
        assert forker.stdin is not None
        assert forker.stdout is not None

        def run_dying(*job: Any) -> int:
            print(json.dumps(job), file=forker.stdin, flush=True)
            return int(forker.stdout.readline())  # type: ignore[union-attr]

        yield run_dying
        forker.stdin.close()


Source = Callable[[Path], Any]


@contextmanager
def folder(root: Path) -> Iterator[dict[str, Any]]:
    (root / "files").mkdir()
    for number in range(5):
        (root / "files" / f"{number}.txt").write_text(f"text {number}")
    yield {"url": str(root / "files")}


@contextmanager
def archives(root: Path) -> Iterator[dict[str, Any]]:
    for name in "ab":
        pages = [warc.record(f"http://{name}.test/{number}", b"<p>page</p>") for number in range(3)]
        warc.put(root / "warc" / f"{name}.warc", *pages)
    yield {"url": str(root / "warc")}


@contextmanager
def table(root: Path) -> Iterator[dict[str, Any]]:
    engine = sa.create_engine(f"sqlite:///{root / 'shop.db'}", poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text(TABLE))
    put(engine, *range(1, 8))
    engine.dispose()
    yield {"url": f"sqlite:///{root / 'shop.db'}", "table": "notes", "key": "id", "page_rows": 3, "cursor": "changed"}


@contextmanager
def two_feeds(root: Path) -> Iterator[dict[str, Any]]:
    bodies = {"/a": feeds.rss(*map(feeds.entry, range(3))), "/b": feeds.ATOM}
    with loopback(lambda asked: Reply(bodies[asked.path])) as server:
        yield {"urls": [server.url + "/a", server.url + "/b"], "http": FAST}


@contextmanager
def wiki(root: Path) -> Iterator[dict[str, Any]]:
    made = wikis.Wiki()
    for number in range(1, 8):
        made.edit(number, f"Page {number}", f"This is page {number}.", "2025-12-01T00:00:00Z")
    with loopback(made.answer) as server:
        yield wikis.values_of(server.url)


@contextmanager
def dump(root: Path) -> Iterator[dict[str, Any]]:
    (root / "wiki.xml").write_bytes(wikis.dump(*(wikis.page(number, f"Text {number}.") for number in range(1, 6))))
    yield {"dump": str(root / "wiki.xml"), "license": "CC-BY-SA-4.0"}


@contextmanager
def hub_folder(root: Path) -> Iterator[dict[str, Any]]:
    rows = {f"{name}.jsonl": hf.lines(*({"text": f"{name}{number}"} for number in range(3))) for name in "abc"}
    yield {"folder": hf.put(root / "corpus", rows)}


@contextmanager
def pages(root: Path) -> Iterator[dict[str, Any]]:
    def answer(asked: Asked) -> Reply:
        first = int(asked.query.get("page", 1))
        notes = [{"id": number, "text": f"note {number}"} for number in range(2 * first - 1, 2 * first + 1)]
        return Reply({"items": notes if first < 4 else []})

    with loopback(answer) as server:
        yield {"url": server.url, "records": "items", "paging": "page", "text": ["text"], "http": FAST}


COLLECTORS: dict[str, tuple[str, Source]] = {
    "objects": ("data.collect_objects", folder),
    "warc": ("data.collect_warc", archives),
    "sql": ("data.collect_sql", table),
    "feed": ("data.collect_feed", two_feeds),
    "mediawiki": ("data.collect_mediawiki", wiki),
    "dump": ("data.collect_mediawiki", dump),
    "hf": ("data.collect_hf", hub_folder),
    "api": ("data.collect_api", pages),
}


def rows(store: Store, version: DatasetVersion) -> list[tuple[str, Any]]:
    return [(sample.id, dict(sample.data)) for sample in samples(store, version)]


@pytest.mark.parametrize("name", COLLECTORS)
def test_killed_twice_a_collector_brings_every_row_once(
    context: Context, tmp_path: Path, dying: Dying, name: str
) -> None:
    stage, source = COLLECTORS[name]
    with source(tmp_path) as values:
        for where in ("batch", "end"):
            assert dying(str(tmp_path), stage, values, where) == -signal.SIGKILL
            assert (context.workdir / "collect" / "journal.jsonl").exists()
        version = run(context, stage, values)
        assert not list(context.workdir.iterdir())
        fresh = run(context, stage, values)  # it has no name yet: this is another first run
    assert version.rows > 2
    assert rows(context.store, version) == rows(context.store, fresh)
    assert max(Counter(key for key, _ in rows(context.store, version)).values()) == 1
