"""Folders and object stores: new, changed and deleted files, from a disk, from memory, over HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import pytest

from catena.core.errors import ConfigError, NotFound, UsageError
from catena.core.stage import Context
from catena.data.collect.folder import matches
from catena.data.collect.objects import media_type_of

from .loopback import Asked, Reply, collect, counts, loopback, reasons


def contents(ctx: Context, version: Any) -> dict[str, bytes]:
    return {row.metadata["path"]: row.data["content"] for row in ctx.store.open_dataset(version).samples()}


def test_only_new_and_changed_files_are_read(context: Context, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("one")
    (folder / "sub" / "b.pdf").write_bytes(b"%PDF")
    first = collect(context, "data.collect_objects", url=str(folder), license="MIT")
    rows = list(context.store.open_dataset(first).samples())
    assert [(row.metadata["path"], row.data["media_type"]) for row in rows] == [
        ("a.txt", "text/plain"),
        ("sub/b.pdf", "application/pdf"),
    ]
    assert (rows[0].source, rows[0].license) == (f"file:{folder}/a.txt", "MIT")
    (folder / "a.txt").write_text("two!")
    (folder / "c.md").write_text("new")
    # If the old file were read again, it would now be unreadable.
    second = collect(context, "data.collect_objects", url=str(folder), license="MIT")
    assert counts(second) == {"changed": 1, "kept": 1, "new": 1}
    (folder / "sub" / "b.pdf").unlink()
    third = collect(context, "data.collect_objects", url=str(folder), license="MIT")
    assert contents(context, third) == {"a.txt": b"two!", "c.md": b"new"}
    assert reasons(context, third) == {"sub/b.pdf": "gone"}
    assert contents(context, first)["sub/b.pdf"] == b"%PDF"


def test_a_touched_file_with_the_same_bytes_makes_no_new_version(context: Context, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_text("one")
    first = collect(context, "data.collect_objects", url=str(tmp_path / "files"))
    os.utime(tmp_path / "files" / "a.txt", (1, 1))
    again = collect(context, "data.collect_objects", url=str(tmp_path / "files"))
    assert again.digest == first.digest


def test_files_that_cannot_be_taken_are_rejects_and_links_are_not_followed(context: Context, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "large.bin").write_bytes(b"x" * 1000)
    (folder / "empty.txt").touch()
    (folder / "good.txt").write_text("good")
    (tmp_path / "secret").write_text("not meant")
    (folder / "link.txt").symlink_to(tmp_path / "secret")
    version = collect(context, "data.collect_objects", url=str(folder), max_bytes=100)
    assert reasons(context, version) == {"empty.txt": "empty", "large.bin": "too_large"}
    assert contents(context, version) == {"good.txt": b"good"}


def test_one_run_may_be_cut_in_pieces(context: Context) -> None:
    memory = fsspec.filesystem("memory")
    for number in range(300):
        memory.pipe(f"/cut/{number:03d}.txt", b"%d" % number)
    first = collect(context, "data.collect_objects", url="memory://cut", max_records=100)
    second = collect(context, "data.collect_objects", url="memory://cut", max_records=100)
    assert (first.rows, second.rows) == (256, 300)
    memory.rm("/cut", recursive=True)


def test_files_come_over_http(context: Context) -> None:
    files = {"/files/a.txt": b"alpha", "/files/b.html": b"<p>b</p>"}
    listing = "".join(f'<a href="{path}">{path}</a>' for path in files)

    def answer(asked: Asked) -> Reply:
        if asked.path in files:
            return Reply(files[asked.path], headers={"ETag": f'"{len(files[asked.path])}"'})
        return Reply(listing, headers={"Content-Type": "text/html"}) if asked.path == "/files/" else Reply(status=404)

    with loopback(answer) as server:
        version = collect(context, "data.collect_objects", url=server.url + "/files/", glob="*.txt")
        assert contents(context, version) == {"a.txt": b"alpha"}
        assert next(iter(context.store.open_dataset(version).samples())).source == f"{server.url}/files/a.txt"
        server.asked.clear()
        again = collect(context, "data.collect_objects", url=server.url + "/files/", glob="*.txt")
        assert again.digest == version.digest
        files["/files/a.txt"] = b"other, longer"
        third = collect(context, "data.collect_objects", url=server.url + "/files/", glob="*.txt")
        assert counts(third) == {"changed": 1}


def test_a_wrong_address_or_a_listing_without_end_is_refused(context: Context, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        collect(context, "data.collect_objects", url=str(tmp_path / "nowhere"))
    with pytest.raises(UsageError):
        collect(context, "data.collect_objects", url="nosuch://x")
    for number in range(3):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(UsageError, match="more than 2 files"):
        collect(context, "data.collect_objects", url=str(tmp_path), glob="*.txt", max_files=2)


def test_secrets_of_a_store_come_from_the_environment(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORE_KEY", raising=False)
    with pytest.raises(ConfigError, match="STORE_KEY"):
        collect(context, "data.collect_objects", url="memory://x", secrets={"key": "STORE_KEY"})


@pytest.mark.parametrize(
    ("path", "glob", "taken"),
    [
        ("a/b/c.txt", "**", True),
        ("a/b/c.txt", "**/*.txt", True),
        ("c.txt", "**/*.txt", True),
        ("a/c.txt", "*.txt", False),
        ("a/b/c.txt", "a/*/c.*", True),
        ("a/b/c.txt", "b/**", False),
    ],
)
def test_a_star_stays_in_its_folder_and_two_cross_it(path: str, glob: str, taken: bool) -> None:
    assert matches(path, glob) is taken


def test_media_types_do_not_depend_on_the_machine() -> None:
    known = ["a.md", "b.jsonl", "c.PARQUET", "d.tar.gz", "e", "f.jpeg"]
    assert [media_type_of(name) for name in known] == [
        "text/markdown",
        "application/x-ndjson",
        "application/vnd.apache.parquet",
        "application/gzip",
        "application/octet-stream",
        "image/jpeg",
    ]
