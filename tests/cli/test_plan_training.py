"""`catena plan-training`: the table, the reason, JSON, formulas, and what it refuses."""

import subprocess
import sys

from tests.cli.conftest import Catena


def test_the_plan_is_a_table_and_a_reason(catena: Catena) -> None:
    result = catena("plan-training", "llama-8b", "--gpus", "8", "--memory", "80", "--link", "64")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].startswith("zero2 x8\t")
    assert lines[-1].startswith("It fits with zero2")
    assert "8.03 billion" in result.err


def test_json_holds_every_candidate_and_the_formulas(catena: Catena) -> None:
    record = catena("plan-training", "llama-1b", "--gpus", "4", "--explain", "--json").json
    assert {"model", "parameters", "config", "picked", "why", "candidates", "formulas"} == set(record)
    assert record["parameters"] == 1_235_814_400
    assert record["candidates"][0] == record["picked"]
    first = record["picked"]
    parts = sum(first[name] for name in ("weights", "gradients", "optimizer", "activations", "logits"))
    assert first["memory"] == parts
    assert set(first["traffic"]) == {"data", "tensor", "context", "pipeline"}


def test_all_shows_more_than_the_best(catena: Catena) -> None:
    few, every = (catena("plan-training", "llama-1b", *more) for more in ((), ("--all",)))
    assert "more: --all" in few.err
    assert len(every.out.splitlines()) > len(few.out.splitlines())


def test_what_is_unknown_is_refused_with_a_hint(catena: Catena) -> None:
    wrong = catena("plan-training", "llama-8bb", "--json")
    assert wrong.code == 3
    assert "llama-" in wrong.json["error"]["hint"]
    wrong = catena("plan-training", "llama-8b", "--set", "sequence=8", "--json")
    assert wrong.code == 2
    assert "sequence_length" in wrong.json["error"]["message"]


def test_planning_imports_no_torch() -> None:
    code = (
        "import sys; from catena.train.planner import PlanConfig, plan_training;"
        "from catena.train.planner_shape import shape_of; import catena.cli.plan_training;"
        "plan_training(shape_of('llama-8b'), PlanConfig());"
        "print('transformers' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
