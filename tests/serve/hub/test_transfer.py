"""Models and datasets on their way between two hubs, by the commands of people; and the list of what is there."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from catena.cli.main import run
from catena.core.errors import EnvironmentProblem
from catena.core.types import DatasetVersion, ModelVersion
from catena.hub.fsck import collect_garbage
from catena.hub.lineage import trace
from catena.hub.repo import pushing, transfer
from catena.hub.repo.card import front_matter
from catena.hub.repo.repos import Repos
from catena.hub.repo.transfer import Hub, pull
from catena.hub.store import Store, init_store
from catena.serve.hub.app import build_hub
from catena.serve.server import background

from .conftest import put_dataset, put_model


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    """A second workspace."""
    opened = init_store(tmp_path / "other" / ".catena")
    yield opened
    opened.close()


@pytest.fixture
def hub(other: Store) -> Iterator[str]:
    """The second workspace as a hub."""
    with background(build_hub(other)) as url:
        yield url


def said(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert run([*words, "--json"]) == 0, capsys.readouterr()
    return json.loads(capsys.readouterr().out)


def test_a_model_goes_to_another_hub_and_comes_back(
    store: Store, other: Store, hub: str, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model, here = put_model(store, tokenizer, "helper"), ("-w", str(store.root))
    assert run(["hub", "push", "helper", "--hub", hub, *here]) == 2
    pushed = said(capsys, "hub", "push", "helper@1", "--as", "team/helper", "--hub", hub, *here)
    there = other.resolve("team/helper", ModelVersion)
    assert {file.path for file in there.files} == {file.path for file in model.files} | {"README.md", ".gitattributes"}
    assert there.license == "apache-2.0"
    pulled = said(capsys, "hub", "pull", "team/helper", "--as", "again", "--hub", hub, *here)
    assert pulled["commit"] == pushed["commit"]
    back = store.resolve("again", ModelVersion)
    assert back.digest == there.digest == pulled["artifact"]
    [run_] = [node for node in trace(store, back, down=False).nodes if node.kind == "run"]
    assert run_.label == "hub.pull"
    config = store.index.find_runs(output=back.digest)[0].config
    assert (config["endpoint"], config["source"], config["commit"]) == (hub, "team/helper", pushed["commit"])
    again = said(capsys, "hub", "pull", "team/helper", "--as", "again", "--hub", hub, *here)
    assert again["artifact"] == back.digest
    assert len(store.index.versions(name="again")) == 1
    assert not list((store.root / "work").iterdir())


def test_each_works_as_the_first_thing_that_a_process_does(store: Store, other: Store, hub: str) -> None:
    put_dataset(store)
    put_dataset(other, "team/theirs")
    command = [sys.executable, "-c", "from catena.cli.main import main; main()", "hub"]
    for words in (["push", "team/pages"], ["pull", "team/theirs", "--type", "dataset"]):
        done = [*command, *words, "--hub", hub, "-w", str(store.root)]
        subprocess.run(done, check=True, timeout=120)
    assert store.resolve("team/theirs", DatasetVersion).rows == 6
    assert Repos(other).commit("dataset", "team/pages").by_path().keys() >= {"data/train-00000-of-00001.parquet"}


def test_a_dataset_goes_to_another_hub_as_the_same_rows(
    store: Store, other: Store, hub: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = put_dataset(other)
    pulled = said(capsys, "hub", "pull", "team/pages", "--type", "dataset", "--hub", hub, "-w", str(store.root))
    here = store.resolve("team/pages", DatasetVersion)
    assert here.digest == pulled["artifact"]
    assert here.content == dataset.content
    assert list(store.open_dataset(here).samples()) == list(other.open_dataset(dataset).samples())


def test_a_pull_after_one_that_broke_off_is_of_one_commit(
    store: Store, hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, here, push = HfApi(endpoint=hub, token=False), Repos(store), pushing.push
    api.create_repo("team/files")
    api.upload_file(path_or_fileobj=b"old", path_in_repo="old.txt", repo_id="team/files")

    def break_off(*_: Any, **__: Any) -> None:
        with pytest.raises(EnvironmentProblem, match="at work"):
            collect_garbage(store)  # it would take away what is stored and not yet committed
        raise KeyboardInterrupt

    monkeypatch.setattr(pushing, "push", break_off)
    with pytest.raises(KeyboardInterrupt):
        pull(here, Hub(hub), "team/files")
    monkeypatch.setattr(pushing, "push", push)
    new = [CommitOperationDelete("old.txt"), CommitOperationAdd("new.txt", b"new")]
    api.create_commit("team/files", new, commit_message="m")
    pull(here, Hub(hub), "team/files")
    assert [*here.commit("model", "team/files").by_path()] == [".gitattributes", "new.txt"]
    assert not list((store.root / "work").iterdir())


def test_two_pulls_of_one_repository_at_once(store: Store, hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    api, here, stored = HfApi(endpoint=hub, token=False), Repos(store), transfer._stored
    api.create_repo("team/files")
    some = [CommitOperationAdd(f"{number}.txt", b"x") for number in range(9)]
    api.create_commit("team/files", some, commit_message="m")
    second = threading.Thread(target=pull, args=(here, Hub(hub), "team/files"), kwargs={"name": "two"})

    def slow(repos: Repos, path: Path, name: str) -> Any:
        monkeypatch.undo()
        second.start()
        second.join(2)  # as far as it comes meanwhile
        return stored(repos, path, name)

    monkeypatch.setattr(transfer, "_stored", slow)
    assert pull(here, Hub(hub), "team/files", name="one").files == 10
    second.join(60)
    assert here.commit("model", "one").files == here.commit("model", "two").files


def test_what_is_not_there_is_said(store: Store, hub: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["hub", "pull", "team/none", "--hub", hub, "-w", str(store.root)]) == 3
    assert "does not show it" in capsys.readouterr().err
    assert run(["hub", "pull", "team/none", "--hub", "http://127.0.0.1:9", "-w", str(store.root)]) == 8
    assert run(["hub", "pull", "../up", "--hub", hub, "-w", str(store.root)]) == 2
    assert run(["hub", "show", "none", "-w", str(store.root)]) == 3


def test_list_search_show_and_card(store: Store, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    put_model(store, tokenizer)
    put_dataset(store)
    where = ("-w", str(store.root))
    assert [item["name"] for item in said(capsys, "hub", "list", *where)] == ["team/tiny", "team/pages"]
    assert [item["name"] for item in said(capsys, "hub", "search", "llama", "float32", *where)] == ["team/tiny"]
    assert said(capsys, "hub", "search", "llama", "int4", *where) == []
    assert [item["name"] for item in said(capsys, "hub", "list", "--tag", "license:cc0-1.0", *where)] == ["team/pages"]
    shown = said(capsys, "hub", "show", "team/tiny", "--log", *where)
    assert next(file["path"] for file in shown["files"]) == "README.md"
    assert [entry["message"] for entry in shown["log"]] == ["version 1"]
    facts = front_matter(said(capsys, "hub", "card", "team/pages", *where)["card"])
    assert facts["license"] == "cc0-1.0"
    assert [entry["split"] for entry in facts["configs"][0]["data_files"]] == ["train", "validation"]
    assert "## 制作过程" in said(capsys, "hub", "card", "team/pages", "--language", "zh", *where)["card"]
    assert run(["hub", "card", "team/pages", "--language", "fr", *where]) == 2
    assert "--language zh" in capsys.readouterr().err
