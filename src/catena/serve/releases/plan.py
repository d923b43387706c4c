"""A release as a state machine: who gets the candidate, what is watched, when it goes on, back, or through. Pure.

shadow:  copies only, nobody gets its answers      canary: 5 % -> 25 % -> 50 % -> all, while nothing is worse
ab:      the same steps, and through only if a goal is shown to be better
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from catena.core.config import Config
from catena.serve.releases.evidence import Evidence, interval
from catena.serve.releases.quality import Plausibility, is_empty, is_loop, threshold

Mode = Literal["shadow", "canary", "ab"]
Verdict = Literal["step", "promote", "rollback"]
Percent = Annotated[float, Field(gt=0, lt=100)]
SIGNALS = ("errors", "flagged", "empty", "odd", "first_token", "pace")
"""In the order in which they are told: what several find at once is called by what it does to users."""
WINDOW = 200
ODD_SEEN = 20
HOLD = 10.0
"""Evidence at which a release stays where it is."""
REMEMBERED_USERS = 100_000


class WatchConfig(Config):
    """What is watched, and how sure a rollback must be."""

    alpha: float = Field(default=0.001, gt=0, lt=0.5)
    """Chance that one signal of a release that is no worse ever makes it go back."""
    tolerance: float = Field(default=1.25, ge=1)
    """Rates of the candidate may be so many times those of the stable model."""
    slower: float = Field(default=1.5, ge=1)
    """Times of the candidate may be so many times those of the stable model."""
    users: int = Field(default=2, ge=1)
    """So many users must have seen something before it counts."""
    era_s: float = Field(default=600.0, ge=0)
    """After something bad a user counts no more for it for so long, in seconds: one for whom nothing works, and who
    asks much, must not decide."""
    words: tuple[str, ...] = ()
    """Words that an answer should not have, where no moderation is on."""

    @property
    def limit(self) -> float:
        """Evidence, as a logarithm, at which a release goes back."""
        return -math.log(self.alpha)


class ReleaseConfig(Config):
    """How a release goes."""

    mode: Mode = "canary"
    """What becomes of the candidate's answers."""
    steps: tuple[Percent, ...] = (5.0, 25.0, 50.0)
    """Percent of users that get the candidate, one step after the other; after the last one all get it."""
    requests: int = Field(default=200, ge=1)
    """Fewest answers of the candidate in each step."""
    step_s: float = Field(default=300.0, ge=0)
    """Least time of each step, in seconds."""
    watch: WatchConfig = WatchConfig()
    goal_alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """`ab`: how sure it must be that the candidate is liked more (`feedback`)."""
    goal_requests: int = Field(default=5000, ge=1)
    """`ab`: after so many judged answers without that, the stable model stays."""

    @model_validator(mode="after")
    def _rising(self) -> ReleaseConfig:
        if list(self.steps) != sorted(set(self.steps)) or not self.steps:
            raise ValueError("steps must rise")
        return self


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request ended."""

    arm: str
    user: str
    failed: bool = False
    text: str | None = None
    """None where there is no text to judge (an embedding, a client that left)."""
    first_s: float | None = None
    pace_s: float | None = None
    """Seconds for a token, after the first."""
    flagged: bool = False
    refused: bool = False
    """It failed by what was asked, as it may seem (a status of 400 to 499)."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done, and why."""

    verdict: Verdict
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


def share_of(user: str, salt: str) -> float:
    """Return where a user stands between 0 and 100: always the same for one release."""
    digest = hashlib.blake2b(f"{salt}\0{user}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 * 100


class Release:
    """One release under way."""

    def __init__(self, id: str, config: ReleaseConfig, now: float, step: int = 0) -> None:
        self.id, self.config, self.step = id, config, step
        self.entered = now
        self.answers = {"stable": 0, "candidate": 0}
        self.users: set[str] = set()
        """Who got the candidate."""
        self.evidence = {name: Evidence(config.watch.tolerance) for name in SIGNALS}
        self.liked = Evidence()
        self._in_step = 0
        self._touched: dict[str, set[str]] = {name: set() for name in SIGNALS}
        self._silent: dict[tuple[str, str], float] = {}
        self._plausible = Plausibility()
        self._times: dict[str, deque[float]] = {name: deque(maxlen=WINDOW) for name in ("first_token", "pace")}

    @property
    def percent(self) -> float:
        """Percent of users that get the candidate's answers."""
        return 0.0 if self.config.mode == "shadow" else self.config.steps[self.step]

    def arm(self, user: str) -> str:
        """Return whose answers a user gets; who has the candidate keeps it in every further step."""
        return "candidate" if share_of(user, self.id) < self.percent else "stable"

    def observe(self, outcome: Outcome, now: float) -> Decision | None:
        """Take how a request ended; returns what follows from it."""
        self.answers[outcome.arm] += 1
        if outcome.arm == "candidate":
            self._in_step += 1
            if len(self.users) < REMEMBERED_USERS:
                self.users.add(outcome.user)
        for name, event in self.counted(outcome, now).items():
            self.evidence[name].add(outcome.arm, event)
        return self._judge(now)

    def counted(self, outcome: Outcome, now: float) -> dict[str, bool]:
        """Return yes or no for every signal that counts, and note who met something with the candidate."""
        events = self.events(outcome)
        events = {name: event for name, event in events.items() if self._counts(name, outcome.user, event, now)}
        if outcome.arm == "candidate":
            for name in filter(events.get, events):
                self._touched[name].add(outcome.user)
        return events

    def spread(self, name: str) -> bool:
        """Tell whether enough users have met something for it to count."""
        return len(self._touched[name]) >= self.config.watch.users

    def promoted(self) -> None:
        """Begin anew with who has met what: what comes now is to be found again."""
        for users in self._touched.values():
            users.clear()

    def like(self, arm: str, good: bool) -> None:
        """Take what a user said about an answer."""
        self.liked.add(arm, good)

    def table(self) -> dict[str, Any]:
        """Return every signal with its rates and evidence."""
        rows: dict[str, Any] = {}
        for name, one in {**self.evidence, "liked": self.liked}.items():
            rows[name] = {
                arm: {"yes": one.yes[arm], "of": one.seen[arm], "interval": interval(one.yes[arm], one.seen[arm])}
                for arm in ("stable", "candidate")
            }
            rows[name]["log_evidence"] = round(one.log_value, 3)
        return rows

    def advance(self, now: float) -> None:
        """Go to the next step."""
        self.step, self.entered, self._in_step = self.step + 1, now, 0

    def events(self, outcome: Outcome) -> dict[str, bool]:
        """Say yes or no for every signal that an outcome tells something about; stable ones teach what is usual."""
        events = {"errors": outcome.failed}
        for name, seconds in (("first_token", outcome.first_s), ("pace", outcome.pace_s)):
            if seconds is None or outcome.failed:
                continue
            known = self._times[name]
            if len(known) >= 20:
                events[name] = seconds > self._limit(name, outcome.arm)
            if outcome.arm == "stable":
                known.append(seconds)
        if outcome.text is not None and not outcome.failed:
            events["empty"] = is_empty(outcome.text)
            events["flagged"] = outcome.flagged
            odd = self._plausible.odd(outcome.text)
            if odd is not None or is_loop(outcome.text):
                events["odd"] = bool(odd) or is_loop(outcome.text)
            if outcome.arm == "stable":
                self._plausible.learn(outcome.text)
        return events

    def _limit(self, name: str, arm: str) -> float:
        usual = threshold(list(self._times[name]))
        return usual * self.config.watch.slower if arm == "candidate" else usual

    def _counts(self, name: str, user: str, event: bool, now: float) -> bool:
        """Tell whether an observation counts: after a yes, a user says nothing more about it for a while."""
        key = (name, user)
        if self._silent.get(key, 0.0) > now:
            return False
        if event and self.config.watch.era_s:
            if len(self._silent) >= REMEMBERED_USERS:
                self._silent.clear()
            self._silent[key] = now + self.config.watch.era_s
        return True

    def _judge(self, now: float) -> Decision | None:
        config = self.config
        worse = [
            f"{name}: {one.rate('candidate'):.1%} against {one.rate('stable'):.1%}"
            for name, one in self.evidence.items()
            if one.reached(config.watch.alpha) and self.spread(name)
        ]
        if worse:
            return Decision("rollback", "; ".join(worse), self.table())
        if config.mode == "shadow":
            return None
        if self._in_step < config.requests or now - self.entered < config.step_s:
            return None
        if any(one.log_value > math.log(HOLD) for one in self.evidence.values()):
            return None  # not enough to go back, too much to go on
        # Not before it could have been seen that texts are odd; but not for ever, where the candidate's are all short.
        unread = self._plausible.learnt and self.evidence["odd"].seen["candidate"] < ODD_SEEN
        if unread and self._in_step < 5 * config.requests:
            return None
        if self.step + 1 < len(config.steps):
            return Decision("step", f"nothing is worse after {self._in_step} answers", self.table())
        if config.mode == "canary":
            return Decision("promote", f"nothing is worse at {self.percent:g} %", self.table())
        if self.liked.reached(config.goal_alpha):
            return Decision("promote", "it is liked more", self.table())
        if sum(self.liked.seen.values()) >= config.goal_requests:
            return Decision("rollback", "it is not shown to be liked more", self.table())
        return None
