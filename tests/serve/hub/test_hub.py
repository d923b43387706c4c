"""The hub's wire protocol: what it refuses, and that nothing is lost or half there when it does."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from catena.hub.repo import pushing
from catena.hub.repo.records import inline_file
from catena.hub.repo.repos import Repos
from catena.hub.repo.tree import Add, Delete
from catena.hub.store import Store
from catena.serve.hub.config import HubConfig

from .asking import a_file, api as api, ask, commit, hub as hub


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


def test_a_folder_of_many_files_is_listed_at_once(hub: str, api: HfApi, store: Store) -> None:
    api.create_repo("org/m")
    added = tuple(Add(inline_file(f"data/{number % 3}/{number:05d}.txt", str(number))) for number in range(20_000))
    head = pushing.push(Repos(store), "model", "org/m", "main", pushing.Push(added))
    found = {item.path: item for item in api.list_repo_tree("org/m", recursive=True)}
    assert [*found] == [
        ".gitattributes",
        "data",
        *sorted([*(f"data/{n}" for n in range(3)), *(a.file.path for a in added)]),
    ]
    assert [item.path for item in api.list_repo_tree("org/m", "data")] == ["data/0", "data/1", "data/2"]
    [one, two] = api.get_paths_info("org/m", ["data/1/", "data/2/00002.txt", "data/9"])
    assert (one, two) == (found["data/1"], found["data/2/00002.txt"])
    pushing.push(Repos(store), "model", "org/m", "main", pushing.Push((Delete("data/1/00001.txt"),)))
    later = {item.path: item for item in api.list_repo_tree("org/m", "data")}
    changed = [path for path in later if repr(later[path]) != repr(found[path])]
    assert changed == ["data/1"]
    assert head.tree != Repos(store).commit("model", "org/m").tree


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
