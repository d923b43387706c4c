"""The store as people and runs use it: references, tags, damage, many processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from catena.core.errors import (
    DataError,
    IntegrityError,
    NotFound,
    UsageError,
)
from catena.core.sample import Sample
from catena.core.types import DatasetVersion, ModelVersion, Run, Score
from catena.hub.index import now
from catena.hub.store import Store, open_store

Put = Callable[..., Any]


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# -- references ------------------------------------------------------------------------------------------------------


def test_name_stands_for_its_newest_version(store: Store, put_documents: Put) -> None:
    first, second = put_documents(store, "one"), put_documents(store, "two")
    assert store.resolve("pages") == store.resolve("pages@latest") == store.resolve("pages@2")
    assert store.resolve("pages").digest == second.digest
    assert store.resolve("pages@1").digest == first.digest


def test_digest_prefix_of_six_digits_is_a_reference(store: Store, put_documents: Put) -> None:
    version = put_documents(store, "one")
    assert store.resolve(version.digest[:6]).digest == version.digest
    with pytest.raises(NotFound):
        store.resolve(version.digest[:5])


def test_ambiguous_prefix_is_refused(store: Store, put_documents: Put) -> None:
    version = put_documents(store, "one")
    twin = version.model_copy(update={"digest": version.digest[:20] + "0" * 44})
    store.index.add_artifact(twin)
    with pytest.raises(UsageError, match="begins 2 digests"):
        store.resolve(version.digest[:8])


def test_unknown_references_name_the_closest(store: Store, put_documents: Put) -> None:
    with pytest.raises(NotFound) as empty:
        store.resolve("pages")
    assert "empty" in empty.value.hint
    put_documents(store, "one")
    with pytest.raises(NotFound) as misspelt:
        store.resolve("pagse")
    assert misspelt.value.hint == "Did you mean 'pages'?"
    with pytest.raises(NotFound, match="has no version, tag, branch or commit '9'"):
        store.resolve("pages@9")


@pytest.mark.parametrize("ref", ["", "@", "pages@", "pages@@1", "../pages", "pages; drop table names", "页面", "%"])
def test_strange_references_are_not_found(store: Store, put_documents: Put, ref: str) -> None:
    put_documents(store, "one")
    with pytest.raises(NotFound):
        store.resolve(ref)


def test_artifact_of_another_kind_is_refused(store: Store, put_documents: Put) -> None:
    put_documents(store, "one")
    assert store.resolve("pages", DatasetVersion).rows == 1
    with pytest.raises(UsageError, match="is a dataset; this needs a model"):
        store.resolve("pages", ModelVersion)


# -- tags ------------------------------------------------------------------------------------------------------------


def test_tag_moves_and_keeps_its_history(store: Store, put_documents: Put) -> None:
    first, second = put_documents(store, "one"), put_documents(store, "two")
    store.tag("pages@1", "good", by="me")
    store.tag("pages@2", "good")
    assert store.resolve("pages@good").digest == second.digest
    store.tag("pages@1", "good")
    assert store.resolve("pages@good").digest == first.digest
    store.untag("pages", "good")
    with pytest.raises(NotFound):
        store.resolve("pages@good")
    moves = store.index.tag_history("pages")
    assert [move.digest for move in moves] == [first.digest, second.digest, first.digest, None]
    assert moves[0].by == "me"


@pytest.mark.parametrize("tag", ["latest", "1", "", "a b", "-x", "a@b", "生产"])
def test_words_that_cannot_be_tags_are_refused(store: Store, put_documents: Put, tag: str) -> None:
    put_documents(store, "one")
    with pytest.raises(UsageError):
        store.tag("pages", tag)
    assert store.index.tags() == {}


def test_tag_on_a_digest_and_unknown_tag_are_refused(store: Store, put_documents: Put) -> None:
    version = put_documents(store, "one")
    with pytest.raises(UsageError, match="a tag belongs to a name"):
        store.tag(version.digest[:12], "good")
    with pytest.raises(NotFound):
        store.untag("pages", "good")


# -- content and names -----------------------------------------------------------------------------------------------


def test_same_content_made_twice_is_one_artifact(store: Store, put_documents: Put) -> None:
    first, second = put_documents(store, "one", "两"), put_documents(store, "one", "两")
    assert first.digest == second.digest
    assert [row.version for row in store.index.versions("pages")] == [1]
    assert put_documents(store, "两", "one").digest != first.digest


def test_going_back_to_older_content_is_a_new_version(store: Store, put_documents: Put) -> None:
    first = put_documents(store, "one")
    put_documents(store, "two")
    put_documents(store, "one")
    assert [row.version for row in store.index.versions("pages")] == [1, 2, 3]
    assert store.resolve("pages").digest == first.digest


def test_run_that_ends_well_appears_whole(store: Store, put_model: Put) -> None:
    model = put_model(store, name="other")
    run = Run(id="r1", group="g", step="train", stage="s", status="done", key="k", output=model.digest, started=now())
    stored, version = store.index.finish(run, model, "model", ("best",))
    assert (stored.digest, version) == (model.digest, 1)
    assert store.resolve("model@best").digest == model.digest
    assert [found.id for found in store.index.find_runs(key="k", status="done")] == ["r1"]


def test_empty_dataset_is_stored_and_read(store: Store, put_documents: Put) -> None:
    empty = put_documents(store)
    opened = store.open_dataset(store.resolve("pages", DatasetVersion))
    assert (empty.rows, len(opened), list(opened.samples()), list(opened.rejects())) == (0, 0, [], [])
    assert empty.funnel is not None
    assert empty.funnel.rows_in == 0


def test_dataset_of_rejects_only_keeps_their_reasons(store: Store) -> None:
    with store.new_dataset("document") as writer:
        writer.reject(Sample("a", {"text": "x"}), "too_short", "1 character")
        writer.reject(Sample("b", {"text": "它's"}), "it's")
        version = writer.commit()
    opened = store.open_dataset(version)
    assert [(sample.id, reason) for sample, reason, _ in opened.rejects()] == [("a", "too_short"), ("b", "it's")]
    assert [sample.text for sample, _, _ in opened.rejects("it's")] == ["它's"]
    assert version.funnel is not None
    assert version.funnel.rejected == {"it's": 1, "too_short": 1}


@pytest.mark.parametrize("bad", ["\ud800", "fine \udfff"])
def test_lone_surrogates_are_refused_and_leave_nothing(store: Store, bad: str) -> None:
    with pytest.raises(DataError, match="cannot be stored"), store.new_dataset("document") as writer:
        writer.add(Sample("a", {"text": bad}))
    assert list(store.datasets.iterdir()) == []


def test_row_of_another_shape_is_refused(store: Store) -> None:
    with pytest.raises(DataError, match="a list, not text"), store.new_dataset("document") as writer:
        writer.add(Sample("a", {"text": ["not", "text"]}))
    assert list(store.datasets.iterdir()) == []


def test_report_keeps_its_scores_and_files(store: Store, put_model: Put, tmp_path: Path) -> None:
    (tmp_path / "details").mkdir()
    (tmp_path / "details" / "samples.jsonl").write_text("{}\n")
    scores = {"accuracy": Score(value=0.9, low=0.8, high=1.0, n=10)}
    report = store.put_report(put_model(store), "answers", scores, folder=tmp_path / "details")
    store.index.add_artifact(report)
    assert store.resolve(report.digest[:12]).identity() == report.identity()
    assert (store.checkout(report) / "samples.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize("fields", [{"value": float("nan")}, {"value": 1.0, "high": float("inf")}])
def test_score_that_is_no_finite_number_is_refused_by_name(
    store: Store, put_model: Put, fields: dict[str, float]
) -> None:
    with pytest.raises(DataError, match="'perplexity' of 'sums'"):
        store.put_report(put_model(store), "sums", {"accuracy": Score(value=0.5), "perplexity": Score(**fields)})


def test_links_in_a_model_folder_and_empty_folders_are_refused(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(DataError, match="holds no files"):
        store.put_model(folder)
    (folder / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(DataError, match="is a link"):
        store.put_model(folder)


# -- damage ----------------------------------------------------------------------------------------------------------


def test_damaged_table_is_named_and_not_used(store: Store, put_documents: Put) -> None:
    version = put_documents(store, "one")
    file = next(file for file in version.files if "data" in file.path)
    path = store.datasets / version.table / file.path
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError, match=file.path):
        store.open_dataset(version)


def test_damaged_table_is_replaced_when_the_same_rows_are_written(store: Store, put_documents: Put) -> None:
    version = put_documents(store, "one")
    file = next(file for file in version.files if "data" in file.path)
    (store.datasets / version.table / file.path).unlink()
    store.index.remove_artifact(version.digest)
    again = put_documents(store, "one")
    assert again.digest == version.digest
    assert [sample.text for sample in store.open_dataset(again).samples()] == ["one"]


def test_damaged_model_file_is_named_and_not_used(store: Store, put_model: Put) -> None:
    model = put_model(store)
    folder = store.checkout(model)
    weights = folder / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(b"weightz")
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        store.checkout(model)
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        store.checkout(model)
    put_model(store)
    assert (store.checkout(model) / "model.safetensors").read_bytes() == b"weights"


# -- processes -------------------------------------------------------------------------------------------------------

KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from catena.core.sample import Sample
from catena.hub.store import open_store
store = open_store(Path(sys.argv[1]))
with store.new_dataset("document") as writer:
    for number in range(3000):
        writer.add(Sample(str(number), {"text": "x" * 100}))
    os.kill(os.getpid(), signal.SIGKILL)
"""

NAMES_AT_ONCE = """
import sys
from pathlib import Path
from catena.core.sample import Sample
from catena.hub.store import init_store
store = init_store(Path(sys.argv[1]), index_url=sys.argv[3])
for number in range(10):
    with store.new_dataset("document") as writer:
        writer.add(Sample("a", {"text": f"{sys.argv[2]} {number}"}))
        version = writer.commit()
    store.index.add_artifact(version)
    store.index.add_name("pages", version.digest)
"""


def test_kill_while_writing_leaves_no_dataset(store: Store) -> None:
    child = python(KILLED_WHILE_WRITING, str(store.root))
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert store.index.all_artifacts() == []
    assert [path.name[:9] for path in store.datasets.iterdir()] == [".writing-"]


def test_two_processes_that_make_and_name_at_once_lose_nothing(tmp_path: Path) -> None:
    root = tmp_path / ".catena"  # neither process finds a workspace: both make it
    children = [python(NAMES_AT_ONCE, str(root), who, "") for who in ("left", "right")]
    for child in children:
        _, error = child.communicate()
        assert child.returncode == 0, error
    store = open_store(root)
    rows = store.index.versions("pages")
    assert [row.version for row in rows] == list(range(1, 21))
    assert len({row.digest for row in rows}) == 20
    store.close()


def test_lock_is_exclusive_between_processes_and_ends_with_its_holder(store: Store) -> None:
    code = (
        "import sys; from pathlib import Path; from catena.hub.store import open_store\n"
        "with open_store(Path(sys.argv[1])).lock('x'): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(store.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with store.lock("x", wait=False) as free:
            assert not free
        with store.lock("x", shared=True, wait=False) as free:
            assert not free
        child.kill()
        with store.lock("x") as free:
            assert free


def test_shared_locks_stand_together(store: Store) -> None:
    with store.lock("x", shared=True), store.lock("x", shared=True, wait=False) as second:
        assert second
        with store.lock("x", wait=False) as alone:
            assert not alone
