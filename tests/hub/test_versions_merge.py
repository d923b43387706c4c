"""Three-way merge by key: what merges, what conflicts, and how a conflict is decided."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from catena.core.errors import UsageError
from catena.core.types import DatasetVersion
from catena.hub import versions
from catena.hub.fsck import check, collect_garbage, unused_artifacts
from catena.hub.store import Store, open_store
from tests.hub.edits import BASE, Edit, edit, put, retext, texts


def diverge(store: Store, tmp_path: Path, ours: Edit, theirs: Edit) -> None:
    """Put `BASE`, and change it on main and on the branch `fix`."""
    put(store, BASE)
    versions.create_branch(store, "pages", "fix")
    for branch, change in (("main", ours), ("fix", theirs)):
        versions.commit_file(store, "pages", edit(store, tmp_path, f"pages@{branch}", change), branch=branch)


def field(key: str, name: str, value: Any) -> Edit:
    def change(rows: list[dict]) -> list[dict]:
        return [{**row, "metadata": {**row["metadata"], name: value}} if row["_id"] == key else row for row in rows]

    return change


def without(key: str) -> Edit:
    return lambda rows: [row for row in rows if row["_id"] != key]


def test_changes_of_both_sides_come_together(store: Store, tmp_path: Path) -> None:
    def theirs(rows: list[dict]) -> list[dict]:
        return [*without("k05")(retext("k02", "theirs")(rows)), {"_id": "new", "text": "new"}]

    diverge(store, tmp_path, retext("k01", "ours"), theirs)
    result = versions.merge(store, "pages", "fix")
    assert result.status == "merged"
    assert result.changes == {"added": 1, "removed": 1, "changed": 1}
    expected = {**BASE, "k01": "ours", "k02": "theirs", "new": "new"}
    del expected["k05"]
    assert texts(store, "pages") == expected
    [entry, *_] = versions.log(store, "pages", "main")
    assert len(entry.commit.parents) == 2
    assert store.resolve("pages@3", DatasetVersion).revision > 1
    assert versions.verify(store, "pages") == []
    assert versions.merge(store, "pages", "fix").status == "up to date"


def test_a_branch_that_is_only_ahead_is_taken_as_it_is(store: Store, tmp_path: Path) -> None:
    put(store, BASE)
    versions.create_branch(store, "pages", "fix")
    versions.commit_file(store, "pages", edit(store, tmp_path, "pages", retext("k01", "x")), branch="fix")
    assert versions.merge(store, "pages", "fix").status == "fast-forward"
    assert texts(store, "pages@2")["k01"] == "x"
    assert versions.branches(store, "pages")["main"] == versions.branches(store, "pages")["fix"]


def test_different_fields_of_one_row_merge(store: Store, tmp_path: Path) -> None:
    diverge(store, tmp_path, retext("k01", "ours"), field("k01", "seen", 2))
    assert versions.merge(store, "pages", "fix").status == "merged"
    sample = next(s for s in store.open_dataset(store.resolve("pages", DatasetVersion)).samples() if s.id == "k01")
    assert (sample.data["text"], sample.metadata) == ("ours", {"title": "k01", "seen": 2})


def test_the_same_change_on_both_sides_is_no_conflict(store: Store, tmp_path: Path) -> None:
    def theirs(rows: list[dict]) -> list[dict]:
        return retext("k02", "theirs")(retext("k01", "same")(rows))

    diverge(store, tmp_path, retext("k01", "same"), theirs)
    assert versions.merge(store, "pages", "fix").status == "merged"
    assert texts(store, "pages") == {**BASE, "k01": "same", "k02": "theirs"}


def test_a_conflict_is_shown_and_writes_nothing(store: Store, tmp_path: Path) -> None:
    diverge(store, tmp_path, retext("k01", "ours"), retext("k01", "theirs"))
    before = versions.log(store, "pages")
    files = sorted(store.datasets.rglob("*"))
    result = versions.merge(store, "pages", "fix")
    assert result.status == "conflicts"
    [conflict] = result.conflicts
    [part] = conflict.fields
    assert (conflict.key, part.field, part.base, part.ours, part.theirs) == (
        "k01",
        "text",
        BASE["k01"],
        "ours",
        "theirs",
    )
    assert versions.log(store, "pages") == before
    assert sorted(store.datasets.rglob("*")) == files


@pytest.mark.parametrize(
    ("decision", "text"),
    [
        ({"side": "ours"}, "ours"),
        ({"side": "theirs"}, "theirs"),
        ({"resolutions": {"k01": "ours"}}, "ours"),
        ({"resolutions": {"k01": "theirs"}}, "theirs"),
        ({"resolutions": {"k01": {"text": "both"}}}, "both"),
        ({"resolutions": {"k01": "remove"}}, None),
        ({"resolutions": {"k01": {"text": "both"}}, "side": "ours"}, "both"),
    ],
)
def test_a_conflict_is_decided(store: Store, tmp_path: Path, decision: dict[str, Any], text: str | None) -> None:
    diverge(store, tmp_path, retext("k01", "ours"), retext("k01", "theirs"))
    assert versions.merge(store, "pages", "fix", **decision).status == "merged"
    assert texts(store, "pages").get("k01") == text
    assert len(texts(store, "pages")) == (20 if text else 19)


def test_branches_can_be_merged_after_garbage_was_collected(store: Store, tmp_path: Path) -> None:
    diverge(store, tmp_path, retext("k01", "ours"), retext("k02", "theirs"))
    assert unused_artifacts(store) == set()
    collect_garbage(store, unused=True)
    assert versions.merge(store, "pages", "fix").status == "merged"
    versions.delete_branch(store, "pages", "fix")
    assert unused_artifacts(store)


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_a_changed_row_against_a_removed_one(store: Store, tmp_path: Path, side: Any) -> None:
    diverge(store, tmp_path, retext("k01", "ours"), without("k01"))
    result = versions.merge(store, "pages", "fix")
    assert [part.field for part in result.conflicts[0].fields] == ["(row)"]
    assert versions.merge(store, "pages", "fix", side=side).status == "merged"
    assert texts(store, "pages").get("k01") == ("ours" if side == "ours" else None)


def test_a_removed_row_against_a_changed_one_can_come_back(store: Store, tmp_path: Path) -> None:
    diverge(store, tmp_path, without("k01"), retext("k01", "theirs"))
    assert versions.merge(store, "pages", "fix", side="theirs").status == "merged"
    assert texts(store, "pages")["k01"] == "theirs"


@pytest.mark.parametrize(
    ("resolutions", "message"),
    [
        ({"k99": "ours"}, "'k99', which is not in conflict"),
        ({"k01": "mine"}, "is 'mine'"),
        ({"k01": {"txet": "a"}}, "'txet', which is not in conflict"),
    ],
)
def test_a_resolution_that_fits_nothing_is_refused(
    store: Store, tmp_path: Path, resolutions: dict[str, Any], message: str
) -> None:
    diverge(store, tmp_path, retext("k01", "ours"), retext("k01", "theirs"))
    with pytest.raises(UsageError, match=message):
        versions.merge(store, "pages", "fix", resolutions=resolutions)
    assert len(versions.log(store, "pages", "main")) == 2


KILLED = """
import os, signal, sys
import signal
import subprocess
import sys
from pathlib import Path
from catena.hub import index, merge, revisions, versions
from catena.hub.store import open_store
where = sys.argv[2]
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
rows, record = merge.Merge.rows, index.Index.add_commit
def half_of(self):
    yield next(rows(self))
    die()
def recorded(*given, **named):
    record(*given, **named)
    die()
if where == "rows": merge.Merge.rows = half_of
if where == "revision": revisions._Revision._record = die
if where == "record": index.Index.add_commit = die
if where == "recorded": index.Index.add_commit = recorded
versions.merge(open_store(Path(sys.argv[1])), "pages", "fix")
"""


@pytest.mark.parametrize("where", ["rows", "revision", "record", "recorded"])
def test_a_killed_merge_is_there_whole_or_not_at_all_and_can_be_done_again(
    store: Store, tmp_path: Path, where: str
) -> None:
    def theirs(rows: list[dict]) -> list[dict]:
        return [*without("k05")(retext("k02", "theirs")(rows)), {"_id": "new", "text": "new"}]

    diverge(store, tmp_path, retext("k01", "ours"), theirs)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(store.root), where], check=False)
    assert killed.returncode == -signal.SIGKILL
    again = open_store(store.root)
    merged = {**BASE, "k01": "ours", "k02": "theirs", "new": "new"}
    del merged["k05"]
    assert texts(again, "pages") == (merged if where == "recorded" else {**BASE, "k01": "ours"})
    assert texts(again, "pages@fix").keys() == merged.keys()
    assert check(again) == []
    assert versions.merge(again, "pages", "fix").status == ("up to date" if where == "recorded" else "merged")
    assert texts(again, "pages") == merged
    assert len(versions.log(again, "pages", "main")[0].commit.parents) == 2
    assert versions.verify(again, "pages") == []
    assert check(again) == []
    again.close()
