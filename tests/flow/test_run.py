"""Runs: cached by content, resumed after a kill, safe beside one another."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

import catena as c
from catena.core.errors import Cancelled, CatenaError, DataError
from catena.flow.run import RecipeRun

RECIPE = """\
name: demo
steps:
  small: {stage: example.numbers, with: {rows: 4}}
  loud: {stage: example.shout, use: {source: small}, tags: [best]}
  louder: {stage: example.shout, use: {source: loud}, with: {mark: "?"}}
  other: {stage: example.shout, use: {source: small}, with: {mark: "."}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "demo.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def ws(tmp_path: Path) -> c.Workspace:
    return c.open(tmp_path / ".catena")


def statuses(run: RecipeRun) -> dict[str, str]:
    return {step: record.status for step, record in run.runs.items()}


def test_a_second_run_takes_every_step_from_the_store(ws: c.Workspace, recipe: Path) -> None:
    first, second = ws.run(recipe), ws.run(recipe)
    assert set(statuses(first).values()) == {"done"}
    assert set(statuses(second).values()) == {"cached"}
    assert first.outputs == second.outputs
    assert [sample.text for sample in ws.dataset("demo/louder").samples()][:2] == ["NUMBER 0!?", "NUMBER 1!?"]


def test_one_changed_number_runs_only_what_depends_on_it(ws: c.Workspace, recipe: Path) -> None:
    ws.run(recipe)
    plan = {row.step: row.status for row in ws.plan(recipe, overrides=["loud.mark=+"])}
    assert plan == {"small": "cached", "loud": "run", "louder": "run", "other": "cached"}
    run = ws.run(recipe, overrides=["loud.mark=+"])
    assert statuses(run) == {"small": "cached", "loud": "done", "louder": "done", "other": "cached"}


def test_equal_content_made_again_keeps_everything_after_it(ws: c.Workspace, recipe: Path) -> None:
    ws.run(recipe)
    again = ws.run(recipe, refresh=True)
    assert statuses(again) == {"small": "done", "loud": "cached", "louder": "cached", "other": "cached"}


def test_names_count_versions_and_tags_stand_on_the_newest(ws: c.Workspace, recipe: Path) -> None:
    first = ws.run(recipe)
    second = ws.run(recipe, overrides=["loud.mark=+"])
    assert ws.resolve("demo/loud@1") == first.outputs["loud"]
    assert ws.resolve("demo/loud@2") == ws.resolve("demo/loud@best") == second.outputs["loud"]
    assert second.names["loud"] == "demo/loud@2"
    ws.run(recipe)
    assert ws.resolve("demo/loud").digest == first.outputs["loud"].digest


def test_until_runs_only_what_a_step_needs(ws: c.Workspace, recipe: Path) -> None:
    assert set(ws.run(recipe, until="loud").runs) == {"small", "loud"}


def test_a_failing_step_leaves_its_record_and_what_was_finished(ws: c.Workspace, recipe: Path) -> None:
    with pytest.raises(DataError, match="step 'loud': told to fail") as caught:
        ws.run(recipe, overrides=["loud.fail=true"])
    assert caught.value.hint
    (record,) = ws.store.index.find_runs(step="loud")
    assert (record.status, record.error) == ("failed", "told to fail")
    assert statuses(ws.run(recipe))["small"] == "cached"


def test_do_runs_one_stage_on_stored_things(ws: c.Workspace, recipe: Path) -> None:
    ws.run(recipe, until="small")
    artifact = ws.do("example.shout", {"source": "demo/small"}, {"mark": "~"}, name="by-hand")
    assert ws.resolve("by-hand") == artifact
    assert artifact.license == "CC0-1.0"


def test_a_run_sees_one_version_of_what_it_names_whatever_is_stored_meanwhile(ws: c.Workspace, recipe: Path) -> None:
    first = ws.run(recipe, until="small").outputs["small"]
    without = "".join(line for line in RECIPE.splitlines(True) if "example.numbers" not in line)
    recipe.write_text(without.replace("small", "given"))
    ws.store.index.add_name("given", first.digest)
    other = ws.do("example.numbers", {}, {"rows": 6})

    def stored_meanwhile(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == "loud" and event["status"] == "done":
            ws.store.index.add_name("given", other.digest)

    run = ws.run(recipe, listeners=[stored_meanwhile])
    assert ws.resolve("given") == other
    assert run.runs["loud"].inputs == run.runs["other"].inputs == {"source": first.digest}


def test_a_damaged_file_is_named_and_not_used(ws: c.Workspace, recipe: Path) -> None:
    ws.run(recipe, until="small")
    table = ws.store.datasets / ws.store.resolve("demo/small", c.DatasetVersion).table
    (data,) = table.glob("samples.lance/data/*")
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 1
    data.write_bytes(bytes(raw))
    with pytest.raises(CatenaError, match=data.name) as caught:
        c.open(ws.store.root).run(recipe)
    assert caught.value.exit_code == 6


def test_a_step_whose_output_is_gone_runs_again(ws: c.Workspace, recipe: Path) -> None:
    ws.run(recipe, until="loud")
    shutil.rmtree(ws.store.datasets / ws.store.resolve("demo/loud", c.DatasetVersion).table)
    assert statuses(ws.run(recipe)) == {"small": "cached", "loud": "done", "louder": "done", "other": "done"}


def start(ws: c.Workspace, recipe: Path, *overrides: str) -> subprocess.Popen[str]:
    code = textwrap.dedent(
        """
        import sys, catena as c
        from catena.core.errors import Cancelled
        ws = c.open(sys.argv[1])
        try:
            run = ws.run(sys.argv[2], overrides=sys.argv[3:])
        except Cancelled:
            sys.exit(130)
        print({step: record.status for step, record in run.runs.items()})
        """
    )
    command = [sys.executable, "-c", code, str(ws.store.root), str(recipe), *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_running(ws: c.Workspace, step: str) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if ws.store.index.find_runs(step=step, status="running"):
            return
        time.sleep(0.02)
    raise AssertionError(f"{step} never ran")


def test_a_killed_run_goes_on_in_the_folder_it_left(ws: c.Workspace, recipe: Path) -> None:
    process = start(ws, recipe, "loud.seconds=2")
    wait_for_running(ws, "loud")
    time.sleep(0.3)
    process.kill()
    process.communicate()
    run = ws.run(recipe, overrides=["loud.seconds=2"])
    assert run.runs["small"].status == "cached"
    assert run.runs["loud"].metrics["went_on"] == 1.0
    assert [record.status for record in ws.store.index.find_runs(step="loud")] == ["interrupted", "done"]
    assert not any(ws.store.root.glob("work/*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_as_cancelled(ws: c.Workspace, recipe: Path, number: signal.Signals) -> None:
    process = start(ws, recipe, "loud.seconds=20")
    wait_for_running(ws, "loud")
    process.send_signal(number)
    process.communicate(timeout=300)
    assert process.returncode == Cancelled.exit_code
    assert ws.store.index.find_runs(step="loud")[0].status == "cancelled"


def test_two_runs_at_once_do_the_work_once(ws: c.Workspace, recipe: Path) -> None:
    both = [start(ws, recipe, "loud.seconds=1") for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    done = [record.step for record in ws.store.index.find_runs(status="done")]
    assert sorted(done) == ["loud", "louder", "other", "small"]


def test_events_tell_the_whole_story_in_json_lines(ws: c.Workspace, recipe: Path) -> None:
    seen: list[dict[str, object]] = []
    run = ws.run(recipe, listeners=[seen.append])
    lines = (ws.store.group_folder(run.group) / "events.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == json.loads(json.dumps(seen, default=str))
    assert [event["step"] for event in seen if event["event"] == "step" and event["status"] == "done"] == list(run.runs)
    assert run.runs["small"].metrics["rows"] == 4


def test_the_code_of_a_stage_counts_and_that_of_the_store_does_not() -> None:
    from catena.core.stage import _imports, _source, code_digest

    source = _source("catena_example.stages")
    assert source is not None
    assert code_digest("catena_example.stages") != code_digest("catena_example.filters")
    assert _imports("catena_example.stages", source) == ([], {"pydantic"})


def test_a_full_disk_is_said_and_loses_nothing(small_disk: Path, recipe: Path) -> None:
    ws = c.open(small_disk / ".catena")
    ws.run(recipe, until="small")
    with pytest.raises(CatenaError, match="no space is left") as caught:
        ws.run(recipe, overrides=["small.rows=100000"])
    assert caught.value.exit_code == 5
    assert set(statuses(ws.run(recipe)).values()) == {"cached", "done"}
    ws.close()


def test_the_code_of_a_filter_that_a_config_names_counts_too() -> None:
    from catena.core.config import parse
    from catena.core.stage import stage_of
    from catena.flow.table import STAGES

    stage = stage_of(STAGES.load("data.filter"))
    own, other = (parse(stage.config, {"filters": {name: {}}}) for name in ("length", "no_shouting"))
    assert other.modules() == ("catena_example.filters",)
    assert stage.code(own) != stage.code(other)


def test_steps_that_change_nothing_keep_their_own_funnels(ws: c.Workspace, tmp_path: Path) -> None:
    from catena.cli.show import funnel_of

    path = tmp_path / "same.yaml"
    path.write_text(
        "name: same\nsteps:\n"
        "  raw: {stage: example.numbers, with: {rows: 3}}\n"
        "  once: {stage: data.dedup, use: {source: raw}}\n"
        "  twice: {stage: data.dedup, use: {source: once}, with: {threshold: 0.7}}\n"
    )
    run = ws.run(path)
    assert run.outputs["once"].digest == run.outputs["twice"].digest
    rows = funnel_of(ws.store, run.outputs["twice"], "same/twice")
    assert [(row["ref"], row["stage"]) for row in rows] == [
        ("same/raw@1", "example.numbers"),
        ("same/once@1", "data.dedup"),
        ("same/twice@1", "data.dedup"),
    ]
