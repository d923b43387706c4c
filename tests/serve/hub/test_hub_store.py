"""What clients push and pull, and the store: versions with lineage, cards, pickles, proposals, roles, erasure."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    RepositoryNotFoundError,
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

from .asking import a_file, api as api, ask, commit, hub as hub
from .conftest import put_dataset, put_model


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


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ("license: mit\nscore: .nan", {"license": "mit", "score": None}),
        ("license: mit\nself: 1\nignore_metadata_errors: 1", {"license": "mit"}),
        ("mask: 0x" + "f" * 5000, {"mask": None}),
        ("date: 2024-02-30", {}),
        ("date: !!timestamp soon", {}),
        ("a: &a [*a]", {}),
        ("a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrs")), {}),
        ('name: "\\ud800"', {"name": "?"}),
    ],
    ids=["no number", "words of the client", "long number", "no date", "no time", "loop", "bomb", "half a letter"],
)
def test_a_repository_is_read_whatever_its_readme_says(
    metadata: str, told: dict[str, Any], api: HfApi, hub: str
) -> None:
    api.create_repo("org/m")
    assert commit(hub, a_file("README.md", f"---\n{metadata}\n---\nhello\n".encode()))[0] == 200
    assert api.model_info("org/m").siblings
    assert json.loads(ask("GET", f"{hub}/api/models/org/m")[2])["cardData"] == told


@pytest.mark.parametrize(("said", "tags"), [("5", []), ("chat", ["chat"]), ("[chat, 5, zh]", ["chat", "zh"])])
def test_tags_of_a_readme_are_words(said: str, tags: list[str], api: HfApi, hub: str) -> None:
    api.create_repo("org/m")
    assert commit(hub, a_file("README.md", f"---\ntags: {said}\n---\n".encode()))[0] == 200
    assert api.model_info("org/m").tags == tags


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


def test_the_list_shows_main_whatever_happens_on_branches(api: HfApi, hub: str) -> None:
    def listed() -> tuple[int, str, list[str]]:
        [found] = json.loads(ask("GET", f"{hub}/api/datasets")[2])
        return found["usedStorage"], found["lastModified"], found["tags"]

    api.create_repo("org/d", repo_type="dataset")
    api.upload_file(path_or_fileobj=b"x" * 500, path_in_repo="a.txt", repo_id="org/d", repo_type="dataset")
    before = listed()
    api.create_branch("org/d", branch="side", repo_type="dataset")
    api.upload_file(
        path_or_fileobj=b"x" * 900, path_in_repo="b.txt", repo_id="org/d", repo_type="dataset", revision="side"
    )
    assert listed() == before
    api.delete_branch("org/d", branch="side", repo_type="dataset")
    assert listed() == before


def test_the_next_page_of_a_list_is_of_the_same_search(api: HfApi, hub: str) -> None:
    for name, tags in (("a", "[x, y]"), ("b", "[x]"), ("c", "[x, y]")):
        api.create_repo(f"org/{name}")
        assert commit(hub, a_file("README.md", f"---\ntags: {tags}\n---\n".encode()), repo=f"org/{name}")[0] == 200
    _, head, _ = ask("GET", f"{hub}/api/models?filter=pickle&filter=other&limit=1&search=")
    assert "link" not in head
    _, head, _ = ask("GET", f"{hub}/api/models?limit=1&full=&expand=a&expand=b&cursor=1")
    assert head["link"] == f'<{hub}/api/models?limit=1&full=&expand=a&expand=b&cursor=2>; rel="next"'


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
