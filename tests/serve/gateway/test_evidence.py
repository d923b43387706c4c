"""The tests that releases rest on: how often they are wrong, and how soon they are right. Simulated, with a seed."""

from __future__ import annotations

import random

import pytest

from catena.serve.releases.evidence import Cusum, Evidence, interval
from catena.serve.releases.plan import Decision, Outcome, Release, ReleaseConfig, share_of
from catena.serve.releases.quality import Plausibility, is_empty, is_loop

PLAIN = "the model answers a question with a few plain words and then it ends as it should".split()  # noqa: SIM905


def stream(seed: int, stable: float, candidate: float, share: float, count: int) -> int:
    """Return after how many of the candidate's answers the evidence was enough; 0 for never."""
    dice, evidence = random.Random(seed), Evidence()
    for _ in range(count):
        arm = "candidate" if dice.random() < share else "stable"
        evidence.add(arm, dice.random() < (candidate if arm == "candidate" else stable))
        if evidence.reached(0.001):
            return evidence.seen["candidate"]
    return 0


@pytest.mark.parametrize(("rate", "share"), [(0.0, 0.05), (0.01, 0.05), (0.05, 0.5), (0.3, 0.25)])
def test_equal_rates_almost_never_alarm_however_often_one_looks(rate: float, share: float) -> None:
    assert sum(stream(seed, rate, rate, share, 2000) > 0 for seed in range(50)) == 0


@pytest.mark.parametrize(("bad", "most"), [(1.0, 8), (0.3, 40), (0.1, 150)])
def test_worse_rates_alarm_soon(bad: float, most: int) -> None:
    found = sorted(stream(seed, 0.01, bad, 0.05, 20000) for seed in range(20))
    assert found[0] > 0, "always"
    assert found[10] <= most


def test_a_better_candidate_never_alarms() -> None:
    assert not any(stream(seed, 0.2, 0.02, 0.3, 2000) for seed in range(50))


def test_the_tolerance_is_a_tolerance() -> None:
    dice, evidence = random.Random(1), Evidence(tolerance=2.0)
    for _ in range(20000):
        arm = "candidate" if dice.random() < 0.5 else "stable"
        evidence.add(arm, dice.random() < (0.10 if arm == "candidate" else 0.06))
    assert not evidence.reached(0.001)


def test_cusum_finds_a_change_and_leaves_the_usual_alone() -> None:
    dice, calm = random.Random(2), Cusum(0.02)
    assert not any(calm.add(dice.random() < 0.02) for _ in range(5000))
    late = Cusum(0.02)
    assert next(at for at in range(1000) if late.add(dice.random() < 0.5)) < 40


def test_wilson() -> None:
    low, high = interval(5, 100)
    assert 0.02 < low < 0.05 < high < 0.12
    assert interval(0, 0) == (0.0, 1.0)


def sentence(dice: random.Random) -> str:
    return " ".join(dice.choice(PLAIN) for _ in range(20))


@pytest.mark.parametrize("usual", ["en", "zh"])
def test_text_unlike_the_stable_models_is_odd(usual: str) -> None:
    dice, known = random.Random(3), Plausibility()
    han = "模型用几句简单的话回答问题然后就结束了这是应该的样子我们看看它说什么"

    def text() -> str:
        return sentence(dice) if usual == "en" else "".join(dice.choice(han) for _ in range(60))

    for _ in range(200):
        known.learn(text())
    noise = ["".join(chr(dice.randrange(33, 1200)) for _ in range(80)) for _ in range(100)]
    assert sum(bool(known.odd(text())) for _ in range(200)) <= 6
    assert all(known.odd(one) for one in noise)
    assert known.odd("ok") is None


def test_empty_and_loops() -> None:
    assert is_empty(" \n")
    assert not is_empty("a")
    assert is_loop("again and " * 100)
    assert not is_loop(sentence(random.Random(1)) * 2)


def play(seed: int, config: ReleaseConfig, fault: str = "", users: int = 400, odd_users: float = 0.0) -> Decision:
    """Play a release to its end; returns the last decision."""
    dice, release, now = random.Random(seed), Release(f"r{seed}", config, 0.0), 0.0
    people = [f"user{number}" for number in range(users)]
    cursed = {user for user in people if dice.random() < odd_users}
    for _ in range(200_000):
        now += dice.expovariate(50.0)
        user = dice.choice(people)
        arm = release.arm(user)
        bad = fault if arm == "candidate" else ""
        outcome = Outcome(
            arm,
            user,
            failed=dice.random() < (0.3 if bad == "errors" else 0.01) or user in cursed,
            text="" if bad == "empty" else sentence(dice),
            first_s=dice.lognormvariate(-2, 0.4) * (3 if bad == "slow" else 1),
            pace_s=dice.lognormvariate(-4, 0.3),
            flagged=dice.random() < (0.5 if bad == "toxic" else 0.002),
        )
        decision = release.observe(outcome, now)
        if decision is not None and decision.verdict == "step":
            release.advance(now)
        elif decision is not None:
            return decision
    raise AssertionError("it did not end")


QUICK = ReleaseConfig(requests=60, step_s=1.0)


@pytest.mark.parametrize("fault", ["errors", "slow", "empty", "toxic"])
def test_a_release_with_a_fault_goes_back(fault: str) -> None:
    for seed in range(3):
        decision = play(seed, QUICK, fault)
        assert decision.verdict == "rollback"
        names = {"errors": "errors", "slow": "first_token", "empty": "empty", "toxic": "flagged"}
        assert decision.reason.startswith(names[fault])


def test_healthy_releases_go_through_also_with_users_for_whom_nothing_works() -> None:
    decisions = [play(seed, QUICK, odd_users=0.01 * (seed % 2)) for seed in range(8)]
    assert [one.verdict for one in decisions] == ["promote"] * 8


def test_a_user_keeps_the_candidate_as_the_share_grows() -> None:
    release = Release("r", ReleaseConfig(steps=(5, 20, 60)), 0)
    users = [f"u{number}" for number in range(5000)]
    before: set[str] = set()
    for step, share in enumerate((0.05, 0.2, 0.6)):
        release.step = step
        now = {user for user in users if release.arm(user) == "candidate"}
        assert before <= now
        assert abs(len(now) / 5000 - share) < 0.02
        before = now
    assert share_of("u", "a") != share_of("u", "b"), "another release has other users first"


def test_ab_goes_through_only_if_it_is_liked_more() -> None:
    for rate, verdict in ((0.8, "promote"), (0.5, "rollback")):
        dice, now = random.Random(5), 0.0
        config = ReleaseConfig(mode="ab", steps=(50,), requests=10, step_s=0, goal_requests=1500)
        release = Release("ab", config, 0.0)
        decision = None
        while decision is None:
            now += 1
            user = str(dice.random())
            arm = release.arm(user)
            release.like(arm, dice.random() < (rate if arm == "candidate" else 0.5))
            decision = release.observe(Outcome(arm, user), now)
        assert decision.verdict == verdict
