"""The report: one file, every section, nothing from outside runs in it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import orjson
import pytest

from catena.core.errors import NotFound
from catena.core.events import Events
from catena.core.sample import Sample, sample_id
from catena.core.types import Artifact, ModelVersion, Report, Run, Score
from catena.flow.report import write_report
from catena.flow.report_curves import curves_of, plot_curves, plot_scores, thinned
from catena.flow.report_scores import compare
from catena.hub.store import Store

BEGIN = datetime(2030, 1, 1, 8, 30, tzinfo=UTC)
EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'


class Group:
    """Plays a run of a small recipe, as the runner records it."""

    def __init__(self, store: Store, folder: Path, name: str = "20300101-083000-abc") -> None:
        self.store, self.folder, self.name, self.seconds = store, folder, name, 0.0
        self.events = Events(store.group_folder(name) / "events.jsonl")

    def run(self, step: str, stage: str, inputs: Mapping[str, Artifact], output: Artifact, **fields: Any) -> Any:
        """Record a step; `took` says how long it was, `tags` what its output gets."""
        took, tags = fields.pop("took", 1.5), fields.pop("tags", ())
        started = BEGIN + timedelta(seconds=self.seconds)
        self.seconds += took
        run = Run(
            id=f"{step}-{self.name[-3:]}",
            group=self.name,
            step=step,
            stage=stage,
            recipe="little-helper",
            inputs={key: item.digest for key, item in inputs.items()},
            output=output.digest,
            key=f"key of {step}",
            machine={"python": "3.11.9", "system": "Linux x86_64", "cores": 2, "memory_gib": 4.0, "pid": 17},
            started=started,
            ended=started + timedelta(seconds=took),
            **{"status": "done", **fields},
        )
        return self.store.index.finish(run, output, f"little-helper/{step}", tags)[0]

    def documents(self) -> Any:
        with self.store.new_dataset("document") as out:
            for number in range(8):
                out.add(Sample(str(number), {"text": f"text {number}"}, source=f"site:/{number}.html", split="train"))
            for number in range(3):
                sample = Sample(f"r{number}", {"text": f"short {EVIL} {number}"}, source="site:/bad.html")
                out.reject(sample, "too_short", f"{number} words")
            out.reject(Sample("twin", {"text": "文本 " * 200}, source="site:/twin.html"), "near_duplicate", "J = 0.93")
            return out.commit(changed={"masked_email": 2})

    def model(self, text: str, size: int, form: Any = "full", **facts: Any) -> ModelVersion:
        folder = self.folder / f"{sample_id(text)}-{self.name}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(text.encode() * size)
        return self.store.put_model(folder, form, parameters=3_600_000, dtype="float32", **facts)

    def answers(self, model: ModelVersion, right: int) -> Report:
        folder = self.folder / f"answers-{model.digest[:8]}-{self.name}"
        folder.mkdir()
        lines = [
            {
                "split": "held_out_phrasings",
                "id": str(number),
                "question": f"What does f{number} do?",
                "answer": f"Does {number}." if number < right else EVIL,
                "reference": f"Does {number}.",
                "score": float(number < right),
                "page": "site:/1.html",
                "finish_reason": "stop",
            }
            for number in range(10)
        ]
        (folder / "samples.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
        scores = {
            "accuracy/held_out_phrasings": Score(value=right / 10, low=right / 10 - 0.1, high=right / 10, n=10),
            "accuracy/unseen_words": Score(value=right / 20, low=right / 20 - 0.1, high=right / 20 + 0.1, n=10),
        }
        return self.store.put_report(model, "answers", scores, details={"data": "d"}, folder=folder)

    def perplexity(self, model: ModelVersion, value: float) -> Report:
        score = Score(value=value, low=value - 1, high=value + 1, n=9000, better="lower")
        return self.store.put_report(model, "perplexity", {"perplexity": score}, details={"data": "e"})


@pytest.fixture
def group(store: Store, tmp_path: Path) -> Group:
    """A finished run with every kind of step."""
    group = Group(store, tmp_path)
    text = group.run("text", "data.filter", {}, group.documents())
    for number in range(1, 1201):
        group.events.bind(step="tuned").metric("loss", 5 * math.exp(-number / 300), number)
        if number % 100 == 0:
            group.events.bind(step="tuned").metric("val_loss", 5.2 * math.exp(-number / 300), number)
            group.events.bind(step="tuned").metric("tokens_per_second", 4000 + number, number)
    tuned = group.run("tuned", "train.sft", {"data": text}, group.model("big", 4000), took=95.0)
    small = group.model("small", 1000, "quantized", base=tuned.digest, quantization="int8")
    small = group.run("small", "compress.quantize", {"model": tuned}, small)
    made: dict[str, Any] = {"candidate": small, "baseline": tuned}
    for name, model, right in (("tuned", tuned, 9), ("small", small, 8)):
        inputs = {"model": model, "data": text}
        answered = group.run(f"answers-{name}", "evaluate.answers", inputs, group.answers(model, right))
        group.run(f"reading-{name}", "evaluate.perplexity", inputs, group.perplexity(model, 14.2 - right / 10))
        made["candidate_report" if name == "small" else "baseline_report"] = answered
    rule = {"name": "keep/accuracy/held_out_phrasings", "value": 0.8889, "limit": 0.85, "better": "higher"}
    size = {"name": "size_ratio", "value": 0.4167, "limit": 0.45, "better": "lower", "candidate": 5000, "held": True}
    rules = [{**rule, "candidate": 0.8, "baseline": 0.9, "held": True}, size]
    details = {"verdict": "passed", "winner": small.digest, "rules": rules}
    gate = group.run("gate", "govern.gate", made, store.put_report(small, "gate", {}, details=details))
    inputs = {"gate": gate, "candidate": small, "baseline": tuned}
    group.run("helper", "govern.promote", inputs, small, tags=("production",))
    return group


class Page(HTMLParser):
    """Collects what a test asks about a page."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def written(group: Group) -> str:
    path = group.folder / "out" / "report.html"
    assert write_report(group.store, group.name, path) == path
    return path.read_text(encoding="utf-8")


def test_every_section_is_there(group: Group) -> None:
    text = written(group)
    for anchor in ("funnel", "curves", "models", "scores", "gate", "answers", "lineage", "timings"):
        assert f'id="{anchor}"' in text
    for words in (
        "little-helper/helper@production",
        "catena serve little-helper/helper@production",
        "2030-01-01 08:30 UTC",
        "12 → 8 document rows",
        "too_short 3, near_duplicate 1",
        "masked_email 2",
        "J = 0.93",
        "1 min 35 s",
        "accuracy/held_out_phrasings",
        "80.0 %",
        "passed",
        "What does f9 do?",
        "page: site:/1.html",
        "0.01 MB",
    ):
        assert words in text, words


def test_tags_are_closed_and_nothing_is_fetched(group: Group) -> None:
    text = written(group)
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.tags)
    assert not [value for name, value in page.attributes if name.startswith("on")]
    links = [value or "" for name, value in page.attributes if name in ("href", "src", "xlink:href")]
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"url\((?!#)|@import", text)
    assert "default-src 'none'" in text


def test_text_from_outside_is_escaped(group: Group) -> None:
    text = written(group)
    assert "<script" not in text
    assert "onerror=alert(1)&gt;" in text


def test_the_same_run_gives_the_same_page(group: Group) -> None:
    assert written(group) == written(group)


def test_cached_steps_show_the_curves_and_times_of_the_run_that_made_them(group: Group) -> None:
    before = group.store.index.find_runs(run_group=group.name)
    again = Group(group.store, group.folder, "20300102-090000-def")
    for run in before:
        inputs = {name: group.store.index.artifact(digest) for name, digest in run.inputs.items()}
        output = group.store.index.artifact(run.output or "")
        assert output is not None
        again.run(run.step, run.stage, inputs, output, status="cached", metrics={"origin": run.id}, took=0.01)  # type: ignore[arg-type]
    text = written(again)
    assert "val_loss" in text
    assert "1 min 35 s" in text
    assert f"{len(before)} from the store" in text


def test_a_curve_goes_on_over_a_killed_attempt(group: Group) -> None:
    (run,) = group.store.index.find_runs(run_group=group.name, step="tuned")
    killed = run.model_copy(
        update={"id": "k", "group": "before", "status": "interrupted", "started": BEGIN - timedelta(hours=1)}
    )
    group.store.index.put_run(killed)
    events = Events(group.store.group_folder("before") / "events.jsonl").bind(step="tuned")
    events.metric("loss", 9.0, -5)
    events.metric("loss", 8.0, 1)
    events.metric("loss", float("nan"), 2)
    loss = curves_of(group.store, run)["loss"]
    assert loss[-5] == 9.0
    assert loss[1] < 8.0
    assert math.isfinite(loss[2])


def test_long_curves_are_thinned_to_means() -> None:
    steps, values = thinned({step: float(step) for step in range(1000)}, most=100)
    assert len(steps) == 100
    assert (steps[0], values[0]) == (4.5, 4.5)
    assert thinned({}) == ([], [])
    assert thinned({3: 2.0}) == ([3.0], [2.0])


def test_plots_take_their_text_colour_from_the_page() -> None:
    svg = plot_curves({"loss": {1: 2.0, 2: 1.0}})
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert svg.startswith("<svg")
    assert plot_curves({}) == ""


def test_scores_that_are_no_shares_stay_out_of_the_plot() -> None:
    scores = {"perplexity": [Score(value=14.0, better="lower")], "accuracy": [Score(value=0.5)]}
    svg = plot_scores(["a<b"], scores)
    assert "accuracy" in svg
    assert "perplexity" not in svg
    assert "a<b" not in svg
    assert plot_scores(["m"], {"perplexity": [Score(value=14.0, better="lower")]}) == ""


def test_answers_are_compared_question_by_question() -> None:
    def lines(*scores: float) -> list[dict[str, Any]]:
        return [{"split": "s", "id": str(number), "score": score} for number, score in enumerate(scores)]

    (row,) = compare(lines(1, 1, 1, 0, 0), lines(1, 0, 0, 1, 0, 1), ("a", "b"))
    assert (row.both, row.lost, row.gained, row.neither) == (1, 2, 1, 1)
    assert row.p_value == 1.0


def test_a_run_of_data_steps_alone_has_a_report(store: Store, tmp_path: Path) -> None:
    group = Group(store, tmp_path)
    group.run("text", "data.filter", {}, group.documents())
    text = written(group)
    assert 'id="funnel"' in text
    assert 'id="scores"' not in text


def test_a_run_without_a_finished_step_has_none(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no finished step"):
        write_report(store, "nothing", tmp_path / "report.html")


def test_training_curves_stand_in_an_order_and_single_numbers_are_no_curve() -> None:
    course = {1: 2.0, 2: 1.0}
    names = ["grad_norm", "learning_rate", "loss", "mfu", "other", "tokens_per_s", "val_loss"]
    svg = plot_curves(dict.fromkeys(names, course) | {"time_to_recover_s": {5: 1.0}})
    places = [svg.index(f">{name}<") for name in ("loss", "learning rate", "gradient norm", "tokens/s", "MFU", "other")]
    assert places == sorted(places)
    assert ">time_to_recover_s<" not in svg
