"""Labelling: kept by person until it is committed; two who label at once lose nothing."""

from __future__ import annotations

from typing import Any

import pytest

import catena
from catena.console.read import datasets, labels as read
from catena.console.read.audit import search
from catena.core.sample import Sample
from catena.core.types import DatasetVersion
from catena.govern.audit.reading import Query
from catena.hub.corrections import Corrected, Correction, correct
from catena.hub.store import Store
from catena.workspace import Workspace
from tests.console.conftest import Small, Visit

pytestmark = pytest.mark.xdist_group("console")


@pytest.fixture
def workspace(store: Store) -> Workspace:
    with store.new_dataset("example") as writer:
        for number in range(6):
            writer.add(Sample(f"r{number}", {"input": f"text {number} 文", "output": "good" if number % 2 else "bad"}))
        made = writer.commit()
    store.index.add_artifact(made)
    store.index.add_name("judged", made.digest)
    return Workspace(store)


def outputs(workspace: Workspace, ref: str = "judged") -> dict[str, str]:
    return {sample.id: str(sample.data["output"]) for sample in workspace.dataset(ref).samples()}


def say(workspace: Workspace, person: str, id: str, value: str) -> None:
    row = datasets.row(workspace, "judged", id)
    assert row is not None
    read.keep(workspace.store, "judged", person, read.Label(id, read.label_of(row), value), id)


def test_labels_become_a_version_and_the_old_one_stays(workspace: Workspace) -> None:
    assert read.choices(workspace, "judged") == ["bad", "good"]
    say(workspace, "ana", "r0", "很好")
    say(workspace, "ana", "r1", "good")  # as it was: nothing changes
    say(workspace, "ana", "r2", "mixed")
    read.keep(workspace.store, "judged", "ana", None, "r2")  # taken back
    assert set(read.kept(workspace.store, "judged", "ana")) == {"r0", "r1"}
    done = read.commit(workspace, "judged", "ana", "two labels")
    assert (done.changed, done.conflicts) == (1, ())
    assert outputs(workspace)["r0"] == "很好"
    assert outputs(workspace, "judged@1")["r0"] == "bad"
    assert read.kept(workspace.store, "judged", "ana") == {}
    assert [entry.author for entry in _log(workspace)][:1] == ["ana"]


def _log(workspace: Workspace) -> list[object]:
    from catena.hub.versions import log

    return [entry.commit for entry in log(workspace.store, "judged")]


def test_two_who_label_at_once_lose_nothing(workspace: Workspace) -> None:
    for person, rows in (("ana", {"r0": "good", "r3": "bad"}), ("bo", {"r0": "ugly", "r4": "good"})):
        for id, value in rows.items():
            say(workspace, person, id, value)
    assert read.commit(workspace, "judged", "ana", "").changed == 2
    done = read.commit(workspace, "judged", "bo", "")
    assert done.changed == 1  # r4; r0 says something else than bo saw
    assert read.conflicts_of(done) == [("r0", "ugly", "good")]
    assert outputs(workspace) | {} == outputs(workspace)
    assert (outputs(workspace)["r0"], outputs(workspace)["r4"]) == ("good", "good")
    assert read.kept(workspace.store, "judged", "bo")["r0"].value == "ugly"  # not lost, and now over what stands
    assert read.commit(workspace, "judged", "bo", "").changed == 1
    assert outputs(workspace)["r0"] == "ugly"


def test_a_label_of_a_document_stands_in_its_metadata(store: Store) -> None:
    with store.new_dataset("document") as writer:
        writer.add(Sample("d", {"text": "some text"}, {"url": "u"}))
        made = writer.commit()
    store.index.add_artifact(made)
    store.index.add_name("docs", made.digest)
    done = correct(store, "docs", [Correction("d", "metadata.label", None, "spam"), Correction("x", "text", "", "y")])
    assert done.changed == 1
    assert [one.id for one, _ in done.conflicts] == ["x"]
    (sample,) = Workspace(store).dataset("docs").samples()
    assert sample.metadata == {"url": "u", "label": "spam"}
    artifact = store.resolve("docs", DatasetVersion)
    assert read.field_of(artifact) == "metadata.label"
    assert read.choices(Workspace(store), "docs") == ["spam"]


def test_a_line_cut_short_by_a_kill_is_passed_over(workspace: Workspace) -> None:
    say(workspace, "ana", "r0", "good")
    with read._file(workspace.store, "judged", "ana").open("ab") as stream:
        stream.write(b'{"id": "r1", "val')
    assert set(read.kept(workspace.store, "judged", "ana")) == {"r0"}
    say(workspace, "ana", "r2", "bad")
    assert set(read.kept(workspace.store, "judged", "ana")) == {"r0", "r2"}, "the next line is one of its own"


def test_what_is_said_while_labels_are_committed_is_kept(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    for id in ("r0", "r1", "r2"):
        say(workspace, "ana", id, "first")

    def slow(*asked: Any, **named: Any) -> Corrected:
        done = correct(*asked, **named)
        read.keep(workspace.store, "judged", "ana", read.Label("r0", "bad", "second"), "r0")
        read.keep(workspace.store, "judged", "ana", None, "r1")
        return done

    monkeypatch.setattr(read, "correct", slow)
    assert read.commit(workspace, "judged", "ana", "").changed == 3
    monkeypatch.undo()
    assert read.kept(workspace.store, "judged", "ana") == {"r0": read.Label("r0", "first", "second")}
    assert read.commit(workspace, "judged", "ana", "").changed == 1
    assert outputs(workspace)["r0"] == "second"


def test_samples_are_labelled_with_the_keyboard(visit: Visit, small: Small) -> None:
    with catena.open(small.root) as ws:
        with ws.store.new_dataset("example") as writer:
            for number in range(3):
                writer.add(Sample(f"k{number}", {"input": f"question {number}", "output": ["yes", "no"][number % 2]}))
            made = writer.commit()
        ws.store.index.add_artifact(made)
        ws.store.index.add_name("keyed", made.digest)
    visitor = visit("developer")
    visitor.go("/datasets/keyed@1?tab=labels")
    visitor.page.wait_for_selector("text=question 0")
    visitor.page.keyboard.press("2")
    visitor.page.wait_for_selector("text=question 1")
    visitor.page.fill("input[placeholder='Another label']", "maybe 也许")
    visitor.page.keyboard.press("Enter")
    visitor.page.wait_for_selector("text=question 2")
    visitor.page.click("text=Commit as a new version")
    visitor.page.wait_for_url("**/datasets/keyed?tab=labels")
    with catena.open(small.root) as ws:
        found = {sample.id: sample.data["output"] for sample in ws.dataset("keyed").samples()}
        (act,) = search(ws, Query(kind="act", text="labels.commit"), "test").entries
    assert found == {"k0": "no", "k1": "maybe 也许", "k2": "yes"}
    assert act.who == "developer-key"
    assert '"dataset": "keyed"' in act.body
    assert not visitor.errors
