"""Erasure: gone from every version and reject; proven; attested; finished after a kill; not to come back."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from catena.core.errors import EnvironmentProblem, NotFound, UsageError
from catena.core.sample import Sample
from catena.core.types import DatasetVersion, Run
from catena.hub import erase as erasing, versions
from catena.hub.erase import erase, tombstones
from catena.hub.index import now
from catena.hub.proof import data_files, search
from catena.hub.store import Store, open_store
from tests.hub.conftest import PutModel
from tests.hub.edits import edit, put, retext, texts

SECRET = "the private life of Ada Example, told at some length so that it is like no other text"
ROWS = {f"row-{n:03}": f"public text number {n} " + "word " * 20 for n in range(50)} | {"row-secret": SECRET}


def derived(store: Store, name: str = "clean") -> DatasetVersion:
    """Make a second dataset whose rows come from the rows of `pages`; the secret one is among its rejects too."""
    with store.new_dataset("example") as writer:
        for sample in store.open_dataset(store.resolve("pages", DatasetVersion)).samples():
            made = sample.derive({"input": "What?", "output": sample.text})
            writer.add(made)
            if sample.id == "row-secret":
                writer.reject(replace(sample, id="row-copy", parents=("row-secret",)), "near", shape="document")
        version = writer.commit()
    store.index.add_artifact(version)
    store.index.add_name(name, version.digest)
    return version


def history(store: Store, tmp_path: Path) -> None:
    """Three versions, a branch and a tag that reach the row, and a dataset made from it."""
    put(store, ROWS)
    derived(store)
    store.tag("pages@1", "first")
    versions.create_branch(store, "pages", "fix")
    versions.commit_file(store, "pages", edit(store, tmp_path, "pages", retext("row-000", "branch")), branch="fix")
    versions.commit_file(store, "pages", edit(store, tmp_path, "pages", retext("row-secret", SECRET + "!")))
    versions.commit_file(store, "pages", edit(store, tmp_path, "pages", lambda rows: rows[:-1]))


def holds(store: Store, *pieces: str) -> bool:
    found = search(data_files(store.datasets), frozenset({"row-secret"}), [piece.encode() for piece in pieces])
    return bool(found.ids or found.pieces)


def test_an_erased_row_is_gone_from_every_version_branch_tag_and_reject(store: Store, tmp_path: Path) -> None:
    history(store, tmp_path)
    assert holds(store)
    done = erase(store, "pages", ids=["row-secret"], reason="asked by the person", by="ann")
    assert not holds(store, SECRET[20:60], SECRET[:30])
    for ref in ("pages@1", "pages@2", "pages@3", "pages@fix", "pages@first"):
        left = texts(store, ref)
        assert "row-secret" not in left
        assert len(left) == 50
    clean = store.open_dataset(store.resolve("clean", DatasetVersion))
    assert len(list(clean.samples())) == 50
    assert list(clean.rejects()) == []
    assert len(done.rows) == 3
    assert done.asked == 1
    assert len(done.tables) == 2
    assert done.proof["before"]["ids_found"] >= 2
    assert done.proof["after"]["ids_found"] == done.proof["after"]["pieces_found"] == 0
    assert [(item.id, valid) for item, valid in tombstones(store)] == [(done.id, True)]
    assert not list((store.root / "erasures").glob("*.journal"))


def test_the_history_still_verifies_and_names_the_old_commits(store: Store, tmp_path: Path) -> None:
    history(store, tmp_path)
    before = [entry.digest for entry in versions.log(store, "pages")]
    done = erase(store, "pages", ids=["row-secret"])
    after = versions.log(store, "pages")
    assert [entry.commit.replaces for entry in after] == before
    assert {old: new for old, new in done.commits.items() if old in before} == {
        entry.commit.replaces: entry.digest for entry in after
    }
    assert versions.verify(store, "pages") == []
    assert versions.verify(store, "clean") == []
    public = store.root / "keys" / "erasure.pub"
    public.write_text("00" * 32)
    problems = versions.verify(store, "pages")
    assert len(problems) == len(after)
    assert all(item.problem.endswith("without a valid signature") for item in problems)


def test_versions_still_share_their_table_afterwards(store: Store, tmp_path: Path) -> None:
    history(store, tmp_path)
    erase(store, "pages", ids=["row-secret"])
    tables = {store.resolve(f"pages@{ref}", DatasetVersion).table for ref in (1, 2, 3, "fix")}
    assert len(tables) == 1
    versions.commit_file(store, "pages", edit(store, tmp_path, "pages", retext("row-001", "later")))
    assert texts(store, "pages@4")["row-001"] == "later"


def test_a_row_that_another_revision_only_marked_as_deleted_goes_too(store: Store, tmp_path: Path) -> None:
    put(store, {**ROWS, "row-other": "another text that has nothing to do with the first one, and stays"})
    versions.commit_file(
        store, "pages", edit(store, tmp_path, "pages", lambda rows: [r for r in rows if r["_id"] != "row-secret"])
    )
    erase(store, "pages", ids=["row-secret"])
    assert not holds(store, SECRET[:40])
    assert len(texts(store, "pages@1")) == len(texts(store, "pages@2")) == 51


def test_an_erased_row_does_not_come_back(store: Store, tmp_path: Path) -> None:
    history(store, tmp_path)
    erase(store, "pages", ids=["row-secret"])
    with store.new_dataset("document") as writer:
        writer.add(Sample(id="row-secret", data={"text": "other text"}))
        writer.add(Sample(id="fresh", data={"text": SECRET}, metadata={"who": "Ada"}))
        writer.add(Sample(id="child", data={"text": "made of it"}, parents=("row-secret",)))
        writer.reject(Sample(id="low", data={"text": SECRET}), "low_quality", SECRET)
        writer.add(Sample(id="kept", data={"text": "public"}))
        version = writer.commit()
    assert version.funnel is not None
    assert version.funnel.rejected == {"erased": 4}
    opened = store.open_dataset(version)
    assert [sample.id for sample in opened.samples()] == ["kept"]
    assert {(s.text, d, str(s.metadata)) for s, _, d in opened.rejects()} == {("", "", "{}")}
    path = edit(store, tmp_path, "pages", lambda rows: [*rows, {"_id": "row-secret", "text": "again"}])
    versions.commit_file(store, "pages", path)
    assert "row-secret" not in texts(store, "pages")


def test_rows_are_found_by_a_field(store: Store, tmp_path: Path) -> None:
    put(store, ROWS)
    assert erase(store, "pages", where="metadata.title=row-secret", dry_run=True).rows == ["row-secret"]
    assert len(texts(store, "pages")) == 51
    done = erase(store, "pages", where="_source=page")
    assert done.asked == 51
    assert texts(store, "pages") == {}
    with pytest.raises(NotFound, match="no row of"):
        erase(store, "pages", where="_source=page")
    with pytest.raises(UsageError, match="not field=value"):
        erase(store, "pages", where="page")
    with pytest.raises(UsageError, match="no column"):
        erase(store, "pages", where="colour=red")
    with pytest.raises(UsageError, match="which rows"):
        erase(store, "pages")
    with pytest.raises(NotFound, match="no dataset holds"):
        erase(store, "pages", ids=["row-nowhere"])


def test_what_a_row_was_made_from_goes_where_it_is_asked_for(store: Store) -> None:
    put(store, ROWS)
    derived(store)
    [made] = [s for s in store.open_dataset(store.resolve("clean", DatasetVersion)).samples() if SECRET in s.text]
    done = erase(store, "clean", ids=[made.id], dry_run=True)
    assert done.rows == [made.id]
    done = erase(store, "clean", ids=[made.id], sources=True)
    assert set(done.rows) == {made.id, "row-secret", "row-copy"}
    assert not holds(store, SECRET[:40])


def test_text_that_another_row_holds_is_reported(store: Store) -> None:
    put(store, {**ROWS, "row-twin": SECRET}, "pages")
    done = erase(store, "pages", ids=["row-secret"])
    assert done.proof["after"]["pieces_found"] > 0
    assert done.proof["after"]["also_in_rows"] == ["row-twin"]


def test_models_that_learnt_the_row_are_named(store: Store, put_model: PutModel) -> None:
    pages = put(store, ROWS)
    model = put_model(store, name="helper")
    run = Run(
        id="r1",
        group="g",
        step="s",
        stage="train.sft",
        status="done",
        inputs={"source": pages.digest},
        output=model.digest,
        started=now(),
    )
    store.index.put_run(run)
    (store.root / "runs" / "note.txt").write_text(SECRET)
    done = erase(store, "pages", ids=["row-secret"])
    assert done.retrain == ["helper@1"]
    assert done.elsewhere == ["runs/note.txt"]
    assert store.index.find_runs(id="r1")[0].inputs == {"source": store.resolve("pages").digest}


def test_erasing_waits_for_no_run(store: Store) -> None:
    put(store, ROWS)
    with store.lock("gc", shared=True), pytest.raises(EnvironmentProblem, match="a run"):
        erase(store, "pages", ids=["row-secret"])


def test_the_key_and_the_journal_are_for_their_owner_only(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, ROWS)
    monkeypatch.setattr(erasing, "_prove", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        erase(store, "pages", ids=["row-secret"])
    private = [*store.root.glob("erasures/*.journal"), *store.root.glob("keys/*.key")]
    assert len(private) == 3
    assert {path.stat().st_mode & 0o077 for path in private} == {0}


KILLED = """
import os, signal, sys
from pathlib import Path
from catena.hub import erase as erasing, index
from catena.hub.store import open_store
store = open_store(Path(sys.argv[1]))
where = sys.argv[2]
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
if where == "rewrite": erasing._rewrite = die
if where == "switch": index.Index.replace_datasets = die
if where == "purge": erasing.shutil.rmtree = die
if where == "prove": erasing._prove = die
write = erasing.write_atomically
if where == "attest": erasing.write_atomically = lambda path, *a, **k: (
    die() if path.suffix == ".json" else write(path, *a, **k)
)
erasing.erase(store, "pages", ids=["row-secret"])
"""


@pytest.mark.parametrize("where", ["rewrite", "switch", "purge", "attest"])
def test_a_killed_erasure_is_finished_by_the_next(store: Store, tmp_path: Path, where: str) -> None:
    history(store, tmp_path)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(store.root), where], check=False)
    assert killed.returncode == -signal.SIGKILL
    again = open_store(store.root)
    with pytest.raises(NotFound):
        erase(again, "pages", ids=["row-secret"])
    [(done, valid)] = tombstones(again)
    assert valid
    assert done.commits
    assert not holds(again, SECRET[:40])
    assert versions.verify(again, "pages") == []
    assert texts(again, "pages@first").keys() == ROWS.keys() - {"row-secret"}
    assert not list((store.root / "erasures").glob("*.journal"))
    assert orjson.loads((store.root / "erasures" / f"{done.id}.json").read_bytes())["rows"] == done.rows
    again.close()


def test_rows_are_found_by_a_number_and_inside_the_metadata(store: Store) -> None:
    with store.new_dataset("document") as writer:
        for number in range(4):
            fields = {"user": number, "mail": f"{number}@acme.test"}
            writer.add(Sample(f"row-{number}", {"text": f"text {number}"}, {"line": number, "fields": fields}))
        store.index.add_artifact(version := writer.commit())
    store.index.add_name("people", version.digest)
    for where in ("metadata.line=2", "metadata.fields.user=2", "metadata.fields.mail=2@acme.test"):
        assert erase(store, "people", where=where, dry_run=True).rows == ["row-2"]
