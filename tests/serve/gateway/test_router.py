from __future__ import annotations

import random
from collections import Counter

from catena.serve.gateway.breaker import Breaker
from catena.serve.gateway.config import BreakerConfig
from catena.serve.gateway.poison import Poison, fingerprint
from catena.serve.gateway.router import BLOCK, Backend, Router, blocks_of, draw


def backends(count: int) -> list[Backend]:
    return [Backend(f"r{number}", "", Breaker(BreakerConfig())) for number in range(count)]


def test_blocks_have_one_name_only_where_all_before_is_equal() -> None:
    first, second = blocks_of(b"a" * BLOCK * 3), blocks_of(b"a" * BLOCK * 2 + b"b" * BLOCK)
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    assert len(set(first)) == 3
    assert blocks_of(b"short") == []


def test_the_draw_moves_only_the_share_of_who_comes_or_goes() -> None:
    keys = [f"key {number}".encode() for number in range(2000)]
    ids = [f"r{number}" for number in range(5)]
    before = {key: draw(key, ids)[0] for key in keys}
    after = {key: draw(key, ids[:-1])[0] for key in keys}
    assert all(after[key] == before[key] for key in keys if before[key] != "r4")
    assert min(Counter(before.values()).values()) > 300


def test_short_prompts_go_to_who_has_least_to_do() -> None:
    some = backends(3)
    some[0].work, some[1].work, some[2].work = 5, 3, 9
    assert Router().pick(some, b"short", 1) is some[1]
    assert Router().pick([], b"short", 1) is None


def test_a_conversation_stays_where_its_beginning_is_as_it_grows() -> None:
    router, some = Router(), backends(4)
    talk = b"system prompt " * 40
    place = router.pick(some, talk, 1)
    for turn in range(10):
        talk += b" and another question, with its answer" * 5
        assert router.pick(some, talk, 1) is place, turn
    assert router.hits == 10


def test_two_conversations_with_one_system_prompt_may_part_where_one_has_too_much_to_do() -> None:
    router, some = Router(slack=1.25), backends(3)
    text = b"the same beginning " * 40
    place = router.pick(some, text, 1)
    assert place is not None
    place.work = 1000
    other = router.pick(some, text, 1)
    assert other is not place
    place.work = 0
    assert router.pick(some, text, 1) is other, "it is there that the beginning was seen last"


def test_no_replica_ever_has_much_more_than_the_mean() -> None:
    dice, router, some = random.Random(1), Router(), backends(4)
    for _ in range(400):
        text = (b"one of few " + bytes([65 + dice.randrange(3)])) * 40
        place = router.pick(some, text, 10)
        assert place is not None
        place.work += 10
    assert max(one.work for one in some) <= 1.3 * sum(one.work for one in some) / 4 + 10


def test_what_a_gone_replica_had_seen_is_forgotten() -> None:
    router, some = Router(), backends(2)
    text = b"beginning " * 100
    place = router.pick(some, text, 1)
    assert place is not None
    router.forget(place.id)
    router.pick(some, text, 1)
    assert router.hits == 0


def test_who_is_alone_at_a_second_death_is_convicted_and_a_good_answer_clears() -> None:
    poison, bad, good = Poison(60), fingerprint("m", b"bad"), fingerprint("m", b"good")
    poison.died([bad, good], 0)
    assert poison.suspect(bad, 1)
    assert poison.suspect(good, 1)
    poison.answered(good)
    assert not poison.suspect(good, 1)
    poison.died([bad], 2)
    assert poison.convicted(bad, 3)
    assert not poison.convicted(bad, 63), "in the end it is forgotten"
    assert poison.convictions == 1


def test_who_has_company_at_a_second_death_is_not_convicted() -> None:
    poison = Poison(60)
    poison.died([b"a", b"b"], 0)
    poison.died([b"a", b"c"], 1)
    assert not poison.convicted(b"a", 2)
    assert poison.suspect(b"a", 2)
    assert poison.suspect(b"c", 2)


def test_deaths_from_outside_are_excused_twice_in_a_row_and_then_no_more() -> None:
    poison = Poison(60)
    for now in range(2):
        poison.died([b"a"], now, excused=True)
        assert not poison.suspect(b"a", now)
    poison.answered(b"a")
    for now in range(2):
        poison.died([b"a"], now, excused=True)
    assert not poison.suspect(b"a", 2)
    poison.died([b"a", b"b"], 3, excused=True)
    assert poison.suspect(b"a", 3)
    assert not poison.suspect(b"b", 3)
    poison.died([b"a"], 4, excused=True)
    assert poison.convicted(b"a", 4)
    assert not poison.convicted(b"a", 64)


def test_a_death_from_outside_while_a_suspect_is_alone_is_none_of_its_deeds() -> None:
    poison = Poison(60)
    poison.died([b"a"], 0)
    poison.died([b"a"], 1, excused=True)
    assert poison.suspect(b"a", 1)
    assert not poison.convicted(b"a", 1)
    poison.died([b"a"], 2)
    assert poison.convicted(b"a", 2)


def test_the_same_request_many_times_on_one_replica_is_one_death() -> None:
    poison = Poison(60)
    poison.died([b"a"] * 5, 0)
    assert not poison.convicted(b"a", 1)
