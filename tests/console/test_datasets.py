"""Datasets as the console reads and shows them: rows by page, search, funnel, versions; hostile text stays text."""

from __future__ import annotations

import pytest

import catena
from catena.console.read import datasets as read
from catena.core.errors import IntegrityError, NotFound, UsageError
from catena.core.sample import Sample
from catena.hub.store import Store
from catena.workspace import Workspace
from tests.console.conftest import EVIL, Small, Visit

pytestmark = pytest.mark.xdist_group("console")


def put(store: Store, name: str, rows: dict[str, str]) -> None:
    with store.new_dataset("document", license="CC0-1.0") as writer:
        for id, text in rows.items():
            writer.add(Sample(id, {"text": text}, {"n": len(text)}, source=f"s:{id}", license="CC0-1.0", split="train"))
        made = writer.commit()
    store.index.add_artifact(made)
    store.index.add_name(name, made.digest)


def test_rows_come_by_page_and_search_keeps_the_stored_order(store: Store) -> None:
    put(store, "many", {f"r{number:04d}": f"Row {number} 第{number}行" for number in range(1000)})
    ws = Workspace(store)
    page = read.rows(ws, "many", "samples", (990, 50))
    assert [row["_id"] for row in page.rows] == [f"r{number:04d}" for number in range(990, 1000)]
    assert page.total == 1000
    found = read.rows(ws, "many", "samples", (1, 2), "ROW 99")
    assert (found.total, [row["_id"] for row in found.rows]) == (11, ["r0990", "r0991"])
    assert read.rows(ws, "many", "samples", (0, 5), "第77行").total == 1
    assert read.rows(ws, "many", "samples", (0, 5), "r0007").total == 1
    assert read.rows(ws, "many", "samples", (0, 5), "", "test").total == 0


def test_messages_of_conversations_are_searched(store: Store) -> None:
    with store.new_dataset("conversation") as writer:
        for number in range(3):
            turns = [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"Answer {number}"}]
            writer.add(Sample(f"c{number}", {"messages": turns if number else []}))
        made = writer.commit()
    store.index.add_artifact(made)
    found = read.rows(Workspace(store), made.digest, "samples", (0, 9), "answer 2")
    assert [row["_id"] for row in found.rows] == ["c2"]
    assert read.text_of(found.rows[0]) == "user: q2\nassistant: Answer 2"


def test_two_versions_are_compared_by_page(store: Store) -> None:
    put(store, "pages", {"a": "one", "b": "two", "c": "three"})
    put(store, "pages", {"b": "two", "c": "3", "d": "four"})
    ws = Workspace(store)
    found = read.compared(ws, "pages@1", "pages@2", (0, 9))
    assert found.counts == {"added": 1, "removed": 1, "changed": 1, "unchanged": 1}
    assert [(change.kind, change.key) for change in found.rows] == [("removed", "a"), ("changed", "c"), ("added", "d")]
    second = read.compared(ws, "pages@1", "pages@2", (1, 1))
    assert [(change.kind, change.key) for change in second.rows] == [("changed", "c")]
    with store.new_dataset("example") as writer:
        writer.add(Sample("e", {"input": "i", "output": "o"}))
        other = writer.commit()
    store.index.add_artifact(other)
    with pytest.raises(UsageError, match="cannot be compared"):
        read.compared(ws, "pages", other.digest, (0, 1))


def test_a_damaged_table_is_told_in_words(store: Store) -> None:
    put(store, "gone", {"a": "one"})
    artifact = read.opened(Workspace(store), "gone").artifact
    for file in (store.datasets / artifact.table).rglob("*.lance"):
        if file.is_file():
            file.unlink()
    with pytest.raises(IntegrityError, match="cannot be read"):
        read.rows(Workspace(store), "gone", "samples", (0, 1))
    with pytest.raises(NotFound):
        read.opened(Workspace(store), "nothing")


def test_the_chain_is_read_as_it_ran(small: Small) -> None:
    with catena.open(small.root) as ws:
        names = {one.name: one for one in read.listed(ws)}
        assert {"small/documents", "small/filtered", "small/deduped", "small/corpus"} <= set(names)
        steps = read.funnel(ws, "small/corpus")
        assert [step.stage for step in steps] == ["data.ingest", "data.filter", "data.dedup", "data.split"]
        assert steps[1].rows_in - steps[1].rows_out == sum(steps[1].rejected.values()) >= 1
        assert sum(read.reasons(ws, "small/filtered").values()) == names["small/filtered"].artifact.rejects
        assert read.licences(ws, "small/corpus") == {"CC0-1.0": names["small/corpus"].artifact.rows}
        assert read.sources(ws, "small/corpus", (0, 5), "en-0")[1] >= 5


def test_a_dataset_is_walked_in_the_browser(visit: Visit) -> None:
    visitor = visit("developer")
    visitor.go("/datasets")
    visitor.page.click("text=small/corpus")
    visitor.page.wait_for_selector(".c-tabs")
    assert "Samples" in visitor.text
    visitor.page.fill(".c-search input", "hostile")
    visitor.page.wait_for_function("document.querySelectorAll('.c-table tbody tr').length === 1")
    assert EVIL[:20] in visitor.text  # shown letter by letter, and nothing of it ran
    assert "taken" not in visitor.page.title()
    visitor.page.click(".c-plainlink")
    visitor.page.wait_for_selector(".c-facts")
    assert EVIL in visitor.text
    assert "taken" not in visitor.page.title()
    for tab in ("funnel", "rejects", "licences", "versions"):
        visitor.go(f"/datasets/small/filtered@1?tab={tab}")
        assert "Traceback" not in visitor.text
        assert not visitor.page.query_selector(".c-trouble"), tab
    assert visitor.go("/datasets/no-such").status == 404
    assert not visitor.errors
