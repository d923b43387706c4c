"""Recipes are checked whole, with file, line and what was meant, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from catena.core.errors import NotFound, RecipeError
from catena.core.source import parse_source
from catena.flow.recipe import check_recipe, load_recipe
from catena.hub.store import Store

GOOD = """\
name: demo
seed: 3
steps:
  loud:
    stage: example.shout
    use: {source: small}
    with: {mark: "!!"}
  small:
    stage: example.numbers
    with:
      rows: 4
"""


def problems(text: str, store: Store | None = None, overrides: tuple[str, ...] = ()) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        check_recipe(parse_source(text, "r.yaml"), store=store, overrides=overrides)
    return caught.value.problems or (caught.value.message,)


def test_steps_are_ordered_by_what_they_use() -> None:
    recipe = check_recipe(parse_source(GOOD, "r.yaml"))
    assert list(recipe.steps) == ["small", "loud"]
    assert recipe.steps["loud"].name == "demo/loud"
    assert recipe.steps["loud"].seed == 3


def test_an_unknown_stage_is_named_with_its_line_and_the_closest_one() -> None:
    (problem,) = problems(GOOD.replace("example.shout", "example.shuot"))
    assert problem == "r.yaml:5: unknown stage 'example.shuot'. Did you mean 'example.shout'?"


def test_an_unknown_key_of_a_config_is_named_with_its_line_and_the_closest_one() -> None:
    (problem,) = problems(GOOD.replace("rows: 4", "rosw: 4"))
    assert problem.startswith("r.yaml:11:")
    assert "'rosw'" in problem
    assert "Did you mean 'rows'?" in problem


def test_an_unknown_key_of_a_step_is_named() -> None:
    (problem,) = problems(GOOD.replace("    use:", "    uses:"))
    assert problem.startswith("r.yaml:6:")
    assert "Did you mean 'use'?" in problem


def test_a_value_of_the_wrong_type_is_named() -> None:
    (problem,) = problems(GOOD.replace("rows: 4", "rows: many"))
    assert "small" in problem
    assert "got 'many'" in problem


def test_a_value_out_of_range_is_named() -> None:
    (problem,) = problems(GOOD.replace("rows: 4", "rows: -1"))
    assert "greater than or equal to 0" in problem


def test_a_cycle_is_drawn() -> None:
    text = GOOD.replace(
        "    stage: example.numbers\n    with:\n      rows: 4", "    stage: example.shout\n    use: {source: loud}"
    )
    (problem,) = problems(text)
    assert "circle" in problem
    assert "loud" in problem
    assert "small" in problem


def test_a_missing_input_is_named() -> None:
    (problem,) = problems(GOOD.replace("    use: {source: small}\n", ""))
    assert "the input 'source' (a dataset) is missing" in problem


def test_an_unknown_input_is_named_with_the_closest_one() -> None:
    found = problems(GOOD.replace("{source: small}", "{sorce: small}"))
    assert any("Did you mean 'source'?" in problem for problem in found)


def test_a_reference_that_is_nowhere_gets_the_closest_step(store: Store) -> None:
    (problem,) = problems(GOOD.replace("{source: small}", "{source: smal}"), store)
    assert "Did you mean 'small'?" in problem


def test_an_edge_of_the_wrong_kind_is_refused() -> None:
    text = GOOD + "  promoted:\n    stage: compress.quantize\n    use: {model: loud}\n"
    (problem,) = problems(text)
    assert "takes a model, and 'loud' is a dataset" in problem


def test_every_problem_is_listed_at_once() -> None:
    found = problems(GOOD.replace("rows: 4", "rows: -1").replace('mark: "!!"', "mrak: x"))
    assert len(found) == 2


def test_a_key_given_twice_is_refused() -> None:
    (problem,) = problems(GOOD + "  small:\n    stage: example.numbers\n")
    assert problem == "r.yaml:12: the key 'small' is given twice"


@pytest.mark.parametrize("text", ["", "[1, 2]", "just words", "name: x\nsteps: {}\n", "name: x\n"])
def test_what_is_no_recipe_is_refused(text: str) -> None:
    assert problems(text)


def test_broken_yaml_is_refused_with_its_line() -> None:
    (problem,) = problems("name: x\nsteps: {a: [1, 2\n")
    assert problem.startswith("r.yaml:3: not valid YAML")


@pytest.mark.parametrize("text", ["a: &x [*x]", "? [1]\n: 2", "!!python/object/apply:os.system ['true']"])
def test_tricks_of_yaml_do_nothing(text: str) -> None:
    assert problems(text)


def test_overrides_reach_the_config_of_a_step() -> None:
    recipe = check_recipe(parse_source(GOOD, "r.yaml"), overrides=["small.rows=9", "seed=11"])
    assert recipe.steps["small"].config.model_dump()["rows"] == 9
    assert recipe.steps["loud"].seed == 11
    assert "# --set small.rows=9" in recipe.text


def test_a_wrong_override_is_named_as_such() -> None:
    (problem,) = problems(GOOD, overrides=("small.rows=-4",))
    assert problem.startswith("--set steps.small.with.rows:")


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load_recipe(tmp_path / "no.yaml")
