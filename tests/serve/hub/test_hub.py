"""The hub's wire protocol: what it refuses, and that nothing is lost or half there when it does."""

from __future__ import annotations

import base64
import hashlib
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from catena.core.types import ModelVersion, Report
from catena.govern.access import Access
from catena.govern.config import AuthConfig
from catena.govern.crypto import open_signer
from catena.govern.keys import Keys
from catena.hub.fsck import collect_garbage
from catena.hub.lineage import trace
from catena.hub.store import Store
from catena.serve.hub.app import build_hub
from catena.serve.hub.config import HubConfig
from catena.serve.server import background

from .conftest import put_dataset, put_model


@pytest.fixture
def hub(store: Store) -> Iterator[str]:
    """The address of a hub over an empty workspace, in this process."""
    with background(build_hub(store, HubConfig(inline_bytes=1 << 20))) as url:
        yield url


@pytest.fixture
def api(hub: str) -> HfApi:
    """The official client."""
    return HfApi(endpoint=hub, token=False)


def ask(method: str, url: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, data=body, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, {key.lower(): value for key, value in answer.headers.items()}, answer.read()
    except HTTPError as error:
        with error:
            return error.code, {key.lower(): value for key, value in error.headers.items()}, error.read()


def commit(url: str, *lines: dict[str, Any], repo: str = "org/m", branch: str = "main") -> tuple[int, str]:
    header = {"key": "header", "value": {"summary": "by hand"}}
    body = b"".join(json.dumps(line).encode() + b"\n" for line in (header, *lines))
    status, _, answer = ask("POST", f"{url}/api/models/{repo}/commit/{branch}", body, **{"Content-Type": "x-ndjson"})
    return status, answer.decode()


def a_file(path: str, data: bytes = b"x") -> dict[str, Any]:
    content = base64.b64encode(data).decode()
    return {"key": "file", "value": {"content": content, "path": path, "encoding": "base64"}}


@pytest.mark.parametrize(
    "path", ["../up", "a/../../b", "/etc/passwd", "a//b", ".git/config", "a\\b", "a/./b", "", "a\x00b"]
)
def test_paths_that_lead_elsewhere_are_refused(hub: str, api: HfApi, path: str) -> None:
    api.create_repo("org/m")
    status, answer = commit(hub, a_file("fine"), a_file(path))
    assert status == 400
    assert "not a path" in answer
    assert api.list_repo_files("org/m") == [".gitattributes"]


@pytest.mark.parametrize("name", ["..", "a/..", "../a", "a/b/c", "a--b", "a/b.git", "-a", "a b", "."])
def test_names_that_are_none_are_refused(hub: str, name: str) -> None:
    status, _, answer = ask("POST", f"{hub}/api/repos/create", json.dumps({"name": name}).encode())
    assert status == 400, answer
    status, _, _ = ask("GET", f"{hub}/api/models/{urllib.request.quote(name, safe='')}/tree/main")
    assert status == 404


def test_a_commit_that_names_absent_files_is_refused_whole(hub: str, api: HfApi) -> None:
    api.create_repo("org/m")
    oid = hashlib.sha256(b"never sent").hexdigest()
    absent = {"key": "lfsFile", "value": {"path": "w.bin", "algo": "sha256", "oid": oid, "size": 10}}
    status, answer = commit(hub, a_file("fine"), absent)
    assert status == 404
    assert "not here" in answer
    for line in ({"key": "deletedFile", "value": {"path": "no"}}, {"key": "deletedFolder", "value": {"path": "no"}}):
        assert commit(hub, a_file("fine"), line)[0] == 404
    assert api.list_repo_files("org/m") == [".gitattributes"]


@pytest.mark.parametrize(
    "line",
    [
        {"key": "file", "value": {"content": "!!!!", "path": "a", "encoding": "base64"}},
        {"key": "file", "value": {"content": "abc", "path": "a", "encoding": "base64"}},
        {"key": "file", "value": {"content": "A" * 100_000 + "=AAA", "path": "a", "encoding": "base64"}},
        {"key": "file", "value": {"path": "a"}},
        {"key": "lfsFile", "value": {"path": "a", "oid": "../../../etc/passwd", "size": 1}},
        {"key": "nothing", "value": {}},
        {"key": "file"},
    ],
)
def test_what_is_no_commit_is_refused(hub: str, api: HfApi, line: dict[str, Any]) -> None:
    api.create_repo("org/m")
    status, answer = commit(hub, line)
    assert status == 400, answer
    assert api.list_repo_files("org/m") == [".gitattributes"]


def test_a_commit_that_breaks_off_is_refused(hub: str, api: HfApi, store: Store) -> None:
    api.create_repo("org/m")
    body = b'{"key":"header","value":{"summary":"s"}}\n{"key":"file","value":{"content":"' + b"QUJD" * 50_000
    status, _, answer = ask("POST", f"{hub}/api/models/org/m/commit/main", body)
    assert status == 400
    assert b"middle of a file" in answer
    assert api.list_repo_files("org/m") == [".gitattributes"]
    assert not list((store.root / "work").iterdir())


@pytest.mark.parametrize("step", [1, 7, 4096, 1 << 20])
def test_a_commit_is_read_in_pieces_of_any_size(hub: str, api: HfApi, store: Store, step: int) -> None:
    from catena.serve.hub.ndjson import CommitBody

    data = bytes(range(256)) * (40 if step < 100 else 4000)
    lines = [
        {"key": "header", "value": {"summary": "s"}},
        a_file("a", data),
        a_file("b/c", data[:-1]),
        a_file("e", b""),
    ]
    text = "\n".join(json.dumps(line) for line in lines).encode()
    body = CommitBody(store, HubConfig(), lambda path, revision: pytest.fail("no copies"))
    for start in range(0, len(text), step):
        body.feed(text[start : start + step])
    body.finish()
    added = {one.file.path: one.file.sha256 for one in body.operations}
    assert added == {
        path: hashlib.sha256(part).hexdigest() for path, part in (("a", data), ("b/c", data[:-1]), ("e", b""))
    }


def test_uploads_are_checked_against_size_and_digest(hub: str, api: HfApi, store: Store) -> None:
    api.create_repo("org/m")
    data = b"weights" * 1000
    oid = hashlib.sha256(data).hexdigest()
    asked = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": oid, "size": len(data)}]}
    status, _, answer = ask("POST", f"{hub}/org/m.git/info/lfs/objects/batch", json.dumps(asked).encode())
    actions = json.loads(answer)["objects"][0]["actions"]
    assert status == 200
    where = actions["upload"]["href"]
    assert ask("PUT", where, data[:-1])[0] == 400
    assert ask("PUT", where, data[::-1])[0] == 400
    assert ask("PUT", where, data + b"x")[0] == 413
    assert ask("PUT", where.replace("size=", "size=1"), data)[0] == 403
    assert ask("PUT", where.partition("?")[0], data)[0] == 403
    assert not store.files.has(oid)
    named = json.dumps({"oid": oid, "size": len(data)}).encode()
    assert ask("POST", actions["verify"]["href"], named)[0] == 404
    assert ask("PUT", where, data)[0] == 200
    assert ask("POST", actions["verify"]["href"], named)[0] == 200
    again = json.loads(ask("POST", f"{hub}/org/m.git/info/lfs/objects/batch", json.dumps(asked).encode())[2])
    assert "actions" not in again["objects"][0]
    assert commit(hub, {"key": "lfsFile", "value": {"path": "w", "oid": oid, "size": 3}})[0] == 400
    assert commit(hub, {"key": "lfsFile", "value": {"path": "w", "oid": oid, "size": len(data)}})[0] == 200


def test_ranges_and_conditions(hub: str, api: HfApi) -> None:
    api.create_repo("org/m")
    data = bytes(range(256)) * 8192
    api.upload_file(path_or_fileobj=data[:1000], path_in_repo="small", repo_id="org/m")
    where = f"{hub}/org/m/resolve/main/small"
    status, head, body = ask("HEAD", where)
    assert (status, head["content-length"], head["accept-ranges"], body) == (200, "1000", "bytes", b"")
    assert len(head["x-repo-commit"]) == 40
    status, found, body = ask("GET", where, Range="bytes=10-19")
    assert (status, found["content-range"], body) == (206, "bytes 10-19/1000", data[10:20])
    assert ask("GET", where, Range="bytes=990-")[2] == data[990:1000]
    assert ask("GET", where, Range="bytes=-5")[2] == data[995:1000]
    assert ask("GET", where, Range="bytes=1000-")[0] == 416
    assert ask("GET", where, Range="bytes=1-2,4-5")[2] == data[:1000]
    assert ask("GET", where, **{"If-None-Match": head["etag"]})[0] == 304
    assert ask("GET", where, Range="bytes=1-2", **{"If-Range": '"other"'})[2] == data[:1000]
    assert ask("POST", where, b"")[0] == 405


def test_absent_things_are_named_as_clients_expect(api: HfApi, tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/none")
    api.create_repo("org/m")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/m", revision="none")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("org/m", "none.txt", endpoint=api.endpoint, cache_dir=tmp_path, token=False)
    assert list((tmp_path / "models--org--m" / ".no_exist").rglob("none.txt"))
    with pytest.raises(HfHubHTTPError, match="already"):
        api.create_repo("org/m")
    assert api.create_repo("org/m", exist_ok=True).repo_id == "org/m"
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="org/m", revision="none")
    with pytest.raises(HfHubHTTPError, match="moved on"):
        api.create_commit("org/m", [CommitOperationAdd("x", b"x")], commit_message="m", parent_commit="1" * 40)


def test_a_large_file_without_xet_is_refused_in_words_that_help(api: HfApi, tmp_path: Path) -> None:
    api.create_repo("org/m")
    (tmp_path / "large.bin").write_bytes(bytes(2 << 20))
    with pytest.raises(Exception, match="HF_HUB_DISABLE_XET=1"):
        api.upload_file(path_or_fileobj=tmp_path / "large.bin", path_in_repo="large.bin", repo_id="org/m")
    assert api.list_repo_files("org/m") == [".gitattributes"]


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own
def test_a_download_that_broke_off_goes_on(api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    api.create_repo("org/m")
    data = bytes(range(256)) * (12 << 12)
    api.upload_file(path_or_fileobj=data, path_in_repo="large.bin", repo_id="org/m")
    digest = hashlib.sha256(data).hexdigest()
    blobs = tmp_path / "models--org--m" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{digest}.incomplete").write_bytes(data[: 5 << 20])
    found = hf_hub_download("org/m", "large.bin", endpoint=api.endpoint, cache_dir=tmp_path, token=False)
    assert Path(found).read_bytes() == data


def test_a_pushed_model_is_a_version_with_lineage(api: HfApi, store: Store, tokenizer: Any, tmp_path: Path) -> None:
    model = put_model(store, tokenizer)
    folder = store.checkout(model)
    api.create_repo("org/m")
    api.upload_folder(folder_path=folder, repo_id="org/m", ignore_patterns="*.safetensors")
    assert store.index.versions(name="org/m") == []
    api.upload_folder(folder_path=folder, repo_id="org/m", commit_message="all of it")
    pushed = store.resolve("org/m", ModelVersion)
    assert (pushed.form, pushed.parameters, pushed.dtype) == ("full", model.parameters, model.dtype)
    readme = b"---\nlicense: mit\n---\nhello\n"
    api.upload_file(path_or_fileobj=readme, path_in_repo="README.md", repo_id="org/m")
    second = store.resolve("org/m@2", ModelVersion)
    assert second.license == "mit"
    stages = [node.label for node in trace(store, second, down=False).nodes if node.kind == "run"]
    assert stages == ["hub.push", "hub.push"]
    api.create_tag("org/m", tag="good")
    assert store.resolve("org/m@good").digest == second.digest
    assert api.model_info("org/m", revision="1").sha != api.model_info("org/m", revision="good").sha
    collect_garbage(store)
    assert store.checkout(second).joinpath("README.md").read_bytes() == readme


def test_weights_that_are_not_whole_are_no_model(api: HfApi, store: Store) -> None:
    api.create_repo("org/m")
    head = b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    broken = len(head).to_bytes(8, "little") + head + bytes(8)
    with pytest.raises(HfHubHTTPError, match="no whole safetensors file"):
        api.create_commit(
            "org/m",
            [CommitOperationAdd("config.json", b"{}"), CommitOperationAdd("model.safetensors", broken)],
            commit_message="m",
        )
    assert api.list_repo_files("org/m") == [".gitattributes"]
    assert store.index.versions(name="org/m") == []


def test_pickles_are_flagged_or_refused(api: HfApi, store: Store) -> None:
    import pickle

    api.create_repo("org/m")
    api.upload_file(path_or_fileobj=pickle.dumps({"a": 1}), path_in_repo="weights.bin", repo_id="org/m")
    assert "pickle" in api.model_info("org/m").tags
    [entry] = api.get_paths_info("org/m", "weights.bin", expand=True)
    assert entry.security is not None
    assert not entry.security.safe
    assert [found.id for found in api.list_models(filter="pickle")] == ["org/m"]
    with background(build_hub(store, HubConfig(safetensors_only=True))) as url:
        strict = HfApi(endpoint=url, token=False)
        with pytest.raises(BadRequestError, match="safetensors"):
            strict.upload_file(path_or_fileobj=pickle.dumps([1]), path_in_repo="other.txt", repo_id="org/m")


def test_a_card_tells_what_the_store_knows_and_follows_it(api: HfApi, store: Store, tokenizer: Any) -> None:
    from catena.core.types import Score

    model = put_model(store, tokenizer)
    first = api.model_info("team/tiny")
    assert first.card_data is not None
    assert first.card_data.license == "apache-2.0"
    report = store.put_report(model, "unit", {"accuracy": Score(value=0.5, low=0.4, high=0.6, n=10)})
    assert isinstance(store.index.add_artifact(report), Report)
    second = api.model_info("team/tiny")
    assert second.sha != first.sha
    assert second.card_data.eval_results[0].metric_value == 0.5
    assert api.model_info("team/tiny", revision=first.sha).sha == first.sha
    assert [found.title for found in api.list_repo_commits("team/tiny")] == ["card: what is known now", "version 1"]


def test_rows_of_the_store_are_not_changed_by_files(api: HfApi, store: Store) -> None:
    put_dataset(store)
    files = api.list_repo_files("team/pages", repo_type="dataset")
    assert files == ["README.md", "data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"]
    with pytest.raises(BadRequestError, match="catena data commit"):
        api.create_commit("team/pages", [CommitOperationDelete(files[1])], commit_message="m", repo_type="dataset")
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="README.md", repo_id="team/pages", repo_type="dataset")
    assert len(api.list_repo_files("team/pages", repo_type="dataset")) == 3
    with pytest.raises(HfHubHTTPError, match="is a dataset"):
        api.create_repo("team/pages")


def test_a_proposal_moves_nothing_until_it_is_accepted(api: HfApi) -> None:
    api.create_repo("org/m")
    made = api.upload_file(path_or_fileobj=b"new", path_in_repo="a.txt", repo_id="org/m", create_pr=True)
    assert (made.pr_num, made.pr_revision) == (1, "refs/pr/1")
    assert api.list_repo_files("org/m") == [".gitattributes"]
    api.upload_file(path_or_fileobj=b"more", path_in_repo="b.txt", repo_id="org/m", revision="refs/pr/1")
    assert api.list_repo_files("org/m", revision="refs/pr/1") == [".gitattributes", "a.txt", "b.txt"]
    api.upload_file(path_or_fileobj=b"meanwhile", path_in_repo="c.txt", repo_id="org/m")
    pulls = api.list_repo_refs("org/m", include_pull_requests=True).pull_requests
    assert pulls is not None
    assert [pull.ref for pull in pulls] == ["refs/pr/1"]
    status, _, _ = ask("POST", f"{api.endpoint}/api/models/org/m/discussions/1/merge", b"{}")
    assert status == 200
    assert api.list_repo_files("org/m") == [".gitattributes", "a.txt", "b.txt", "c.txt"]


def test_a_deleted_repository_is_gone_and_its_versions_stay_by_digest(api: HfApi, store: Store, tokenizer: Any) -> None:
    model = put_model(store, tokenizer)
    store.tag("team/tiny@1", "production")
    api.delete_repo("team/tiny")
    assert not api.repo_exists("team/tiny")
    assert store.resolve(model.digest).digest == model.digest
    put_model(store, tokenizer)
    assert [row.version for row in store.index.versions(name="team/tiny")] == [2]
    assert store.index.tags("team/tiny") == {}


def test_roles_keys_and_privacy(store: Store) -> None:
    keys, roles = Keys(store.index), ("admin", "developer", "user")
    tokens = {role: keys.create(role, role)[0] for role in roles}
    only = keys.create("only", "developer", models=("mine/*",))[0]
    access = Access(keys.all, store.root, open_signer(store.root), AuthConfig(on=True)).open()
    try:
        with background(build_hub(store, HubConfig(public=True), access=access)) as url:
            apis = {role: HfApi(endpoint=url, token=token) for role, token in (*tokens.items(), ("only", only))}
            anybody = HfApi(endpoint=url, token=False)
            apis["developer"].create_repo("org/m")
            apis["developer"].create_repo("org/secret", private=True)
            assert apis["user"].model_info("org/secret").private
            assert anybody.model_info("org/m").id == "org/m"
            assert [found.id for found in anybody.list_models()] == ["org/m"]
            with pytest.raises(RepositoryNotFoundError):
                anybody.model_info("org/secret")
            with pytest.raises(RepositoryNotFoundError):
                apis["only"].model_info("org/m")
            assert list(apis["only"].list_models()) == []
            with pytest.raises(RepositoryNotFoundError):
                apis["only"].create_repo("org/theirs")
            apis["only"].create_repo("mine/own")
            for asker, work in (
                ("user", lambda api: api.create_repo("org/x")),
                ("user", lambda api: api.upload_file(path_or_fileobj=b"", path_in_repo="a", repo_id="org/m")),
                ("developer", lambda api: api.delete_repo("org/m")),
            ):
                with pytest.raises(HfHubHTTPError, match="403"):
                    work(apis[asker])
            with pytest.raises(HfHubHTTPError, match="Invalid user token"):
                HfApi(endpoint=url, token="ctn_000000000000_" + "x" * 43).whoami()
            assert apis["user"].whoami()["name"] == "user"
            apis["admin"].delete_repo("org/m")
            assert not apis["admin"].repo_exists("org/m")
    finally:
        access.close()


def test_erased_rows_leave_the_copies_for_clients_too(api: HfApi, store: Store) -> None:
    from catena.hub.erase import erase

    put_dataset(store)
    before = api.dataset_info("team/pages").sha
    assert list((store.root / "exports").rglob("*.parquet"))
    erase(store, "team/pages", ids=["page-3"])
    assert not (store.root / "exports").exists()
    after = api.dataset_info("team/pages").sha
    assert after != before
    table = hf_hub_download(
        "team/pages",
        "data/train-00000-of-00001.parquet",
        repo_type="dataset",
        endpoint=api.endpoint,
        token=False,
        cache_dir=store.root / "cache",
    )
    import pyarrow.parquet as parquet

    assert parquet.read_table(table)["_id"].to_pylist() == ["page-0", "page-1", "page-2", "page-4"]
