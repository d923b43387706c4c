from __future__ import annotations

import random

from catena.serve.gateway.config import ReplicaConfig, ScalingConfig
from catena.serve.gateway.scaling import Load, Scaler


def scaler(least: int = 1, most: int = 5, **scaling: float) -> Scaler:
    settings = {"queue": 4.0, "up_s": 10.0, "down_s": 60.0, **scaling}
    return Scaler(ReplicaConfig(min=least, max=most, scaling=ScalingConfig.model_validate(settings)))


def test_as_many_as_the_requests_need() -> None:
    assert scaler().decide(Load(1, 0), 0) == 1
    assert scaler().decide(Load(1, 9), 0) == 3
    assert scaler().decide(Load(2, 100), 0) == 5
    assert scaler().decide(Load(1, 4.3), 0) == 1, "a tenth more is left alone"


def test_no_step_up_right_after_another() -> None:
    one = scaler()
    assert one.decide(Load(1, 8), 0) == 2
    assert one.decide(Load(2, 20), 5) == 2
    assert one.decide(Load(2, 20), 10) == 5


def test_down_only_when_fewer_were_enough_for_long() -> None:
    one = scaler()
    assert one.decide(Load(1, 20), 0) == 5
    for now in range(1, 61, 5):
        assert one.decide(Load(5, 2), now) == 5
    assert one.decide(Load(5, 2), 62) == 1


def test_slow_first_tokens_at_most_double() -> None:
    one = scaler(latency_s=1.0)
    assert one.decide(Load(2, 4, 30.0), 0) == 4
    assert scaler(latency_s=1.0).decide(Load(2, 0, 30.0), 0) == 1, "nobody asks"


def test_from_none_to_one_at_the_first_request_and_back() -> None:
    one = scaler(0, 3, down_s=10)
    assert one.decide(Load(0, 0), 0) == 0
    assert one.decide(Load(0, 1), 1) == 1
    assert one.decide(Load(1, 0), 5) == 1
    assert one.decide(Load(1, 0), 16) == 0


def test_always_between_least_and_most() -> None:
    dice, one = random.Random(3), scaler(2, 4)
    for now in range(500):
        latency = dice.random() * 9 if dice.random() < 0.5 else None
        assert 2 <= one.decide(Load(dice.randrange(5), dice.randrange(40), latency), now) <= 4
