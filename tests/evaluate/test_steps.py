"""Evaluation as a step of a recipe: whatever decides the scores decides whether the step is taken from the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from catena.core.errors import DataError
from catena.core.generate import SCORERS
from catena.core.source import Source
from catena.core.stage import code_digest
from catena.core.types import ArtifactBase, ModelVersion, Report, Run
from catena.evaluate.suite import JudgeConfig
from catena.evaluate.taskfile import load_tasks
from catena.flow.evaluation import standings
from catena.flow.plan import make_plan, step_key
from catena.flow.recipe import Recipe, check_recipe
from catena.flow.run import run_recipe
from catena.hub.store import Store
from tests.evaluate.conftest import documents

from .written import TEXTS, WRITE, written

PAGES = "name: pages\nkind: perplexity\ndata: {dataset: pages}\n"


@pytest.fixture
def named(store: Store, model: ModelVersion) -> Store:
    """The store, with the model under the name `m`."""
    return name(store, "m", model)


def name(store: Store, called: str, artifact: Any) -> Store:
    store.index.add_artifact(artifact)
    store.index.add_name(called, artifact.digest)
    return store


def recipe(store: Store, path: str, use: dict[str, str] | None = None, **config: Any) -> Recipe:
    step = {"stage": "evaluate.tasks", "use": {"model": "m", **(use or {})}, "with": {"tasks": [path], **config}}
    return check_recipe(Source("r", "", {"name": "r", "steps": {"scores": step}}), store=store)


def ran(store: Store, one: Recipe) -> tuple[Run, Report]:
    done = run_recipe(store, one)
    output: ArtifactBase = done.outputs["scores"]
    assert isinstance(output, Report)
    return done.runs["scores"], output


def test_a_plan_says_that_a_task_changed(named: Store, tmp_path: Path) -> None:
    (path,) = written(tmp_path, write=WRITE)
    ran(named, recipe(named, path))
    Path(path).write_text(WRITE.replace("max_tokens: 4", "max_tokens: 3"))
    assert [(row.status, row.reason) for row in make_plan(named, recipe(named, path))] == [("run", "changed: content")]


def test_a_new_version_of_a_stored_dataset_is_measured(named: Store, tmp_path: Path) -> None:
    (path,) = written(tmp_path, pages=PAGES)
    one = recipe(named, path)
    assert [row.status for row in make_plan(named, one)] == ["run"]  # there is no such dataset yet
    name(named, "pages", documents(named, ["json.loads reads a document."]))
    _, first = ran(named, one)
    assert make_plan(named, one)[0].status == "cached"
    second_version = documents(named, ["a b c d e", "Return a string."])
    name(named, "pages", second_version)
    assert make_plan(named, one)[0].reason == "changed: datasets"
    run, second = ran(named, one)
    assert (run.status, run.config["datasets"]) == ("done", {"pages": second_version.digest})
    assert first.scores["pages/perplexity"].n == 1
    assert second.scores["pages/perplexity"].n == 2
    assert ran(named, one)[0].status == "cached"
    pinned = recipe(named, path, datasets={"pages": named.resolve("pages@1").digest})
    assert ran(named, pinned)[1].scores == first.scores


def test_scores_on_two_versions_of_the_input_data_stand_apart(named: Store, tmp_path: Path) -> None:
    (path,) = written(tmp_path, pages=PAGES)
    for text in ("json.loads reads a document.", "a b c d e"):
        name(named, "pages", documents(named, [text]))
    reports = [ran(named, recipe(named, path, {"data": f"pages@{number}"}))[1] for number in (1, 2)]
    assert [report.details["config"]["data"] for report in reports] == [
        named.resolve(f"pages@{number}").digest for number in (1, 2)
    ]
    assert len({one.way for one in standings(named, "pages")}) == 2


def test_a_task_that_is_edited_while_a_run_waits_is_refused(named: Store, tmp_path: Path) -> None:
    (path,) = written(tmp_path, texts=TEXTS)
    waiting = recipe(named, path)
    written(tmp_path, texts=TEXTS.replace("reads a", "reads no"))
    with pytest.raises(DataError, match="changed while the run was waiting: texts"):
        run_recipe(named, waiting)
    written(tmp_path, texts=TEXTS)
    assert ran(named, recipe(named, path))[0].status == "done"


def test_another_code_of_a_plugins_scorer_is_another_step(
    named: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tmp_path / "own_scorer.py"
    plugin.write_text("def score(answer, reference, metadata):\n    return 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(SCORERS._builtin, "own", "own_scorer:score")
    (path,) = written(tmp_path, write=WRITE.replace("[numeric]", "[exact, own]"))
    one = recipe(named, path).steps["scores"]
    assert "own_scorer" in one.config.modules()
    before = step_key(one, {})
    code_digest.cache_clear()
    assert step_key(one, {}) == before
    plugin.write_text("def score(answer, reference, metadata):\n    return 0.5\n")
    code_digest.cache_clear()
    assert step_key(one, {}) != before


def test_an_edited_task_of_the_harness_in_a_folder_is_another_task(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    digests = []
    for text in ("task: h\n", "task: h\ndoc_to_text: changed\n", "task: h\n"):
        (folder / "h.yaml").write_text(text)
        (path,) = written(tmp_path, h=f"name: h\nkind: lm_eval\ntask: h\ninclude: {folder}\n")
        digests.append(load_tasks([path])[0].digest)
    assert digests[0] == digests[2] != digests[1]


def test_a_judge_in_a_folder_is_known_by_its_files(tmp_path: Path) -> None:
    engine = {"url": str(tmp_path)}
    before = JudgeConfig(generator="native", engine=engine)
    assert JudgeConfig(generator="native", engine=engine).digest() == before.digest()
    (tmp_path / "weights").write_bytes(b"others")
    assert JudgeConfig(generator="native", engine=engine).digest() != before.digest()
    assert JudgeConfig(engine={"url": "http://127.0.0.1:1/v1"}).content == ""
