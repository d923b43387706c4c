"""Object stores as they are: what is collected, read and kept over S3's own protocol, from a server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import fsspec
import pytest

from catena.core.errors import IntegrityError, NotFound, RemoteError
from catena.core.stage import Context
from catena.hub.store import init_store

from .loopback import collect, counts, reasons
from .s3_server import BUCKET, ObjectServer, object_server
from .stores import run, samples


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    with object_server() as running:
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield running
        fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_only_what_changed_on_s3_is_read_again_and_what_is_deleted_goes(server: ObjectServer, context: Context) -> None:
    server.put("reports/a.txt", b"one")
    server.put("reports/2026/b.pdf", b"%PDF")
    server.put("elsewhere/c.txt", b"not asked for")
    given = {"url": f"s3://{BUCKET}/reports", "license": "MIT"}
    first = collect(context, "data.collect_objects", **given)
    rows = samples(context.store, first)
    assert [(row.source, row.data["content"]) for row in rows] == [
        (f"s3://{BUCKET}/reports/2026/b.pdf", b"%PDF"),
        (f"s3://{BUCKET}/reports/a.txt", b"one"),
    ]
    assert collect(context, "data.collect_objects", **given).digest == first.digest
    server.put("reports/a.txt", b"two")
    server.delete("reports/2026/b.pdf")
    second = collect(context, "data.collect_objects", **given)
    assert counts(second) == {"changed": 1, "gone": 1}
    assert reasons(context, second) == {"2026/b.pdf": "gone"}
    assert [row.data["content"] for row in samples(context.store, second)] == [b"two"]


def test_the_server_and_its_keys_may_stand_in_the_config_instead(
    server: ObjectServer, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.put("a.txt", b"one")
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("STORE_KEY", "somebody")
    monkeypatch.setenv("STORE_SECRET", "a secret")
    made = collect(
        context,
        "data.collect_objects",
        url=f"s3://{BUCKET}",
        options={"endpoint_url": server.url},
        secrets={"key": "STORE_KEY", "secret": "STORE_SECRET"},
    )
    assert [row.data["content"] for row in samples(context.store, made)] == [b"one"]
    assert "a secret" not in made.model_dump_json()


def test_a_bucket_that_is_not_there_and_a_server_that_died_are_told(server: ObjectServer, context: Context) -> None:
    with pytest.raises(NotFound):
        collect(context, "data.collect_objects", url="s3://nowhere/reports")
    server.put("a.txt", b"one")
    server.die()
    with pytest.raises(RemoteError, match="cannot be read"):
        collect(context, "data.collect_objects", url=f"s3://{BUCKET}")


def test_files_on_s3_are_ingested_by_address(server: ObjectServer, context: Context) -> None:
    server.put("docs/one.md", "# Über\n\nText.".encode())
    server.put("docs/two.jsonl", b'{"text": "first"}\n{"text": \n{"text": "third"}\n')
    made = run(context, "data.ingest", {"paths": [f"s3://{BUCKET}/docs"]})
    assert [row.text for row in samples(context.store, made)] == ["# Über\n\nText.", "first", "third"]
    assert made.rejects == 1


def test_the_files_of_a_workspace_may_stand_on_s3(server: ObjectServer, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"w" * 100_000)
    with closing(init_store(tmp_path / ".catena", files_url=f"s3://{BUCKET}/objects")) as store:
        (file,) = store.files.put_folder(folder)
        again = store.files.put_folder(folder)
        assert again == (file,)
        laid = store.files.checkout((file,), tmp_path / "out")
        assert (laid / "weights.bin").read_bytes() == b"w" * 100_000
        assert list(store.files.all()) == [(file.sha256, 100_000)]
        key = f"objects/{file.sha256[:2]}/{file.sha256}"
        server.put(key, b"x" * 100_000)
        assert store.files.damage(file) == "has other bytes than were stored"
        with pytest.raises(IntegrityError, match=r"weights\.bin"):
            store.files.checkout((file,), tmp_path / "second")
        server.delete(key)
        assert store.files.damage(file) == "is missing"
