"""The JSON that other programs build on. A change here is a change of the contract."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from tests.cli.conftest import Catena


def test_list(filled: Catena) -> None:
    rows = filled("list", "--json").json
    assert [set(row) for row in rows] == [{"ref", "kind", "digest", "created", "tags"}] * 2
    assert [row["ref"] for row in rows] == ["demo/small@1", "demo/loud@1"]
    assert [row["tags"] for row in rows] == [[], ["best"]]
    assert {row["kind"] for row in rows} == {"dataset"}
    assert all(len(row["digest"]) == 64 for row in rows)
    assert datetime.fromisoformat(rows[0]["created"]).tzinfo is not None


def test_list_is_filtered_by_kind_and_name(filled: Catena) -> None:
    assert len(filled("list", "dataset", "--json").json) == 2
    assert filled("list", "model", "--json").json == []
    assert [row["ref"] for row in filled("list", "--name", "*/loud", "--json").json] == ["demo/loud@1"]


@pytest.mark.parametrize("ref", ["demo/loud", "demo/loud@1", "demo/loud@best"])
def test_show(filled: Catena, ref: str) -> None:
    record = filled("show", ref, "--json").json
    assert set(record) == {"ref", "names", "tags", "artifact", "run", "scores"}
    assert record["names"] == ["demo/loud@1"]
    assert record["tags"] == ["demo/loud@best"]
    fields = {
        "kind",
        "digest",
        "created",
        "made_by",
        "parents",
        "license",
        "labels",
        "shape",
        "rows",
        "files",
        "splits",
    }
    assert fields <= set(record["artifact"])
    assert record["run"]["id"] == record["artifact"]["made_by"]
    assert record["run"]["stage"] == "example.shout"
    assert {"status", "config", "seed", "inputs", "key", "machine", "seconds"} <= set(record["run"])
    assert record["scores"] == []
    assert filled("show", record["artifact"]["digest"][:10], "--json").json["artifact"] == record["artifact"]


def test_show_with_every_part(filled: Catena) -> None:
    record = filled("show", "demo/loud", "--samples", "2", "--rejects", "--funnel", "--events", "--json").json
    assert [sample["data"]["text"] for sample in record["samples"]] == ["NUMBER 0!", "NUMBER 1!"]
    keys = {"id", "source", "license", "parents", "split", "metadata", "data"}
    assert set(record["samples"][0]) == keys
    assert record["rejects"] == []
    assert [(row["ref"], row["rows_in"], row["rows_out"]) for row in record["funnel"]] == [
        ("demo/small@1", 4, 4),
        ("demo/loud@1", 4, 4),
    ]
    assert {event["step"] for event in record["events"]} == {"loud"}


def test_lineage(filled: Catena) -> None:
    graph = filled("lineage", "demo/loud", "--json").json
    assert {"nodes", "edges"} <= set(graph)
    stages = {node["stage"] for node in graph["nodes"] if node["kind"] == "run"}
    assert stages == {"example.numbers", "example.shout"}
    assert {"from", "to", "label"} == set(graph["edges"][0])
    up = filled("lineage", "demo/small", "--up", "--json").json
    down = filled("lineage", "demo/small", "--down", "--json").json
    assert {node.get("stage") for node in up["nodes"]} == {None, "example.numbers"}
    assert {node.get("stage") for node in down["nodes"]} == {None, "example.shout"}


def test_run_is_one_event_a_line_and_ends_with_outputs(filled: Catena, recipe: Path) -> None:
    lines = filled("run", str(recipe), "--set", "loud.mark=+", "--json").lines
    assert lines[0]["event"] == "start"
    assert [(line["step"], line["status"]) for line in lines if line["event"] == "step"] == [
        ("small", "cached"),
        ("loud", "running"),
        ("loud", "done"),
    ]
    end = lines[-1]
    assert set(end) == {"event", "status", "group", "outputs", "seconds", "report"}
    assert (end["event"], end["status"]) == ("end", "done")
    assert end["outputs"]["loud"]["ref"] == "demo/loud@2"
    assert set(end["outputs"]["loud"]) == {"ref", "digest", "kind"}
    assert set(end["seconds"]) == {"small", "loud"}
    assert Path(end["report"]).exists()


def test_failed_run_ends_with_an_end_event_that_holds_the_error(catena: Catena, recipe: Path) -> None:
    result = catena("run", str(recipe), "--set", "loud.fail=true", "--json")
    end = result.lines[-1]
    assert (end["event"], end["status"], end["error"]["exit_code"]) == ("end", "failed", 4)
    assert result.code == 4


def test_plan(filled: Catena, recipe: Path) -> None:
    rows = filled("plan", str(recipe), "--set", "loud.mark=+", "--json").json
    assert [(row["step"], row["status"]) for row in rows] == [("small", "cached"), ("loud", "run")]
    assert {"step", "stage", "status", "reason", "inputs", "output"} <= set(rows[0])


def test_do(filled: Catena) -> None:
    made = filled(
        "do", "example.shout", "--use", "source=demo/small", "--name", "mine", "--set", "mark=+", "--json"
    ).json
    assert set(made) == {"ref", "digest", "kind"}
    assert made["ref"] == "mine@1"
    assert filled("show", "mine", "--samples", "1", "--json").json["samples"][0]["data"]["text"] == "NUMBER 0+"
    # What changes nothing makes what is stored already, under the name that was asked for.
    same = ("do", "data.repair", "--use", "source=mine", "--json")
    assert filled(*same, "--name", "a").json == {**made, "ref": "a@1"}
    assert filled(*same).json == {**made, "ref": "do/repair@1"}


def test_explain(catena: Catena) -> None:
    record = catena("explain", "example.shout", "--json").json
    assert set(record) == {"stage", "summary", "inputs", "output", "volatile", "config"}
    assert record["inputs"] == [{"name": "source", "kinds": ["dataset"], "required": True}]
    assert record["output"] == ["dataset"]
    mark = next(row for row in record["config"] if row["name"] == "mark")
    assert mark == {
        "name": "mark",
        "type": "str",
        "default": "!",
        "required": False,
        "help": "Put at the end of each text.",
    }
    summaries = {row["stage"]: row["summary"] for row in catena("explain", "--json").json}
    assert summaries["example.shout"] == "Turn every text into capitals."


def test_log(filled: Catena) -> None:
    history = filled("log", "--json").json
    assert [run["step"] for run in history["runs"]] == ["loud", "small"]
    keys = {"id", "group", "recipe", "step", "stage", "status", "started", "seconds", "output", "ref", "error"}
    assert set(history["runs"][0]) == keys
    assert [(move["tag"], move["ref"]) for move in history["tags"]] == [("best", "demo/loud@1")]
    one = filled("log", history["runs"][0]["id"], "--json").json
    assert [run["step"] for run in one["runs"]] == ["loud"]
    assert [run["step"] for run in filled("log", "demo/loud", "--json").json["runs"]] == ["loud"]
    assert len(filled("log", "--limit", "1", "--json").json["runs"]) == 1


def test_tag(filled: Catena) -> None:
    put = filled("tag", "demo/small@1", "good", "--json").json
    assert (put["name"], put["tag"], len(put["digest"])) == ("demo/small", "good", 64)
    assert filled("tag", "demo/small", "good", "--remove", "--json").json["digest"] is None
    assert filled("show", "demo/small@good").code == 3


def test_fsck_and_gc(filled: Catena, here: Path) -> None:
    assert filled("fsck", "--json").json == {"findings": [], "forgotten": []}
    freed = filled("gc", "--dry-run", "--json").json
    assert set(freed) == {"dry_run", "files", "bytes", "artifacts", "paths"}
    data = next((here / ".catena" / "datasets").rglob("data/*.lance"))
    data.write_bytes(b"junk")
    result = filled("fsck", "--json")
    assert result.code == 6
    (finding,) = result.json["findings"]
    assert set(finding) == {"kind", "artifact", "names", "file", "problem"}
    assert filled("fsck", "--forget", "--json").json["forgotten"] == [finding["artifact"]]
    assert filled("fsck").code == 0


def test_init(catena: Catena, here: Path) -> None:
    assert catena("init", "--json").json == {"workspace": str(here / ".catena")}
    assert catena("list", "--json").json == []
