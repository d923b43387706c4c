"""A package of somebody else: its stage, filter and scorer are used by name, as built-in ones are."""

from __future__ import annotations

from catena.core.config import check
from catena.core.stage import stage_of
from catena.flow.table import STAGES
from tests.cli.conftest import Catena


def test_a_filter_of_a_plugin_works_on_what_its_stage_made(filled: Catena) -> None:
    words = ["--use", "source=demo/loud", "--set", "filters={no_shouting: {}}", "--name", "calm"]
    made = filled("do", "data.filter", *words)
    assert made.code == 0, made.err
    record = filled("show", "calm", "--rejects", "--funnel", "--json").json
    assert (record["artifact"]["rows"], len(record["rejects"])) == (0, 4)
    assert {row["reason"] for row in record["rejects"]} == set(record["funnel"][-1]["rejected"])
    assert [row["stage"] for row in record["funnel"]] == ["example.numbers", "example.shout", "data.filter"]


def test_a_name_that_no_package_brings_is_refused_with_the_closest(filled: Catena) -> None:
    refused = filled("do", "data.filter", "--use", "source=demo/loud", "--set", "filters={no_shoutin: {}}")
    assert refused.code == 2
    assert "Did you mean 'no_shouting'?" in refused.err


def test_a_scorer_of_a_plugin_is_known_to_the_evaluation() -> None:
    config = stage_of(STAGES.load("evaluate.answers")).config
    assert check(config, {"scorer": "same_length"})[1] == []
    (problem,) = check(config, {"scorer": "same_lenght"})[1]
    assert "same_length" in problem.line()
