from __future__ import annotations

import random

import pytest

from catena.serve.gateway.breaker import Breaker
from catena.serve.gateway.config import BreakerConfig

CONFIG = BreakerConfig(window_s=10, least=4, errors=0.5, slow_s=1.0, slow=0.75, open_s=5, open_max_s=12, probes=2)


def fed(*goods: bool, seconds: float = 0.0) -> Breaker:
    breaker = Breaker(CONFIG)
    for good in goods:
        breaker.begin()
        breaker.record(0.0, good=good, seconds=seconds)
    return breaker


def test_it_opens_at_the_share_of_failures_and_not_before_there_are_enough() -> None:
    assert fed(False, False, False).state == "closed"
    assert fed(True, True, True, False).state == "closed"
    assert fed(True, True, False, False).state == "open"
    assert not fed(True, True, False, False).admits(1.0)


def test_it_opens_for_slow_answers() -> None:
    assert fed(True, True, True, True, seconds=2.0).state == "open"
    assert fed(True, True, True, True, seconds=0.5).state == "closed"


def test_what_is_older_than_the_window_does_not_count() -> None:
    breaker = fed(False, False, False)
    breaker.record(20.0, good=False)
    assert breaker.state == "closed"
    assert breaker.rates(20.0) == (1, 1.0, 0.0)


def test_after_a_while_probes_close_it_or_open_it_for_twice_as_long() -> None:
    breaker = fed(False, False, False, False)
    assert not breaker.admits(4.9)
    assert breaker.admits(5.0)
    breaker.begin()
    breaker.begin()
    assert not breaker.admits(5.0), "two probes at once and no more"
    breaker.record(5.1, good=False)
    assert breaker.state == "open"
    assert not breaker.admits(15.0)
    assert breaker.admits(15.1)
    breaker.begin()
    breaker.record(15.2, good=False)
    assert breaker.admits(27.2), "twelve seconds are the longest"
    for now in (27.3, 27.4):
        breaker.begin()
        breaker.record(now, good=True)
    assert breaker.state == "closed"
    assert breaker.opened == 3
    assert breaker.rates(27.4)[0] == 0


def test_a_probe_whose_client_leaves_gives_its_place_back() -> None:
    breaker = fed(False, False, False, False)
    assert breaker.admits(5.0)
    breaker.begin()
    breaker.begin()
    breaker.forget()
    assert breaker.admits(5.0)


def test_answers_that_were_on_their_way_when_it_opened_change_nothing() -> None:
    breaker = fed(False, False, False, False)
    breaker.record(1.0, good=True)
    assert breaker.state == "open"


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_it_is_asked_again_in_the_end(seed: int) -> None:
    dice, breaker, now = random.Random(seed), Breaker(CONFIG), 0.0
    for _ in range(500):
        now += dice.random() * 3
        if breaker.admits(now):
            breaker.begin()
            if dice.random() < 0.2:
                breaker.forget()
            else:
                breaker.record(now, good=dice.random() < 0.6, seconds=dice.random() * 2)
    assert any(breaker.admits(now + wait) for wait in (0, CONFIG.open_max_s + 1))
