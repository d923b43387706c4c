"""What a gateway's `/metrics` says, and the rates between two looks at it. No I/O.

text -> Counts of each model (since the gateway began) -> Rates (since the oldest look of the last half minute)
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

BACK_S = 30.0
"""Rates are of so many seconds."""
MOST_POINTS = 900
"""Looks that are remembered: half an hour of one every two seconds."""
Buckets = tuple[tuple[float, float], ...]
"""(upper bound in seconds, how many were at most so long), rising."""
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
_OURS = "catena_gateway_"


@dataclass(frozen=True)
class Counts:
    """One model at one moment."""

    requests: float = 0.0
    failed: float = 0.0
    """Answered with 500 and above, or cut in the middle."""
    refused: float = 0.0
    """Turned away before a replica was asked: limits, queues that are full."""
    prompt_tokens: float = 0.0
    answer_tokens: float = 0.0
    whole: Buckets = ()
    """Times to the end of an answer."""
    first: Buckets = ()
    """Times to the first token."""
    running: float = 0.0
    waiting: float = 0.0
    broken: tuple[str, ...] = ()
    """Replicas that are left alone for a while."""


@dataclass(frozen=True)
class Rates:
    """What happened to one model in a while."""

    requests: float = 0.0
    """A second."""
    failed: float = 0.0
    """Share of requests, 0 to 1."""
    refused: float = 0.0
    """A second."""
    prompt_tokens: float = 0.0
    answer_tokens: float = 0.0
    """A second."""
    p50_s: float | None = None
    p95_s: float | None = None
    """Times to the end of an answer; None where nobody asked."""
    first_p50_s: float | None = None
    first_p95_s: float | None = None


@dataclass
class _Making:
    counts: dict[str, float] = field(default_factory=dict)
    whole: dict[float, float] = field(default_factory=dict)
    first: dict[float, float] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def add(self, name: str, value: float) -> None:
        self.counts[name] = self.counts.get(name, 0.0) + value

    def made(self) -> Counts:
        whole, first = (tuple(sorted(one.items())) for one in (self.whole, self.first))
        return Counts(**self.counts, whole=whole, first=first, broken=tuple(sorted(self.broken)))


def samples(text: str, start: str = "") -> Iterator[tuple[str, Mapping[str, str], float]]:
    """Yield (name, labels, value) of Prometheus text, of metrics whose names begin with `start`."""
    for line in text.splitlines():
        if line.startswith("#") or not line.startswith(start):
            continue
        head, _, rest = line.partition("{")
        inside, brace, number = rest.rpartition("}")
        if not brace:
            head, _, number = line.partition(" ")
        try:
            value = float(number.split()[0])
        except (ValueError, IndexError):
            continue
        labels = {name: _ESCAPED.sub(_plain, told) for name, told in _LABEL.findall(inside)}
        yield head.strip(), labels, value


def _plain(found: re.Match[str]) -> str:
    return "\n" if found[1] == "n" else found[1]


def counts(text: str) -> dict[str, Counts]:
    """Return what a gateway counted, by model; a model without requests yet has zeros."""
    made: dict[str, _Making] = {}
    for name, labels, value in samples(text, _OURS):
        model = labels.get("model", "")
        if not model:
            continue
        one = made.setdefault(model, _Making())
        match name.removeprefix(_OURS):
            case "requests_total":
                one.add("requests", value)
                if labels.get("status", "").startswith("5"):
                    one.add("failed", value)
            case "cut_streams_total":
                one.add("failed", value)
            case "refused_total":
                one.add("refused", value)
            case "tokens_total":
                one.add("prompt_tokens" if labels.get("kind") == "prompt" else "answer_tokens", value)
            case "running" | "waiting" as gauge:
                one.add(gauge, value)
            case "request_seconds_bucket":
                _bucket(one.whole, labels, value)
            case "first_token_seconds_bucket":
                _bucket(one.first, labels, value)
            case "breaker_open" if value:
                one.broken.append(labels.get("replica", ""))
    return {model: one.made() for model, one in sorted(made.items())}


def _bucket(buckets: dict[float, float], labels: Mapping[str, str], value: float) -> None:
    bound = float(labels.get("le", "inf"))
    buckets[bound] = buckets.get(bound, 0.0) + value  # routes are taken together


def rates(before: Counts, now: Counts, seconds: float) -> Rates:
    """Return what happened between two looks; a gateway that began anew in between is counted from zero."""
    if seconds <= 0:
        return Rates()
    if now.requests < before.requests:
        before = Counts()
    asked = now.requests - before.requests
    whole, first = between(before.whole, now.whole), between(before.first, now.first)
    return Rates(
        requests=asked / seconds,
        failed=min(1.0, (now.failed - before.failed) / asked) if asked else 0.0,
        refused=max(0.0, now.refused - before.refused) / seconds,
        prompt_tokens=max(0.0, now.prompt_tokens - before.prompt_tokens) / seconds,
        answer_tokens=max(0.0, now.answer_tokens - before.answer_tokens) / seconds,
        p50_s=quantile(whole, 0.5),
        p95_s=quantile(whole, 0.95),
        first_p50_s=quantile(first, 0.5),
        first_p95_s=quantile(first, 0.95),
    )


def between(before: Buckets, now: Buckets) -> Buckets:
    """Return the buckets of what came after `before`."""
    old = dict(before)
    return tuple((bound, count - old.get(bound, 0.0)) for bound, count in now)


def quantile(buckets: Buckets, share: float) -> float | None:
    """Return a quantile of cumulative buckets, as Prometheus's `histogram_quantile`; None where there is nothing."""
    if not buckets or buckets[-1][1] <= 0:
        return None
    wanted = share * buckets[-1][1]
    low_bound = low_count = 0.0
    for bound, count in buckets:
        if count >= wanted:
            if bound == float("inf"):
                return low_bound
            inside = count - low_count
            return low_bound + (bound - low_bound) * ((wanted - low_count) / inside if inside else 1.0)
        low_bound, low_count = bound, count
    return low_bound


@dataclass(frozen=True)
class Point:
    """One look, with the rates until then."""

    at: float
    """Seconds since 1970."""
    counts: Mapping[str, Counts]
    rates: Mapping[str, Rates]


class History:
    """The looks of the last half hour."""

    def __init__(self) -> None:
        self.points: deque[Point] = deque(maxlen=MOST_POINTS)

    def add(self, at: float, found: Mapping[str, Counts]) -> Point:
        """Take a look's counts; returns it with the rates since the oldest look within `BACK_S`."""
        before = next((one for one in self.points if at - one.at <= BACK_S), None)
        before = before or (self.points[-1] if self.points else None)
        made = {
            model: rates(before.counts.get(model, Counts()), one, at - before.at) if before is not None else Rates()
            for model, one in found.items()
        }
        self.points.append(Point(at, found, made))
        return self.points[-1]

    def curve(self, model: str, value: str) -> tuple[Sequence[float], Sequence[float]]:
        """Return (seconds until now, values) of one of a model's rates; where there is none, not a number."""
        if not self.points:
            return (), ()
        last = self.points[-1].at
        shown = [(one.at - last, getattr(one.rates.get(model, Rates()), value)) for one in self.points]
        shown = shown[1:]  # the first look has nothing to be compared with
        return [at for at, _ in shown], [float("nan") if number is None else number for _, number in shown]
