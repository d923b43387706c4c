"""The stage `data.ingest`: which files, what is taken from the version before, and going on after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from catena.core.errors import ConfigError, NotFound
from catena.core.events import read_events
from catena.core.stage import Context
from catena.core.types import DatasetVersion
from tests.data import sample_files
from tests.data.stores import rejects, run, samples


def ingest(ctx: Context, *paths: str | Path, **values: Any) -> DatasetVersion:
    """Read, and name the result as the runner would."""
    made = run(replace(ctx, workers=1), "data.ingest", {"paths": [str(path) for path in paths], **values})
    ctx.store.index.add_artifact(made)
    ctx.store.index.add_name(ctx.name, made.digest)
    return made


def folder_of(tmp_path: Path, **files: str) -> Path:
    folder = tmp_path / "files"
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def texts(ctx: Context, made: DatasetVersion) -> dict[str, str]:
    return {row.source: row.text for row in samples(ctx.store, made)}


def metrics(ctx: Context, name: str) -> list[float]:
    path = ctx.events._path
    assert path is not None
    return [event["value"] for event in read_events(path) if event["event"] == "metric" and event["name"] == name]


def test_a_folder_a_glob_and_a_file_name_their_files_by_what_they_share(context: Context, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a_txt="one", sub__b_txt="two", sub__c_md="three")
    assert texts(context, ingest(context, folder)) == {"a.txt": "one", "sub/b.txt": "two", "sub/c.md": "three"}
    assert list(texts(context, ingest(context, folder / "**" / "*.txt"))) == ["a.txt", "sub/b.txt"]
    assert list(texts(context, ingest(context, folder / "sub" / "b.txt"))) == ["b.txt"]
    assert list(texts(context, ingest(context, folder / "a.txt", folder / "sub"))) == ["a.txt", "sub/b.txt", "sub/c.md"]


def test_where_the_folder_stands_does_not_matter(context: Context, tmp_path: Path) -> None:
    here = folder_of(tmp_path / "here", a_txt="one", b_jsonl='{"text": "x"}\nbad\n')
    there = folder_of(tmp_path / "there", a_txt="one", b_jsonl='{"text": "x"}\nbad\n')
    assert ingest(context, here).digest == ingest(context, there).digest


def test_a_path_without_files_is_named(context: Context, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path / "*.nothing", "memory://nowhere/at/all"):
        with pytest.raises(NotFound, match="there is no file at"):
            ingest(context, path)


def test_hidden_files_are_passed_over_and_links_that_lead_out_refused(context: Context, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("do not read")
    folder = folder_of(tmp_path, a_txt="one")
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "in.txt").symlink_to(folder / "a.txt")
    (folder / "out.txt").symlink_to(secret)
    (folder / "broken.txt").symlink_to(folder / "gone")
    (folder / "linked").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.txt")
    made = ingest(context, folder)
    assert texts(context, made) == {"a.txt": "one", "in.txt": "one"}
    assert {row.source: reason for row, reason, _ in rejects(context.store, made)} == {
        "broken.txt": "unreadable",
        "linked": "unsafe_path",
        "out.txt": "unsafe_path",
        "pipe.txt": "not_a_file",
    }


def test_a_second_run_reads_nothing_and_gives_the_same_dataset(context: Context, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a_txt="one", b_jsonl='{"text": "x"}\nbad\n', c_txt="three")
    first = ingest(context, folder)
    again = ingest(context, folder)
    assert again.digest == first.digest
    assert metrics(context, "files_read") == [3, 0]


def test_a_touched_file_is_not_read_again_but_a_changed_one_is(context: Context, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a_txt="one", b_jsonl='{"text": "x"}\nbad\n', c_txt="three", d_txt="four")
    ids = {row.source: row.id for row in samples(context.store, ingest(context, folder))}
    os.utime(folder / "a.txt", ns=(1, 1))
    (folder / "b.jsonl").write_text('{"text": "y"}\n')
    (folder / "c.txt").unlink()
    (folder / "e.txt").write_text("five")
    made = ingest(context, folder, license="MIT")
    assert texts(context, made) == {"a.txt": "one", "b.jsonl": "y", "d.txt": "four", "e.txt": "five"}
    assert {row.license for row in samples(context.store, made)} == {"MIT"}
    now = {row.source: row.id for row in samples(context.store, made)}
    assert (now["a.txt"], now["d.txt"]) == (ids["a.txt"], ids["d.txt"])
    assert now["b.jsonl"] != ids["b.jsonl"]
    assert made.rejects == 0
    assert metrics(context, "files_read") == [4, 2]


def test_another_way_of_reading_reads_again(context: Context, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a_json='{"text": "x", "title": "y"}')
    assert texts(context, ingest(context, folder)) == {"a.json": "x"}
    assert texts(context, ingest(context, folder, text_field="title")) == {"a.json": "y"}


def test_files_beyond_the_listed_are_told_by_their_content(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catena.data.ingest.LISTED", 1)
    folder = folder_of(tmp_path, a_txt="one", b_txt="two", c_bin="\0")
    first = ingest(context, folder)
    assert ingest(context, folder).digest == first.digest
    assert metrics(context, "files_read") == [3, 0]


def test_a_file_that_cannot_be_opened_or_is_too_large_is_a_reject(context: Context, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a_txt="one", b_txt="x" * 1000)
    made = ingest(context, folder, limits={"file_bytes": 100})
    assert [(row.source, reason) for row, reason, _ in rejects(context.store, made)] == [("b.txt", "too_large")]


def test_files_in_a_store_of_objects_are_read_and_told_by_their_stamp(context: Context) -> None:
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/a.txt", b"one")
    files.pipe_file("/bucket/sub/b.zip", sample_files.zipped({"c.txt": "two"}))
    try:
        made = ingest(context, "memory://bucket")
        assert texts(context, made) == {
            "memory:///bucket/a.txt": "one",
            "memory:///bucket/sub/b.zip!/c.txt": "two",
        }
        assert ingest(context, "memory://bucket").digest == made.digest
        assert metrics(context, "files_read") == [2, 0]
        small = ingest(context, "memory://bucket/*.txt", limits={"file_bytes": 2})
        assert [reason for _, reason, _ in rejects(context.store, small)] == ["too_large"]
    finally:
        files.rm("/bucket", recursive=True)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A folder behind a real HTTP server on loopback."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_file_behind_http_is_read(context: Context, served: tuple[str, Path]) -> None:
    address, folder = served
    (folder / "a.csv").write_text("text\nover the wire\n")
    made = ingest(context, f"{address}/a.csv")
    assert texts(context, made) == {f"{address}/a.csv": "over the wire"}


def test_a_password_in_an_address_and_an_unknown_format_are_refused(context: Context) -> None:
    with pytest.raises(ConfigError, match="holds a password"):
        ingest(context, "ftp://me:hunter2@host/file.txt")
    with pytest.raises(ConfigError, match="Did you mean 'jsonl'"):
        ingest(context, "x", formats=["jsnl"])


def test_progress_tells_files_and_megabytes_a_second(context: Context, tmp_path: Path) -> None:
    ingest(context, folder_of(tmp_path, a_txt="one"))
    assert context.events._path is not None
    events = [event for event in read_events(context.events._path) if event["event"] == "progress"]
    assert any(event["label"] == "Read" and event["unit"] == "files" and "mb_per_s" in event for event in events)


KILLED = """
import sys
from pathlib import Path
from catena.core.events import Events
from catena.core.stage import Context
from catena.hub.store import open_store
from tests.data.stores import run
root, work, files = map(Path, sys.argv[1:])
run(Context(open_store(root), work, 7, Events(), "test", workers=2), "data.ingest", {"paths": [str(files)]})
"""


def test_a_run_that_was_killed_goes_on_where_it_was(context: Context, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, **{f"{number:04d}_txt": f"text {number}" for number in range(600)})
    whole = run(context, "data.ingest", {"paths": [str(folder)]})
    journal = context.workdir / "ingest" / "done.jsonl"
    command = [sys.executable, "-c", KILLED, str(context.store.root), str(context.workdir), str(folder)]
    other = subprocess.Popen(command, cwd=Path(__file__).parent.parent.parent)
    deadline = time.monotonic() + 30
    while (not journal.exists() or journal.read_bytes().count(b"\n") < 20) and time.monotonic() < deadline:
        time.sleep(0.005)
    other.send_signal(signal.SIGKILL)
    other.wait()
    done = journal.read_bytes().count(b"\n")
    assert 20 <= done < 600
    with journal.open("ab") as stream:
        stream.write(b'\n{"name": "0599.txt", "sha2')  # a line that the kill cut short
    made = run(context, "data.ingest", {"paths": [str(folder)]})
    assert made.digest == whole.digest
    assert metrics(context, "files_read")[-1] <= 600 - done + 2
    assert not journal.exists()
