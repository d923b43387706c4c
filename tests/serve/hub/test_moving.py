"""`move_repo`: all goes along in one transaction, the old name leads to the new one, bad renames change nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, RepositoryNotFoundError

from catena.cli.main import run
from catena.core.types import DatasetVersion, ModelVersion
from catena.hub import versions
from catena.hub.fsck import collect_garbage
from catena.hub.repo.moving import rename
from catena.hub.repo.records import RepoKind
from catena.hub.repo.repos import RepoNotFound, Repos
from catena.hub.store import Store
from catena.serve.hub.app import build_hub
from catena.serve.hub.config import HubConfig
from catena.serve.server import background

from .conftest import put_dataset, put_model


@pytest.fixture
def api(store: Store) -> Iterator[HfApi]:
    """The official client of a hub over an empty workspace."""
    with background(build_hub(store, HubConfig(inline_bytes=1 << 20))) as url:
        yield HfApi(endpoint=url, token=False)


def test_a_pushed_repository_keeps_its_commits_and_its_old_address_works(api: HfApi, tmp_path: Path) -> None:
    api.create_repo("team/old", private=True)
    first = api.upload_file(path_or_fileobj=b"one", path_in_repo="a.txt", repo_id="team/old").oid
    api.create_tag("team/old", tag="v1")
    api.create_branch("team/old", branch="side")
    api.upload_file(path_or_fileobj=b"two", path_in_repo="a.txt", repo_id="team/old")
    before = [commit.commit_id for commit in api.list_repo_commits("team/old")]

    api.move_repo("team/old", "other/new")

    assert [commit.commit_id for commit in api.list_repo_commits("other/new")] == before
    refs = api.list_repo_refs("other/new")
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first}
    assert {ref.name for ref in refs.branches} == {"main", "side"}
    assert [model.id for model in api.list_models()] == ["other/new"]
    info = api.model_info("team/old")  # as the Hugging Face hub does: the old name leads on
    assert (info.id, info.private, info.sha) == ("other/new", True, before[0])
    found = hf_hub_download("team/old", "a.txt", revision=first, endpoint=api.endpoint, cache_dir=tmp_path, token=False)
    assert Path(found).read_bytes() == b"one"
    pushed = api.upload_file(path_or_fileobj=b"three", path_in_repo="b.txt", repo_id="other/new").oid
    assert [commit.commit_id for commit in api.list_repo_commits("other/new")] == [pushed, *before]


def test_a_model_of_the_store_keeps_versions_and_tags(api: HfApi, store: Store, tokenizer: object) -> None:
    model = put_model(store, tokenizer, "team/tiny")
    store.tag("team/tiny@1", "production")
    api.move_repo("team/tiny", "team/small")
    assert store.resolve("team/small@production", ModelVersion).digest == model.digest
    assert store.resolve("team/small@1", ModelVersion).digest == model.digest
    assert store.latest("team/tiny") is None
    card = api.hf_hub_download("team/small", "README.md")
    assert "# team/small" in Path(card).read_text(encoding="utf-8")
    assert {ref.name for ref in api.list_repo_refs("team/small").tags} == {"production"}
    with pytest.raises(RepositoryNotFoundError):
        api.move_repo("team/tiny", "team/third")  # what it is called now has to be said


def test_a_dataset_keeps_its_history_of_rows(api: HfApi, store: Store) -> None:
    dataset = put_dataset(store, "team/pages")
    (before,) = versions.log(store, "team/pages")
    api.move_repo("team/pages", "team/texts", repo_type="dataset")
    (after,) = versions.log(store, "team/texts")
    assert after == before
    assert store.resolve("team/texts", DatasetVersion).digest == dataset.digest
    assert "data/train-00000-of-00001.parquet" in api.list_repo_files("team/texts", repo_type="dataset")


@pytest.mark.parametrize("new", ["team/../x", "team/taken", "team/a--b", "pages"])
def test_a_rename_that_cannot_be_changes_nothing(new: str, api: HfApi, store: Store) -> None:
    put_dataset(store, "pages")
    for name in ("team/mine", "team/taken"):
        api.create_repo(name)
    with pytest.raises((BadRequestError, HfHubHTTPError, ValueError)):
        api.move_repo("team/mine", new)
    assert {model.id for model in api.list_models()} == {"team/mine", "team/taken"}
    assert api.model_info("team/mine").id == "team/mine"


def test_the_command_renames(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    put_dataset(store, "pages")
    words = ["hub", "move", "pages", "team/pages", "--type", "dataset", "-w", str(store.root), "--json"]
    assert run(words) == 0
    assert json.loads(capsys.readouterr().out) == {"kind": "dataset", "old": "pages", "new": "team/pages"}
    assert store.resolve("team/pages", DatasetVersion).rows == 6
    assert run(words[:-1]) == 3
    assert "there is no dataset 'pages'" in capsys.readouterr().err


def test_a_name_that_was_deleted_is_not_used_again_for_other_versions(api: HfApi, store: Store) -> None:
    put_dataset(store, "team/gone")
    api.delete_repo("team/gone", repo_type="dataset")
    put_dataset(store, "team/pages")
    with pytest.raises(HfHubHTTPError, match="had versions once"):
        api.move_repo("team/pages", "team/gone", repo_type="dataset")


def test_moved_there_and_back_and_made_anew(api: HfApi) -> None:
    api.create_repo("team/a")
    api.move_repo("team/a", "team/b")
    api.move_repo("team/b", "team/a")
    assert api.model_info("team/b").id == "team/a"
    api.create_repo("team/b")
    assert api.model_info("team/b").id == "team/b"


def test_a_name_that_is_given_up_while_it_is_read_stays_given_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put_dataset(store, "team/pages")
    repos, alone = Repos(store), Repos.alone

    def later(self: Repos, kind: RepoKind, name: str) -> AbstractContextManager[None]:
        if self is repos:  # it wants to write down what the store has: another renames it first
            monkeypatch.undo()
            rename(Repos(store), "dataset", "team/pages", "team/one")
        return alone(self, kind, name)

    monkeypatch.setattr(Repos, "alone", later)
    with pytest.raises(RepoNotFound):
        repos.refs("dataset", "team/pages")
    assert not repos.exists("dataset", "team/pages")
    assert repos.refs("dataset", "team/one").branches


def test_a_version_that_comes_while_the_first_is_read_is_shown(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put_dataset(store, "team/pages")
    repos, alone = Repos(store), Repos.alone

    def later(self: Repos, kind: RepoKind, name: str) -> AbstractContextManager[None]:
        monkeypatch.undo()
        put_dataset(store, "team/pages", 9)
        return alone(self, kind, name)

    monkeypatch.setattr(Repos, "alone", later)
    head = repos.commit("dataset", "team/pages")
    assert head.artifact == store.index.versions(name="team/pages")[-1].digest
    assert len(store.index.versions(name="team/pages")) == 2


def test_a_branch_whose_version_is_gone_is_left_out(store: Store) -> None:
    first = put_dataset(store, "team/pages")
    put_dataset(store, "team/pages", 9)
    at = next(id for id, one in store.index.history("team/pages")[0].items() if one.dataset == first.digest)
    collect_garbage(store, unused=True)
    assert store.index.artifact(first.digest) is None
    versions.create_branch(store, "team/pages", "old", at=at)
    assert {*Repos(store).refs("dataset", "team/pages").branches} == {"main"}


def test_refs_that_change_while_they_are_read_are_not_remembered(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put_dataset(store, "team/pages")
    repos, tags = Repos(store), Repos._tags

    def later(self: Repos, kind: RepoKind, name: str, own: dict[str, str]) -> dict[str, str]:
        monkeypatch.undo()
        found = tags(self, kind, name, own)
        rename(Repos(store), "dataset", "team/pages", "team/one")
        return found

    monkeypatch.setattr(Repos, "_tags", later)
    assert repos.refs("dataset", "team/pages").branches
    with pytest.raises(RepoNotFound):
        repos.refs("dataset", "team/pages")


def test_of_two_who_rename_at_once_one_is_told(store: Store) -> None:
    put_dataset(store, "team/pages")
    repos, told = Repos(store), []
    gate = threading.Barrier(2)

    def go(new: str) -> None:
        gate.wait()
        try:
            rename(repos, "dataset", "team/pages", new)
        except Exception as error:
            told.append(error)

    threads = [threading.Thread(target=go, args=(new,)) for new in ("team/one", "team/two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [type(one) for one in told] == [RepoNotFound]
    assert sum(repos.exists("dataset", name) for name in ("team/pages", "team/one", "team/two")) == 1
