"""The hub over an index in PostgreSQL and bytes in S3: pushed, pulled, killed, and S3 away."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
from huggingface_hub import CommitOperationAdd, constants, snapshot_download
from sqlalchemy import create_engine, text

from catena.cli.main import run
from catena.core.types import DatasetVersion, ModelVersion
from catena.hub.fsck import check, collect_garbage
from catena.hub.store import init_store, open_store
from catena.models.tokenizer import train_tokenizer
from tests.data.s3_server import BUCKET, ObjectServer, object_server
from tests.serve.hub.conftest import put_dataset, put_model, running

s3fs = pytest.importorskip("s3fs")
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """An S3 server, and the environment in which our own and the hub's process find it."""
    with object_server() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        s3fs.S3FileSystem.clear_instance_cache()  # it remembers the server of the test before
        yield server


@pytest.fixture
def workspace(tmp_path: Path, postgres_url: str, bucket: ObjectServer) -> Path:
    """A workspace with a model and a dataset in it, and nothing of the model on this disk."""
    engine = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    name = f"hub{uuid.uuid4().hex[:10]}"
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    index = postgres_url.removesuffix("/postgres") + f"/{name}"
    store = init_store(tmp_path / ".catena", index_url=index, files_url=f"s3://{BUCKET}/objects")
    try:
        put_model(store, train_tokenizer(["what does the function do " * 20], 300))
        put_dataset(store)
    finally:
        store.close()
    assert not list((tmp_path / ".catena" / "objects").glob("*"))
    return tmp_path / ".catena"


def test_pushed_pulled_killed_and_away(
    workspace: Path, bucket: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    large = bytes(range(256)) * (1 << 13)  # by Git LFS; the rest inside the commit
    options = ("--set", "hub.inline_bytes=1048576")
    with running(workspace, *options) as server:
        api = server.api()
        folder = Path(snapshot_download("team/tiny", endpoint=server.url, token=False, local_dir=tmp_path / "tiny"))
        api.create_repo("team/pushed")
        api.upload_folder(folder_path=folder, repo_id="team/pushed", ignore_patterns=".cache/*")
        operations = [CommitOperationAdd("large.bin", large), CommitOperationAdd("notes.txt", b"hello")]
        api.create_commit("team/pushed", operations, commit_message="a large one")
        server.kill()
    with running(workspace, *options) as server:
        api = server.api()
        again = Path(snapshot_download("team/pushed", endpoint=server.url, token=False, local_dir=tmp_path / "again"))
        assert (again / "large.bin").read_bytes() == large
        for file in ("model.safetensors", "config.json"):
            assert (again / file).read_bytes() == (folder / file).read_bytes()
        rows = api.hf_hub_download("team/pages", "data/train-00000-of-00001.parquet", repo_type="dataset")
        assert Path(rows).stat().st_size > 0

        other = tmp_path / "other" / ".catena"
        init_store(other).close()
        here = ("-w", str(other), "--hub", server.url)
        assert run(["hub", "pull", "team/pushed", *here]) == 0
        assert run(["hub", "pull", "team/pages", "--type", "dataset", *here]) == 0
        assert run(["hub", "push", "team/pages", "--as", "copies/pages", *here]) == 0

        bucket.die()  # what is in S3 cannot be read or written; what is in the index still can
        assert {model.id for model in api.list_models()} == {"team/tiny", "team/pushed"}
        wanted = {"operation": "upload", "objects": [{"oid": "ab" * 32, "size": 3}]}
        with httpx.Client(trust_env=False) as client:
            refused = client.post(f"{server.url}/team/pushed.git/info/lfs/objects/batch", json=wanted)
        assert refused.status_code == 503
        assert "store of files" in refused.json()["error"]
        assert "new.bin" not in api.list_repo_files("team/pushed")


def test_what_lies_there_is_whole_and_leftovers_go(workspace: Path, bucket: ObjectServer, tmp_path: Path) -> None:
    with running(workspace) as server:
        api = server.api()
        api.create_repo("team/files")
        api.upload_file(path_or_fileobj=b"kept " * 1000, path_in_repo="kept.txt", repo_id="team/files")
    bucket.put("objects/ab/" + "ab" * 32 + ".12345678.part", b"what a killed upload left")
    store = open_store(workspace)
    try:
        assert check(store) == []
        assert len(collect_garbage(store).paths) >= 1
        model = store.resolve("team/tiny", ModelVersion)
        assert store.checkout(model).joinpath("model.safetensors").exists()
        assert store.resolve("team/pages", DatasetVersion).rows == 6
    finally:
        store.close()
    with running(workspace) as server:
        found = server.api().hf_hub_download("team/files", "kept.txt", local_dir=tmp_path / "files")
        assert Path(found).read_bytes() == b"kept " * 1000
