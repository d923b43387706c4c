"""Rates out of two looks at a gateway's metrics: what is counted, quantiles, a gateway that began anew."""

from __future__ import annotations

import math
import time

import pytest

from catena.console.read.metrics import Counts, History, between, counts, quantile, rates, samples
from catena.serve.gateway.meters import Counter, Meters, render


def told(meters: Meters, *more: Counter) -> str:
    return render([*meters.families(), *more])


def test_counts_are_what_the_gateway_counted() -> None:
    meters = Meters()
    for status in ("200", "200", "503"):
        meters.requests.add("chat", 'a "b" \\ c\nd', status)
    meters.requests.add("embeddings", 'a "b" \\ c\nd', "200")
    meters.cut.add('a "b" \\ c\nd')
    meters.refused.add("m", "limit", by=2)
    meters.tokens.add("m", "prompt", by=7)
    meters.tokens.add("m", "answer", by=11)
    meters.requests.add("chat", "", "404")
    waiting = Counter("catena_gateway_waiting", "x", ("model",), "gauge")
    waiting.put("m", to=3)
    opened = Counter("catena_gateway_breaker_open", "x", ("model", "replica"), "gauge")
    opened.put("m", "m-1", to=1)
    opened.put("m", "m-2", to=0)
    found = counts(told(meters, waiting, opened) + 'other{model="z"} 1\n')
    assert set(found) == {'a "b" \\ c\nd', "m"}
    assert (found['a "b" \\ c\nd'].requests, found['a "b" \\ c\nd'].failed) == (4, 2)
    one = found["m"]
    assert (one.refused, one.prompt_tokens, one.answer_tokens, one.waiting, one.broken) == (2, 7, 11, 3, ("m-1",))


def test_what_is_no_sample_is_left_out() -> None:
    text = '# TYPE a counter\na{x="1"} 2\na 3\nbroken{x="1"\nbroken{x="1"} much\n\na{x="2"} 4 1700000000\n'
    assert list(samples(text)) == [("a", {"x": "1"}, 2.0), ("a", {}, 3.0), ("a", {"x": "2"}, 4.0)]


def test_quantiles_are_those_of_what_came_in_between() -> None:
    meters = Meters()
    for _ in range(100):
        meters.seconds.add("chat", "m", of=20.0)
    before = counts(told(meters))["m"]
    for number in range(100):
        meters.requests.add("chat", "m", "500" if number < 25 else "200")
        meters.seconds.add("chat", "m", of=0.2 if number < 90 else 2.0)
    now = counts(told(meters))["m"]
    found = rates(before, now, 10.0)
    assert (found.requests, found.failed) == (10.0, 0.25)
    assert 0.1 < (found.p50_s or 0) <= 0.25
    assert 1.0 < (found.p95_s or 0) <= 2.5
    assert found.first_p50_s is None
    assert rates(now, now, 2.0).p50_s is None


@pytest.mark.parametrize(
    ("buckets", "share", "value"),
    [
        (((1.0, 10.0), (2.0, 20.0), (math.inf, 20.0)), 0.5, 1.0),
        (((1.0, 10.0), (2.0, 20.0), (math.inf, 20.0)), 0.75, 1.5),
        (((1.0, 0.0), (math.inf, 5.0)), 0.5, 1.0),
        (((1.0, 0.0), (math.inf, 0.0)), 0.5, None),
        ((), 0.5, None),
    ],
)
def test_a_quantile_lies_inside_its_bucket(
    buckets: tuple[tuple[float, float], ...], share: float, value: float
) -> None:
    assert quantile(buckets, share) == value
    assert between(buckets, buckets) == tuple((bound, 0.0) for bound, _ in buckets)


def test_a_gateway_that_began_anew_counts_from_zero() -> None:
    found = rates(Counts(requests=1000, failed=100), Counts(requests=20, failed=5), 10.0)
    assert (found.requests, found.failed) == (2.0, 0.25)


def test_rates_are_of_the_last_half_minute() -> None:
    history = History()
    for second in range(0, 122, 2):
        asked = 10.0 * min(second, 60)  # ten a second, for a minute
        point = history.add(1000.0 + second, {"m": Counts(requests=asked)})
        expected = 10.0 if 0 < second <= 60 else 0.0 if second >= 90 or not second else None
        if expected is not None:
            assert point.rates["m"].requests == pytest.approx(expected)
    at, values = history.curve("m", "requests")
    assert (len(at), at[-1], values[-1]) == (60, 0.0, 0.0)
    assert all(math.isnan(value) for value in history.curve("m", "p95_s")[1])
    assert history.curve("nobody", "requests")[1] == [0.0] * 60


def test_a_look_at_thousands_of_series_stays_below_a_tenth_of_a_second() -> None:
    meters = Meters()
    for model in range(20):
        for route in range(10):
            for status in range(10):
                meters.requests.add(f"route{route}", f"model{model}", str(200 + status))
            meters.seconds.add(f"route{route}", f"model{model}", of=0.1)
    text = told(meters)
    assert len(text.splitlines()) > 5000
    began = time.process_time()
    assert len(counts(text)) == 20
    assert time.process_time() - began < 1.0, "100 ms are asked for; this leaves room for a slow machine"
