"""Proposals: inside the space, a function of what is known, close to the best in the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from catena.flow.search import Trial, bars, front, is_over, phase_of, propose, ranked, waits_for
from catena.flow.space import Parameter, TuneConfig, default_space, inside, problems_of, shrink
from catena.train.sft import SftConfig

SPACE = {
    "rate": {"kind": "log", "low": 1e-5, "high": 1.0},
    "width": {"kind": "int", "low": 4, "high": 64, "step": 4},
    "share": {"kind": "float", "low": 0.0, "high": 0.5},
    "mark": {"kind": "choice", "choices": ["a", "b", True, 3]},
}


def config(**fields: Any) -> TuneConfig:
    return TuneConfig.model_validate({"step": "base", "space": SPACE, "trials": 20, **fields})


def loss(values: Mapping[str, Any]) -> float:
    return math.log10(values["rate"] / 0.01) ** 2 + ((values["width"] - 24) / 16) ** 2 + (values["mark"] != "b")


def searched(tune: TuneConfig, seed: int = 1) -> list[Trial]:
    known: list[Trial] = []
    while not is_over(tune, len(known), known):
        values = propose(tune, seed, len(known), known)
        scores = tuple([loss(values), -float(values["width"])][: len(tune.objectives)])
        known.append(Trial(len(known), phase_of(tune, len(known)), values, scores))
    return known


def trial(number: int, score: float, **fields: Any) -> Trial:
    return Trial(**{"number": number, "phase": "coarse", "values": {}, "scores": (score,), **fields})


@pytest.mark.parametrize("method", ["tpe", "genetic", "random"])
def test_proposals_lie_in_the_space_and_depend_on_nothing_but_what_is_known(method: str) -> None:
    tune = config(method=method, trials=10, population=4)
    first, second = searched(tune), searched(tune)
    assert [item.values for item in first] == [item.values for item in second]
    assert all(inside(tune.space, item.values) for item in first)
    assert all(isinstance(item.values["width"], int) and item.values["width"] % 4 == 0 for item in first)
    assert [item.values for item in searched(tune, seed=2)] != [item.values for item in first]
    again = propose(tune, 1, 9, first[:9])
    assert again == first[9].values


def test_the_fine_stage_stays_round_the_best_three_and_gets_near() -> None:
    tune = config(trials=24, patience=24)
    trials = searched(tune)
    assert [item.phase for item in trials] == ["coarse"] * 14 + ["fine"] * 10
    for number in range(14, 24):
        box = shrink(tune.space, [item.values for item in ranked(tune, trials[:number])[:3]], tune.margin)
        assert inside(box, trials[number].values)
    assert ranked(tune, trials)[0].scores[0] < 0.1


def test_the_fine_stage_ends_when_it_gains_next_to_nothing() -> None:
    tune = config(trials=100, patience=3)
    coarse = [trial(number, 2.0 - number / 100) for number in range(60)]
    fine = [trial(60 + number, 1.4095, phase="fine") for number in range(3)]
    assert not is_over(tune, 62, [*coarse, *fine[:2]])
    assert is_over(tune, 63, [*coarse, *fine])
    assert not is_over(tune, 63, [*coarse, *fine[:2], trial(62, 1.4, phase="fine")])
    assert is_over(tune, 100, coarse)


def test_a_shrunken_box_holds_the_best_and_keeps_to_the_steps() -> None:
    space = {name: Parameter.model_validate(written) for name, written in SPACE.items()}
    best = [
        {"rate": 0.001, "width": 8, "share": 0.5, "mark": "b"},
        {"rate": 0.003, "width": 12, "share": 0.4, "mark": 3},
    ]
    box = shrink(space, best, 0.1)
    assert all(inside(box, values) for values in best)
    assert box["mark"] == space["mark"]
    assert (box["width"].low, box["width"].high) == (4, 20)
    assert box["rate"].low == pytest.approx(0.001 * 10**-0.5, rel=1e-3)
    assert box["share"].high == 0.5
    assert shrink(space, [], 0.1) == space


def test_a_proposal_waits_for_as_many_results_as_its_number_says() -> None:
    tune = config(trials=10, coarse_share=0.6)
    assert [waits_for(tune, number, 1) for number in range(10)] == list(range(10))
    assert [waits_for(tune, number, 3) for number in range(10)] == [0, 0, 0, 1, 2, 3, 6, 6, 6, 7]


@pytest.mark.parametrize("number", [8, 14])
def test_what_is_under_way_is_not_proposed_beside_it(number: int) -> None:
    width: dict[str, Any] = {"kind": "int", "low": 4, "high": 64, "step": 4}
    tune = config(trials=20, patience=20, space={"rate": SPACE["rate"], "width": width, "mark": SPACE["mark"]})
    known = searched(tune)[:number]
    under_way: list[Trial] = []
    for more in range(4):
        values = propose(tune, 1, number + more, known, under_way)
        assert values == propose(tune, 1, number + more, known, under_way)
        under_way.append(Trial(number + more, phase_of(tune, number), values))
    assert len({tuple(item.values.values()) for item in under_way}) == 4


def test_a_failed_training_counts_as_bad_and_not_as_unknown() -> None:
    tune = config(trials=30, coarse_share=1.0, space={"rate": SPACE["rate"]})
    known = [Trial(number, "coarse", {"rate": 10.0 ** (-number / 4)}, (1.0 + number,)) for number in range(8, 16)]
    known += [Trial(number, "coarse", {"rate": 1.0 - number / 100}, status="failed") for number in range(8)]
    rates = [propose(tune, 1, 16 + number, known)["rate"] for number in range(6)]
    assert all(float(rate) < 0.5 for rate in rates)


def test_bars_are_medians_where_enough_curves_are_known() -> None:
    tune = config(prune=True)
    known = [trial(number, 1.0, curve={10: float(number), 20: 1.0} if number else {10: 0.0}) for number in range(4)]
    assert bars(tune, known) == {10: 1.5}
    assert bars(config(), known) == {}
    better_high = config(prune=True, objectives=[{"metric": "accuracy", "goal": "higher"}])
    assert bars(better_high, known) == {10: -1.5}


def test_with_two_objectives_the_front_is_what_none_beats() -> None:
    tune = config(method="genetic", population=5, objectives=[{"metric": "loss"}, {"metric": "size", "goal": "higher"}])
    trials = [Trial(number, "coarse", {}, scores) for number, scores in enumerate([(1.0, 1.0), (2.0, 2.0), (2.0, 1.5)])]
    assert [item.number for item in front(tune, trials)] == [0, 1]
    tune = config(method="genetic", trials=40, population=8, objectives=[{"metric": "loss"}, {"metric": "size"}])
    assert {item.phase for item in searched(tune)} == {"coarse"}


@pytest.mark.parametrize(
    "written",
    [
        {"kind": "log", "low": 0.0, "high": 1.0},
        {"kind": "float", "low": 2.0, "high": 1.0},
        {"kind": "float", "low": 2.0},
        {"kind": "int", "low": 1, "high": 8, "step": 2},
        {"kind": "int", "low": 1.5, "high": 8},
        {"kind": "choice"},
        {"kind": "choice", "choices": [1], "low": 1},
        {"kind": "float", "low": 0, "high": 1, "choices": [1]},
        {"kind": "float", "low": 0, "high": 1, "top": 2},
    ],
)
def test_a_space_that_makes_no_sense_is_refused(written: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Parameter.model_validate(written)


def test_the_default_space_is_that_of_fine_tuning() -> None:
    assert set(default_space({"learning_rate": 1, "batch_size": 1, "warmup_share": 1}, None)) == {
        "learning_rate",
        "batch_size",
        "warmup_share",
    }
    warm = default_space({"learning_rate": 1, "warmup_steps": 1}, 200)["warmup_steps"]
    assert (warm.low, warm.high) == (10, 20)
    assert list(default_space({"warmup_steps": 1}, None)) == []


def test_what_changes_nothing_of_the_output_is_not_searched() -> None:
    step = SftConfig()
    sizes = {"kind": "choice", "choices": [4, 8]}
    space = {"micro_batch_size": sizes, "batch_size": sizes}
    ((path, said),) = problems_of(config(space=space), {"base": step})
    assert path == ("space", "micro_batch_size")
    assert "every trial would be the first one" in said
    servers = {"parallel.data": {"kind": "choice", "choices": ["ddp", "server"]}}
    assert problems_of(config(space=servers), {"base": step}) == []
