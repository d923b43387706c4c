"""Statistics: intervals and paired comparisons, against published values and properties."""

from __future__ import annotations

import numpy as np
import pytest

from catena.evaluate.stats import bootstrap_mean, bootstrap_ratio, mcnemar, mean_interval, wilson


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_agrees_with_published_intervals(right: int, total: int, low: float, high: float) -> None:
    assert wilson(right, total) == pytest.approx((right / total, low, high), abs=5e-5)


def test_wilson_holds_its_value_at_both_ends() -> None:
    for right in (0, 7):
        value, low, high = wilson(right, 7)
        assert 0 <= low <= value <= high <= 1
        assert high - low > 0.2


def test_wilson_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for right in random.binomial(80, 0.9, size=2000):
        _, low, high = wilson(int(right), 80)
        covered += low <= 0.9 <= high
    assert 0.93 < covered / 2000 < 0.97


def test_a_proportion_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no proportion"):
        wilson(0, 0)


def test_bootstrap_depends_on_the_seed_alone() -> None:
    values = [0.1, 0.9, 0.5, 0.4]
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)
    assert bootstrap_mean(values, seed=-1).value == pytest.approx(0.475)


def test_bootstrap_of_a_mean_is_near_the_normal_interval() -> None:
    values = np.random.default_rng(2).normal(5, 2, size=400)
    value, low, high = bootstrap_mean(list(values), seed=0)
    assert (low, high) == pytest.approx((value - 1.96 * 2 / 20, value + 1.96 * 2 / 20), abs=0.06)


def test_a_ratio_weighs_documents_by_their_length() -> None:
    value, low, high = bootstrap_ratio([10, 300], [10, 100], seed=0)
    assert value == pytest.approx(310 / 110)
    assert (low, high) == (1.0, 3.0)


def test_many_values_are_drawn_in_blocks_with_the_same_kind_of_result() -> None:
    value, low, high = bootstrap_mean([0.0, 1.0] * 50_000, seed=0, resamples=100)
    assert low < value < high
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 100_000**0.5, rel=0.3)


@pytest.mark.parametrize(
    ("first", "second", "expected"), [(0, 0, 1.0), (5, 5, 1.0), (1, 9, 22 / 1024), (0, 6, 2 / 64), (1500, 1500, 1.0)]
)
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int, expected: float) -> None:
    assert mcnemar(first, second) == pytest.approx(expected)
    assert mcnemar(second, first) == mcnemar(first, second)


def test_scores_between_right_and_wrong_get_a_bootstrap_interval() -> None:
    assert mean_interval([1.0, 0.0, 1.0], seed=1) == wilson(2, 3)
    assert mean_interval([1.0, 0.5, 0.5], seed=1) == bootstrap_mean([1.0, 0.5, 0.5], seed=1)
