"""Lineage: back to the sources, forward to the uses, through passed-on artifacts, and from an answer to its page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from catena.core.errors import UsageError
from catena.core.sample import Sample, sample_id
from catena.core.types import Artifact, DatasetVersion, ModelVersion, Run, Score
from catena.hub.attribution import answer_sources
from catena.hub.drawing import as_svg
from catena.hub.examples import held_out
from catena.hub.lineage import Graph, as_json, as_text, graph_of, sources, trace
from catena.hub.store import Store

BEGIN = datetime(2030, 1, 1, tzinfo=UTC)
SVG = "{http://www.w3.org/2000/svg}"


class History:
    """Records runs by hand, as the runner does."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder, self.count = store, folder, 0

    def run(
        self,
        stage: str,
        inputs: Mapping[str, Artifact],
        output: Artifact,
        name: str,
        tags: tuple[str, ...] = (),
        **fields: Any,
    ) -> Any:
        self.count += 1
        started = BEGIN + timedelta(seconds=self.count)
        run = Run(
            id=f"run{self.count}",
            group="g",
            step=name,
            stage=stage,
            recipe="r",
            status="done",
            inputs={key: item.digest for key, item in inputs.items()},
            output=output.digest,
            started=started,
            ended=started + timedelta(seconds=0.5),
            key=f"key{self.count}",
            **fields,
        )
        return self.store.index.finish(run, output, name, tags)[0]

    def documents(self, *texts: str) -> DatasetVersion:
        with self.store.new_dataset("document") as out:
            for number, text in enumerate(texts):
                out.add(Sample(sample_id(text), {"text": text}, source=f"site:/page{number % 2}.html", split="train"))
            return out.commit()

    def conversations(self, *turns: tuple[str, str, str, str]) -> DatasetVersion:
        """Each: split, question, answer, page."""
        with self.store.new_dataset("conversation") as out:
            for split, question, answer, page in turns:
                messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                data, parents = {"messages": messages}, (f"definition of {page}",)
                out.add(Sample(sample_id(question), data, {"page": page}, parents=parents, split=split))
            return out.commit()

    def model(self, text: str, form: Any = "full", **facts: Any) -> ModelVersion:
        folder = self.folder / sample_id(text)
        folder.mkdir()
        (folder / "model.safetensors").write_text(text)
        return self.store.put_model(folder, form, parameters=1000, **facts)


@pytest.fixture
def history(store: Store, tmp_path: Path) -> History:
    return History(store, tmp_path)


@pytest.fixture
def chain(history: History) -> dict[str, Any]:
    """pages -> text -> talks -> tuned -> small -> answers and gate -> promoted, as a recipe makes it."""
    made: dict[str, Any] = {}
    made["pages"] = history.run("data.crawl", {}, history.documents("<a>", "<b>", "<c>"), "pages")
    made["text"] = history.run("data.extract", {"source": made["pages"]}, history.documents("a", "b"), "text")
    talks = history.conversations(
        ("train", "What does json.loads do?", "Deserialize a string\nto a Python object.", "site:/json.html"),
        ("train", "json.loads?", "Deserialize a string to a Python object.", "site:/json.html"),
        ("train", "What does os.remove do?", "Remove a file.", "site:/os.html"),
        ("train", "What does pathlib.unlink do?", "Remove this file or link.", "site:/pathlib.html"),
        ("train", "读取做什么？", "读取一个文件并返回字符串。", "site:/zh.html"),
        ("held_out", "Say what os.link does", "Create a hard link.", "site:/os.html"),
    )
    made["talks"] = history.run("data.converse", {"source": made["text"]}, talks, "talks")
    made["base"] = history.run("train.pretrain", {"data": made["text"]}, history.model("base"), "base")
    inputs = {"base": made["base"], "data": made["talks"]}
    made["tuned"] = history.run("train.sft", inputs, history.model("tuned"), "tuned")
    small = history.model("small", "quantized", base=made["tuned"].digest, quantization="int8")
    made["small"] = history.run("compress.quantize", {"model": made["tuned"]}, small, "small")
    store = history.store
    for name in ("tuned", "small"):
        report = store.put_report(made[name], "answers", {"accuracy": Score(value=0.9)}, details={"of": name})
        inputs = {"model": made[name], "data": made["talks"]}
        made[f"answers-{name}"] = history.run("evaluate.answers", inputs, report, f"answers-{name}")
    pair = {"candidate": made["small"], "baseline": made["tuned"]}
    reports = {"candidate_report": made["answers-small"], "baseline_report": made["answers-tuned"]}
    gate = store.put_report(made["small"], "gate", {}, details={"verdict": "passed"})
    made["gate"] = history.run("govern.gate", {**pair, **reports}, gate, "gate")
    history.run("govern.promote", {"gate": made["gate"], **pair}, made["small"], "helper", ("production",))
    return made


def stages(graph: Graph) -> set[str]:
    return {node.label for node in graph.nodes if node.kind == "run"}


def test_up_leads_to_everything_it_was_made_from_and_nothing_else(store: Store, chain: dict[str, Any]) -> None:
    graph = trace(store, chain["small"], down=False)
    assert stages(graph) == {
        "data.crawl",
        "data.extract",
        "data.converse",
        "train.pretrain",
        "train.sft",
        "compress.quantize",
    }
    artifacts = {node.id for node in graph.nodes if node.kind != "run"}
    assert artifacts == {chain[name].digest for name in ("pages", "text", "talks", "base", "tuned", "small")}


def test_down_leads_to_everything_that_was_made_of_it(store: Store, chain: dict[str, Any]) -> None:
    graph = trace(store, chain["tuned"], up=False)
    assert stages(graph) == {"compress.quantize", "evaluate.answers", "govern.gate", "govern.promote"}
    assert chain["pages"].digest not in {node.id for node in graph.nodes}


def test_a_promotion_passes_on_and_makes_no_circle(store: Store, chain: dict[str, Any]) -> None:
    graph = trace(store, chain["small"])
    (promotion,) = [node for node in graph.nodes if node.label == "govern.promote"]
    assert promotion.facts["passes_on"] == chain["small"].digest
    assert graph.after(promotion.id) == []
    assert {edge.label for edge in graph.before(promotion.id)} == {"gate", "candidate", "baseline"}
    assert graph.node(chain["small"].digest).label == "helper@production"


def test_a_step_that_changes_nothing_makes_no_circle(store: Store, history: History) -> None:
    pages = history.run("data.crawl", {}, history.documents("a", "b"), "pages")
    history.run("data.filter", {"source": pages}, pages, "kept")
    other = history.run("data.mask", {"source": pages}, history.documents("a", "x"), "masked")
    history.run("data.unmask", {"source": other}, pages, "unmasked")
    graph = trace(store, pages)
    assert stages(graph) == {"data.crawl", "data.filter", "data.mask", "data.unmask"}
    assert "data.filter" in as_text(graph)
    assert as_svg(graph).count("<rect") == 3


def test_the_same_work_done_again_is_told_once(store: Store, history: History) -> None:
    pages = history.run("data.crawl", {}, history.documents("a"), "pages")
    history.run("data.crawl", {}, history.documents("a"), "pages", config={"delay_s": 1})
    graph = trace(store, pages)
    assert [node.facts["run"] for node in graph.nodes if node.kind == "run"] == ["run2"]


def test_an_input_that_is_gone_is_told_as_gone(store: Store, chain: dict[str, Any]) -> None:
    store.index.remove_artifact(chain["text"].digest)
    graph = trace(store, chain["small"])
    assert graph.node(chain["text"].digest).kind == "gone"
    assert ElementTree.fromstring(as_svg(graph)).tag == f"{SVG}svg"
    assert chain["text"].digest[:12] in as_text(graph)


def test_the_first_dataset_names_its_source_documents(store: Store, chain: dict[str, Any]) -> None:
    found = sources(store, chain["pages"])
    assert (found.total, found.counts) == (2, {"site:/page0.html": 2, "site:/page1.html": 1})
    assert sources(store, chain["pages"], limit=1) == type(found)(2, {"site:/page0.html": 2})
    facts = trace(store, chain["small"]).node(chain["pages"].digest).facts
    assert facts["sources"] == 2
    assert facts["first_sources"] == ["site:/page0.html", "site:/page1.html"]
    assert "sources" not in trace(store, chain["small"]).node(chain["text"].digest).facts


def test_history_is_told_without_the_bytes(store: Store, chain: dict[str, Any]) -> None:
    (store.datasets / chain["pages"].table / "files.json").unlink()
    for path in (store.datasets / chain["pages"].table).rglob("*.lance"):
        if path.is_file():
            path.unlink()
    assert (
        "sources"
        not in trace(Store(store.root, store.index_url, str(store.root / "objects")), chain["small"])
        .node(chain["pages"].digest)
        .facts
    )


def test_json_has_nodes_and_edges_that_fit(store: Store, chain: dict[str, Any]) -> None:
    graph = as_json(trace(store, chain["small"]))
    ids = {node["id"] for node in graph["nodes"]}
    assert all(edge["from"] in ids and edge["to"] in ids and edge["label"] for edge in graph["edges"])
    assert graph["root"] == chain["small"].digest
    model = next(node for node in graph["nodes"] if node["id"] == graph["root"])
    assert model["kind"] == "model"
    assert "small@1" in model["names"]
    assert model["facts"]["quantization"] == "int8"
    run = next(node for node in graph["nodes"] if node["label"] == "train.sft")
    assert {key: run[key] for key in ("kind", "stage", "step", "recipe", "seconds")} == {
        "kind": "run",
        "stage": "train.sft",
        "step": "tuned",
        "recipe": "r",
        "seconds": 0.5,
    }


def test_text_draws_both_trees(store: Store, chain: dict[str, Any]) -> None:
    lines = as_text(trace(store, chain["small"])).splitlines()
    assert lines[0].startswith("helper@production = helper@1, small@1 (model, int8, 1K parameters, 0.00 MB) by")
    assert lines[2:6] == [
        "made from",
        "└─ model: tuned@1 (model, full, 1K parameters, 0.00 MB) by train.sft, 0.5 s",
        "   ├─ base: base@1 (model, full, 1K parameters, 0.00 MB) by train.pretrain, 0.5 s",
        "   │  └─ data: text@1 (dataset, 2 documents) by data.extract, 0.5 s",
    ]
    assert "candidate: govern.promote, 0.5 s, passes on helper@production" in "\n".join(lines)
    assert "(its branches: above)" in "\n".join(lines)


def test_the_drawing_is_well_formed_and_boxes_keep_apart(store: Store, chain: dict[str, Any]) -> None:
    runs = store.index.find_runs(run_group="g")
    root = ElementTree.fromstring(as_svg(graph_of(store, runs)))
    boxes = [
        tuple(float(rect.attrib[key]) for key in ("x", "y", "width", "height")) for rect in root.iter(f"{SVG}rect")
    ]
    assert len(boxes) == 10  # nine artifacts and the promotion
    for number, (x, y, width, height) in enumerate(boxes):
        for other_x, other_y, _, _ in boxes[number + 1 :]:
            assert abs(x - other_x) >= width or abs(y - other_y) >= height
    view = [float(part) for part in root.attrib["viewBox"].split()]
    assert all(x >= 0 and x + width <= view[2] and y + height <= view[3] for x, y, width, height in boxes)
    assert view[2] < 1000


def test_every_text_in_a_drawing_is_escaped(store: Store, history: History) -> None:
    data = history.documents("a")
    history.run('<script>alert("1")</script>&', {}, data, "pages")
    svg = as_svg(trace(store, data))
    assert "<script" not in svg
    assert re.search(r"&lt;script&gt;", svg)
    ElementTree.fromstring(svg)


def test_an_empty_graph_is_drawn(store: Store) -> None:
    ElementTree.fromstring(as_svg(graph_of(store, [])))


def test_an_answer_leads_to_the_page_it_was_learnt_from(store: Store, chain: dict[str, Any]) -> None:
    for model in ("tuned", "small"):
        (found,) = answer_sources(store, chain[model], " Deserialize a string to a  Python object.\n")
        assert (found.page, found.similarity) == ("site:/json.html", 1.0)
        assert found.question == "What does json.loads do?"
        assert (found.dataset, found.parents) == (chain["talks"].digest, ("definition of site:/json.html",))


def test_an_answer_in_other_words_leads_to_the_nearest(store: Store, chain: dict[str, Any]) -> None:
    found = answer_sources(store, chain["small"], "Remove a link.")
    assert [source.page for source in found] == ["site:/os.html", "site:/pathlib.html"]
    assert all(source.similarity < 1 for source in found)
    assert answer_sources(store, chain["small"], "Remove a link.", limit=1) == found[:1]
    (chinese,) = answer_sources(store, chain["small"], "读取文件并返回字符")
    assert chinese.page == "site:/zh.html"


def test_only_what_was_trained_on_counts(store: Store, chain: dict[str, Any]) -> None:
    pages = {source.page: source.similarity for source in answer_sources(store, chain["small"], "Create a hard link.")}
    assert 1.0 not in pages.values()
    assert answer_sources(store, chain["small"], "Quite another thing") == []
    assert answer_sources(store, chain["base"], "Remove a file.") == []
    assert answer_sources(store, chain["small"], "") == []


def exchange(split: str, name: str, template: str, question: str) -> Sample:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": f"It is {name}."}]
    metadata = {"page": f"site:/{name.partition('.')[0]}.html", "template": template}
    return Sample(sample_id(split, question), {"messages": messages}, metadata, split=split)


@pytest.fixture
def asked(history: History) -> dict[str, Any]:
    """A model of conversations of which two splits were kept back, with four phrasings each, and a smaller form."""
    forms = ("What is {}?", "Say what {} is", "Name the use of {}", "{} 是做什么的？")
    with history.store.new_dataset("conversation") as out:
        for name in ("a.one", "b.two", "c.three", "d.four"):
            out.add(exchange("train", name, "fixed", f"{name}?"))
            for split in ("kept", "unseen"):
                for number, form in enumerate(forms):
                    out.add(exchange(split, name, f"{split}/{number}", form.format(name)))
        talks = out.commit()
    talks = history.run("data.converse", {}, talks, "talks")
    tuned = history.run("train.sft", {"data": talks}, history.model("tuned"), "tuned")
    small = history.run("compress.quantize", {"model": tuned}, history.model("small", "quantized"), "small")
    return {"talks": talks, "small": small}


def test_examples_are_kept_back_spread_over_phrasings_and_one_is_chinese(store: Store, asked: dict[str, Any]) -> None:
    drawn = held_out(store, asked["small"], 3)
    assert drawn == held_out(store, asked["small"], 3)
    assert len({example.phrasing for example in drawn}) == len({example.page for example in drawn}) == 3
    assert {example.split for example in drawn} == {"kept", "unseen"}
    assert {example.dataset for example in drawn} == {asked["talks"].digest}
    assert "是做什么的" in drawn[-1].question
    assert drawn[0].is_answered_by(f" {drawn[0].expected}\n")
    assert not drawn[0].is_answered_by(drawn[1].expected)
    assert len({example.question + example.split for example in held_out(store, asked["small"], 8)}) == 8
    assert len(held_out(store, asked["small"], 1000)) == 32


def test_a_model_without_such_questions_is_told(store: Store, chain: dict[str, Any], history: History) -> None:
    assert [example.question for example in held_out(store, chain["small"], 3)] == ["Say what os.link does"]
    with pytest.raises(UsageError, match="no questions to try it with"):
        held_out(store, chain["base"], 3)
    learnt = history.conversations(("train", "What is it?", "A thing.", "site:/it.html"))
    model = history.run("train.sft", {"data": learnt}, history.model("other"), "other")
    with pytest.raises(UsageError, match="no questions to try it with"):
        held_out(store, model, 3)
