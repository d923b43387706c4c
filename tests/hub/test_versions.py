"""History, revisions, diff, branches and commits of datasets."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import orjson
import pytest

from catena.core.errors import DataError, NotFound, UsageError
from catena.core.sample import Sample, sample_id
from catena.core.types import DatasetVersion
from catena.hub import fsck, revisions, versions
from catena.hub.commits import Commit, ancestors, merge_base
from catena.hub.index import now
from catena.hub.revisions import save_change
from catena.hub.store import Store, open_store
from tests.hub.edits import BASE, edit, put, retext, texts


def test_every_version_of_a_name_is_a_commit_on_main(store: Store) -> None:
    put(store, {"a": "1"})
    put(store, {"a": "2"})
    entries = versions.log(store, "pages")
    assert [entry.commit.operation for entry in entries] == ["run", "run"]
    assert entries[0].commit.parents == (entries[1].digest,)
    assert entries[0].branches == ("main",)
    assert [entry.refs for entry in entries] == [("2",), ("1",)]
    assert versions.verify(store, "pages") == []


def test_versions_from_before_commits_existed_are_adopted(store: Store) -> None:
    put(store, {"a": "1"})
    put(store, {"a": "2"})
    with store.index.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM commits")
        connection.exec_driver_sql("DELETE FROM branch_moves")
    put(store, {"a": "3"})
    assert [entry.commit.operation for entry in versions.log(store, "pages", "main")] == ["run", "adopt", "adopt"]
    assert versions.verify(store, "pages") == []


def test_a_changed_commit_is_found(store: Store) -> None:
    put(store, {"a": "1"})
    put(store, {"a": "2"})
    with store.index.engine.begin() as connection:
        connection.exec_driver_sql("""UPDATE commits SET body = replace(body, '"author":"catena"', '"author":"eve"')""")
    assert {problem.problem for problem in versions.verify(store, "pages")} == {
        "is not what was committed: its content gives another hash"
    }


def test_a_commit_of_few_changes_shares_the_table_and_has_the_digest_of_a_fresh_write(
    store: Store, tmp_path: Path
) -> None:
    before = put(store, BASE, rejected="short")
    path = edit(store, tmp_path, "pages", lambda rows: [*retext("k03", "new")(rows[:-1]), {"text": "added"}])
    digest, counts = versions.commit_file(store, "pages", path, message="mend", author="ann")
    after = store.resolve("pages", DatasetVersion)
    assert counts == {"added": 1, "removed": 1, "changed": 1}
    assert (after.table, after.revision) != (before.table, before.revision)
    assert after.table == before.table
    assert store.resolve(f"pages@{digest[:8]}") == after == store.resolve("pages@2")
    samples = list(store.open_dataset(after).samples())
    assert [s.id for s in samples] == [k for k in BASE if k not in ("k03", "k19")] + [
        "k03",
        sample_id("row", {"text": "added"}),
    ]
    with store.new_dataset("document") as writer:
        for sample in samples:
            writer.add(sample)
        for sample, reason, detail in store.open_dataset(after).rejects():
            writer.reject(sample, reason, detail)
        fresh = writer.commit()
    assert (fresh.digest, fresh.content, fresh.splits) == (after.digest, after.content, after.splits)
    assert texts(store, "pages@1") == BASE
    store.open_dataset(before).verify()
    store.open_dataset(after).verify()


def test_a_commit_adds_few_bytes(store: Store, tmp_path: Path) -> None:
    put(store, {f"k{n}": f"{n} " + sample_id(n) * 40 for n in range(2000)})
    size = sum(path.stat().st_size for path in store.datasets.rglob("*") if path.is_file())
    versions.commit_file(store, "pages", edit(store, tmp_path, "pages", retext("k7", "x")))
    grown = sum(path.stat().st_size for path in store.datasets.rglob("*") if path.is_file()) - size
    assert grown < size / 50


def test_rows_that_are_the_same_are_nothing_to_commit(store: Store, tmp_path: Path) -> None:
    put(store, BASE)
    for form in ("jsonl", "parquet", "lance"):
        [path] = versions.checkout(store, "pages", tmp_path / form, form)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="nothing to commit"):
            versions.commit_file(store, "pages", path)
        with pytest.raises(UsageError, match="nothing to commit"):
            versions.commit_file(store, "pages", path.parent)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"_id": "x", "text": "a", "txet": 1}', "row 2 .*no column 'txet'"),
        (b'{"_id": "x"}', "row 2 .*it has no field 'text'"),
        (b'{"_id": "x", "text": ', "row 2 .*is not JSON"),
        (b"[1]", "row 2 .*is not an object"),
        (b'{"_id": "x", "text": "a", "metadata": "{"}', "row 2"),
        (b'{"_id": "x", "text": "a", "_parents": "abc"}', "row 2 .*'_parents' is not a list of text"),
        (b'{"_id": "x", "text": "a", "_parents": [1]}', "row 2 .*'_parents' is not a list of text"),
        (b'{"_id": "x", "text": "a", "metadata": []}', "row 2 .*'metadata' is not an object"),
        (b'{"_id": "x", "text": 5}', "row 2 .*'text' of it is of the type int, not text"),
    ],
)
def test_a_bad_line_commits_nothing(store: Store, tmp_path: Path, line: bytes, message: str) -> None:
    put(store, BASE)
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"_id": "k00", "text": "a"}\n' + line + b"\n")
    with pytest.raises(DataError, match=message):
        versions.commit_file(store, "pages", path)
    assert len(versions.log(store, "pages")) == 1
    assert texts(store, "pages") == BASE


def test_ids_that_are_numbers_stay_and_rows_without_one_get_it(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "numbered.jsonl"
    rows = [{"_id": 0, "_parents": ["p"]}, {"_id": 1, "_parents": None}, {"_id": ""}, {"_id": None}, {}]
    path.write_bytes(b"".join(orjson.dumps({**row, "text": str(at)}) + b"\n" for at, row in enumerate(rows)))
    versions.commit_file(store, "numbered", path)
    samples = list(store.open_dataset(store.resolve("numbered", DatasetVersion)).samples())
    assert [(sample.id, sample.parents) for sample in samples[:2]] == [("0", ("p",)), ("1", ())]
    assert [sample.id for sample in samples[2:]] == [sample_id("row", {"text": str(at)}) for at in (2, 3, 4)]


def test_a_file_begins_a_name(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"input": "1+1", "output": "2"}\n')
    versions.commit_file(store, "sums", path, message="begin")
    assert store.resolve("sums", DatasetVersion).shape == "example"


def test_diff_tells_rows_and_fields(store: Store, tmp_path: Path) -> None:
    put(store, BASE)

    def change(rows: list[dict]) -> list[dict]:
        rows[2]["text"], rows[2]["metadata"] = "other", {"title": "k02", "new": 1}
        return [*rows[1:], {"_id": "n", "text": "new"}]

    versions.commit_file(store, "pages", edit(store, tmp_path, "pages", change))
    found = versions.diff(store, "pages@1", "pages@2")
    assert found.counts == {"added": 1, "removed": 1, "changed": 1}
    assert found.unchanged == 18
    kinds = {row.kind: row for row in found.rows()}
    assert kinds["removed"].key == "k00"
    assert kinds["added"].after is not None
    assert [(f.field, f.before, f.after) for f in kinds["changed"].fields] == [
        ("text", "text number 2", "other"),
        ("metadata.new", None, 1),
    ]


def test_diff_by_another_key(store: Store) -> None:
    put(store, {"a": "one", "b": "two"}, "first")
    put(store, {"c": "two", "d": "three"}, "second")
    assert versions.diff(store, "first", "second").counts == {"added": 2, "removed": 2, "changed": 0}
    found = versions.diff(store, "first", "second", key="text")
    assert found.counts == {"added": 1, "removed": 1, "changed": 1}
    assert "_id" in [change.field for row in found.rows() for change in row.fields]
    assert versions.diff(store, "first", "second", key="metadata.title").counts["added"] == 2
    with pytest.raises(UsageError, match="no column 'txt'"):
        versions.diff(store, "first", "second", key="txt")


def test_diff_meets_equal_keys_by_their_occurrence(store: Store) -> None:
    def twice(*texts: str) -> DatasetVersion:
        with store.new_dataset("document") as writer:
            for text in texts:
                writer.add(Sample(id="same", data={"text": text}))
            version = writer.commit()
        store.index.add_artifact(version)
        store.index.add_name("twice", version.digest)
        return version

    twice("a", "b", "c")
    twice("a", "x")
    assert versions.diff(store, "twice@1", "twice@2").counts == {"added": 0, "removed": 1, "changed": 1}


def test_branches_begin_move_and_go(store: Store, tmp_path: Path) -> None:
    put(store, BASE)
    versions.create_branch(store, "pages", "fix", by="ann")
    versions.commit_file(store, "pages", edit(store, tmp_path, "pages@fix", retext("k01", "fixed")), branch="fix")
    assert texts(store, "pages@fix")["k01"] == "fixed"
    assert texts(store, "pages") == BASE
    assert [row.version for row in store.index.versions(name="pages")] == [1]
    with pytest.raises(UsageError, match="already"):
        versions.create_branch(store, "pages", "fix")
    with pytest.raises(UsageError, match="is a branch"):
        store.tag("pages@1", "fix")
    versions.delete_branch(store, "pages", "fix")
    assert list(versions.branches(store, "pages")) == ["main"]
    with pytest.raises(NotFound):
        store.resolve("pages@fix")
    with pytest.raises(NotFound, match="no dataset named"):
        versions.log(store, "pagse")


def test_two_branches_grow_in_one_table(store: Store, tmp_path: Path) -> None:
    put(store, BASE)
    versions.create_branch(store, "pages", "a")
    versions.create_branch(store, "pages", "b")
    for turn in range(3):
        for branch in ("a", "b"):
            path = edit(store, tmp_path, f"pages@{branch}", retext(f"k0{turn}", f"{branch}{turn}"))
            versions.commit_file(store, "pages", path, branch=branch)
    assert texts(store, "pages@a") == {**BASE, "k00": "a0", "k01": "a1", "k02": "a2"}
    assert texts(store, "pages@b") == {**BASE, "k00": "b0", "k01": "b1", "k02": "b2"}
    assert len({store.resolve(f"pages@{ref}", DatasetVersion).table for ref in ("a", "b", "main")}) == 1
    assert versions.verify(store, "pages") == []


def test_a_table_in_many_pieces_is_written_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revisions, "MOST_FRAGMENTS", 6)

    current = put(store, BASE)
    for turn in range(8):
        rows = [{"_id": f"n{turn}", "_source": "", "_license": None, "_parents": [], "_split": None, "metadata": "{}"}]
        rows[0]["text"] = f"n{turn}"
        current = save_change(store, current, np.array([], dtype=np.int64), lambda rows=rows: iter(rows))  # type: ignore[misc]
    assert current.revision < 6
    assert current.rows == 28


def test_a_commit_that_was_killed_before_its_record_is_no_trouble(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, BASE)
    path = edit(store, tmp_path, "pages", retext("k01", "new"))
    with monkeypatch.context() as patched:
        patched.setattr(type(store.index), "add_commit", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            versions.commit_file(store, "pages", path)
    assert texts(store, "pages") == BASE
    versions.commit_file(store, "pages", path)
    assert texts(store, "pages@2") == {**BASE, "k01": "new"}
    assert versions.verify(store, "pages") == []


def test_forgetting_a_damaged_version_leaves_those_that_share_its_table(store: Store, tmp_path: Path) -> None:
    before = put(store, BASE)
    versions.commit_file(store, "pages", edit(store, tmp_path, "pages", retext("k01", "new")))
    after = store.resolve("pages", DatasetVersion)
    [own] = [file for file in after.files if file not in before.files and "/data/" in file.path]
    (store.datasets / after.table / own.path).write_bytes(b"damaged")
    found = fsck.check(store)
    assert {finding.artifact for finding in found} == {after.digest}
    fsck.forget(store, found)
    assert fsck.check(store) == []
    assert texts(store, "pages") == BASE


def test_what_a_branch_stands_at_is_no_garbage(store: Store, tmp_path: Path) -> None:
    put(store, BASE)
    versions.create_branch(store, "pages", "fix")
    versions.commit_file(store, "pages", edit(store, tmp_path, "pages", retext("k01", "b")), branch="fix")
    put(store, {"a": "another main"})
    fsck.collect_garbage(store, unused=True)
    assert texts(store, "pages@fix")["k01"] == "b"
    assert texts(store, "pages@1") == BASE  # where the branches parted
    versions.delete_branch(store, "pages", "fix")
    fsck.collect_garbage(store, unused=True)
    with pytest.raises(NotFound):
        store.resolve("pages@1")
    assert versions.verify(store, "pages") == []


def _commit_rows(root: Path, worker: int) -> None:
    store = open_store(root)
    for turn in range(2):
        path = root.parent / f"{worker}-{turn}.jsonl"
        path.write_text(f'{{"_id": "w{worker}-{turn}", "text": "{worker} {turn}"}}\n')
        versions.commit_file(store, "pages", path, message=f"{worker}-{turn}")
        put(store, {"r": f"{worker} {turn}"})
    store.close()


def test_processes_that_commit_at_once_lose_no_commit(store: Store) -> None:
    put(store, BASE)
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_commit_rows, args=(store.root, number)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0, 0]
    entries = versions.log(store, "pages", "main")
    assert len(entries) == 1 + 2 * 2 * 2
    assert {e.commit.message for e in entries if e.commit.operation == "commit"} == {
        f"{w}-{t}" for w in (0, 1) for t in range(2)
    }
    assert versions.verify(store, "pages") == []


def commit(*parents: str, mark: str = "") -> Commit:
    return Commit(name="n", dataset="d", parents=parents, message=mark, time=now(), operation="commit")


def test_the_merge_base_is_the_nearest_common_ancestor() -> None:
    history: dict[str, Commit] = {}

    def grow(mark: str, *parents: str) -> str:
        made = commit(*parents, mark=mark)
        history[made.digest] = made
        return made.digest

    root = grow("root")
    left, right = grow("left", root), grow("right", root)
    joined = grow("joined", left, right)
    further = grow("further", right)
    assert merge_base(history, left, right) == root
    assert merge_base(history, joined, further) == right
    assert merge_base(history, joined, left) == left
    assert ancestors(history, joined)[0] == joined
    assert ancestors(history, joined)[-1] == root
