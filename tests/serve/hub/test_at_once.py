"""Who changes a repository at the same moment as another: each is told what became, no commit is lost from view."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RevisionNotFoundError

from catena.hub.repo import pushing
from catena.hub.repo.pushing import Push, Stale
from catena.hub.repo.records import RepoKind, inline_file
from catena.hub.repo.repos import Conflict, Repos, RevisionNotFound
from catena.hub.repo.tree import Add
from catena.hub.store import Store

from .asking import api as api, hub as hub
from .conftest import put_model


def a_push(path: str) -> Push:
    return Push((Add(inline_file(path, "x")),), path)


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Return a function that lets something happen just before the next one takes a repository for itself."""
    alone = Repos.alone

    def arrange(happens: Callable[[], Any]) -> None:
        def later(self: Repos, kind: RepoKind, name: str) -> AbstractContextManager[None]:
            monkeypatch.setattr(Repos, "alone", alone)
            happens()
            return alone(self, kind, name)

        monkeypatch.setattr(Repos, "alone", later)

    return arrange


def test_proposals_made_at_once_have_numbers_of_their_own(store: Store) -> None:
    repos, gate, made = Repos(store), threading.Barrier(4), []
    pushing.create(repos, "model", "org/m")

    def go(path: str) -> None:
        gate.wait(60)
        made.append(pushing.propose(repos, "model", "org/m", "main", a_push(path)))

    threads = [threading.Thread(target=go, args=(f"{number}.txt",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(number for _, number in made) == ["1", "2", "3", "4"]
    assert repos.refs("model", "org/m").pulls == {number: commit.id for commit, number in made}


def test_a_branch_that_another_has_just_made_keeps_its_commits(
    store: Store, before: Callable[[Callable[[], Any]], None]
) -> None:
    repos = Repos(store)
    pushing.create(repos, "model", "org/m")

    def another() -> None:
        pushing.create_branch(repos, "model", "org/m", "dev")
        pushing.push(repos, "model", "org/m", "dev", a_push("work.txt"))

    before(another)
    with pytest.raises(Conflict, match="already"):
        pushing.create_branch(repos, "model", "org/m", "dev")
    assert "work.txt" in repos.commit("model", "org/m", "dev").by_path()
    before(lambda: pushing.create_tag(repos, "model", "org/m", "v1", "dev"))
    with pytest.raises(Conflict, match="already"):
        pushing.create_tag(repos, "model", "org/m", "v1")
    assert "work.txt" in repos.commit("model", "org/m", "v1").by_path()


def test_a_push_to_a_branch_that_has_just_gone_is_told(
    store: Store, before: Callable[[Callable[[], Any]], None]
) -> None:
    repos = Repos(store)
    pushing.create(repos, "model", "org/m")
    pushing.create_branch(repos, "model", "org/m", "dev")
    before(lambda: pushing.delete_branch(repos, "model", "org/m", "dev"))
    with pytest.raises(RevisionNotFound, match="no branch 'dev'"):
        pushing.push(repos, "model", "org/m", "dev", a_push("a.txt"))


def test_a_proposal_on_a_tag_is_refused_in_words(api: HfApi) -> None:
    api.create_repo("org/m")
    api.create_tag("org/m", tag="v1")
    with pytest.raises(RevisionNotFoundError, match="no branch 'v1'"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="a", repo_id="org/m", revision="v1", create_pr=True)


def test_what_is_pushed_to_a_proposal_while_it_is_accepted_keeps_it_open(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    repos, push = Repos(store), pushing.push
    pushing.create(repos, "model", "org/m")
    _, number = pushing.propose(repos, "model", "org/m", "main", a_push("a.txt"))

    def later(*given: Any) -> Any:
        monkeypatch.undo()
        pushing.push(repos, "model", "org/m", f"refs/pr/{number}", a_push("b.txt"))
        return push(*given)

    monkeypatch.setattr(pushing, "push", later)
    pushing.accept(repos, "model", "org/m", number)
    assert [*repos.commit("model", "org/m").by_path()] == [".gitattributes", "a.txt"]
    assert "b.txt" in repos.commit("model", "org/m", f"refs/pr/{number}").by_path()
    pushing.accept(repos, "model", "org/m", number)
    assert [*repos.commit("model", "org/m").by_path()] == [".gitattributes", "a.txt", "b.txt"]
    assert repos.refs("model", "org/m").pulls == {}


@pytest.mark.parametrize("whole", [True, False])
def test_a_run_that_ends_during_a_push_is_seen(
    whole: bool, store: Store, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repos, applied = Repos(store), pushing.applied
    folder = tmp_path / "model"
    shutil.copytree(store.checkout(put_model(store, tokenizer)), folder)
    repos.commit("model", "team/tiny")

    def later(*given: Any) -> Any:
        monkeypatch.undo()
        (folder / "more.txt").write_text("of a run", encoding="utf-8")
        model = store.put_model(folder)
        store.index.add_artifact(model)
        store.index.add_name("team/tiny", model.digest)
        return applied(*given) if whole else tuple(one for one in applied(*given) if one.path != "config.json")

    monkeypatch.setattr(pushing, "applied", later)
    if whole:
        with pytest.raises(Stale, match="a run has just"):
            pushing.push(repos, "model", "team/tiny", "main", a_push("notes.txt"))
    else:
        pushing.push(repos, "model", "team/tiny", "main", a_push("notes.txt"))
    first, newest = store.index.versions(name="team/tiny")
    assert first.digest != newest.digest
    assert repos.commit("model", "team/tiny").artifact == newest.digest
