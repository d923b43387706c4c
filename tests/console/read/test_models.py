"""Models: one row a name, found and sorted; one version with its scores, Pareto, changes and lineage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from catena.console.read.models import Conflict, ModelBook
from catena.core.types import Score
from catena.hub.store import Store
from tests.console.read.conftest import Written, put_model, put_report


def test_models_are_listed_with_tags_and_scores(written: Written) -> None:
    rows = {row.name: row for row in ModelBook(written.store).find().rows}
    assert set(rows) == {"helper", "helper-small"}
    assert rows["helper"].tags == ("production",)
    assert dict(rows["helper"].scores)["tasks/sums/exact"].value == 0.3
    assert rows["helper-small"].license == "MIT"
    assert rows["helper"].size > 0


def test_models_are_found_by_words_tag_and_form(written: Written, tmp_path: Path) -> None:
    book = ModelBook(written.store)
    assert [row.name for row in book.find(search="SMALL mit").rows] == ["helper-small"]
    assert [row.name for row in book.find(tag="production").rows] == ["helper"]
    assert book.find(form="gguf").total == 0
    put_model(written.store, tmp_path / "g", "packed", form="gguf")
    assert [row.name for row in book.find(form="gguf").rows] == ["packed"], "a change of the index is seen"
    assert [row.name for row in book.find(sort="name").rows] == ["helper", "helper-small", "packed"]
    assert book.find(offset=1, limit=1, sort="name").rows[0].name == "helper-small"


def test_a_tag_on_an_older_version_says_which(written: Written, tmp_path: Path) -> None:
    put_model(written.store, tmp_path / "next", "helper", license="Apache-2.0")
    row = next(row for row in ModelBook(written.store).find().rows if row.name == "helper")
    assert (row.version, row.tags) == (2, ("production@1",))


def test_one_model_tells_its_versions_scores_and_changes(written: Written) -> None:
    book = ModelBook(written.store)
    view = book.one("helper@production")
    assert (view.ref, view.tags, [one.version for one in view.versions]) == ("helper@1", ("production",), [1])
    assert {one.suite for one in view.measured} == {"tasks", "answers"}
    assert [change.what for change in book.changes(view)] == ["tag", "version"]
    assert book.card(view).startswith("# helper")
    drawn = book.lineage(view)
    assert drawn.startswith("<svg")
    assert "prefers-color-scheme" not in drawn
    assert view.pareto is None
    by_digest = book.one(written.models[0].digest[:10])
    assert by_digest.ref == "helper@1"


def test_compressed_versions_stand_beside_the_whole_model(written: Written) -> None:
    store, (whole, small) = written.store, written.models
    details = {
        "baseline": whole.digest,
        "before": {"size": 1000.0, "perplexity": 3.0},
        "after": {"size": 300.0, "perplexity": 3.1},
        "config": {},
    }
    report = store.put_report(small, "compression", {"size": Score(value=300.0)}, details=details)
    put_report(store, report, "small-report")
    for ref in ("helper", "helper-small"):
        pareto = ModelBook(store).one(ref).pareto
        assert pareto is not None
        assert [(one.label, one.best) for one in pareto.made] == [("helper@1", True), ("helper-small@1", True)]
        assert (pareto.measure, pareto.lower) == ("perplexity", True)


def test_of_two_people_who_move_a_tag_the_slower_one_is_told(written: Written, tmp_path: Path) -> None:
    store = written.store
    second = put_model(store, tmp_path / "next", "helper", license="Apache-2.0")
    seen = written.models[0].digest
    book = ModelBook(store)
    book.tag("helper@2", "production", seen, by="ann")
    with pytest.raises(Conflict, match=second.digest[:12]):
        book.tag("helper@1", "production", seen, by="bob")
    assert store.resolve("helper@production").digest == second.digest
    with pytest.raises(Conflict):
        book.untag("helper", "production", seen, by="bob")
    book.untag("helper", "production", second.digest, by="bob")
    assert store.index.tags("helper") == {}


def test_who_presses_twice_is_not_somebody_else(written: Written, tmp_path: Path) -> None:
    store, book = written.store, ModelBook(written.store)
    second = put_model(store, tmp_path / "next", "helper", license="Apache-2.0")
    for _ in range(2):
        book.tag("helper@2", "staging", None, by="ann")
    for _ in range(2):
        book.untag("helper", "staging", second.digest, by="ann")
    moves = [move.digest for move in store.index.tag_history("helper") if move.tag == "staging"]
    assert moves == [second.digest, None]


def test_names_that_look_like_html_stay_text(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    model = store.put_model(folder, license="<script>alert(1)</script>")
    store.index.add_artifact(model)
    store.index.add_name("odd", model.digest)
    book = ModelBook(store)
    assert book.find().rows[0].license == "<script>alert(1)</script>"
    assert "<script>" not in book.lineage(book.one("odd"))
