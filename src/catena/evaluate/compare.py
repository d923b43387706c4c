"""Comparison: two models on the same questions, by the evidence in their reports; may stop a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from catena.core.config import Config
from catena.core.errors import ConfigError, GateFailed, UsageError, did_you_mean
from catena.core.stage import Context, stage
from catena.core.types import Report, Score
from catena.evaluate.measures import measure_of
from catena.evaluate.stats import Difference, paired
from catena.evaluate.suite import EVIDENCE, SUITE
from catena.hub.store import Store


class CompareConfig(Config):
    """What a candidate must not lose."""

    margin: dict[str, float] = Field(default_factory=dict)
    """Score name (`gsm8k/exact`) to how much worse the candidate may be at the bad end of the 95 % interval of the
    paired difference: 0.02 of an accuracy. 0 asks that it is surely better."""
    on_fail: Literal["report", "stop"] = "report"
    """Where a margin does not hold: the report says so, or the run stops with exit code 7."""


@stage("evaluate.compare")
def compare(ctx: Context, cfg: CompareConfig, *, candidate: Report, baseline: Report) -> Report:
    """Compare two models question by question: paired differences, with intervals and p-values."""
    found = differences(ctx.store, baseline, candidate, ctx.seed)
    for name in cfg.margin:
        if name not in found:
            raise ConfigError(f"margin: the reports have no score {name!r}", hint=did_you_mean(name, found))
    better = {name: candidate.scores[name].better for name in found}
    broken = [name for name, margin in cfg.margin.items() if worst(found[name], better[name]) < -margin]
    said = [
        f"{name}: the difference may be as bad as {worst(found[name], better[name]):.4g}, allowed is "
        f"{0 - cfg.margin[name]:.4g}"
        for name in broken
    ]
    if broken and cfg.on_fail == "stop":
        raise GateFailed("the candidate is not good enough: " + "; ".join(said), hint="Look at both reports' samples.")
    for sentence in said:
        ctx.events.log(sentence)
    scores: dict[str, Score] = {}
    for name, one in found.items():
        sign = 1.0 if better[name] == "higher" else -1.0
        ends = sorted((sign * one.low, sign * one.high))
        n = candidate.scores[name].n
        scores[f"gain/{name}"] = Score(
            value=round(sign * one.value, 6), low=round(ends[0], 6), high=round(ends[1], 6), n=n
        )
        scores[f"worst/{name}"] = Score(value=round(ends[0], 6), n=n)
    subject = ctx.store.resolve(candidate.subject)
    return ctx.store.put_report(
        subject,
        "comparison",
        scores,
        details={
            "data": candidate.details.get("data"),
            "baseline": baseline.subject,
            "p_values": {name: round(one.p_value, 6) for name, one in found.items()},
            "verdict": "refused" if broken else "passed",
            "rules": said,
            "interval": "95 %, bootstrap over pairs; p by McNemar (right or wrong) or by swapping answers at random",
        },
    )


def worst(difference: Difference, better: str) -> float:
    """Return the bad end of a difference, counted so that more is better."""
    return difference.low if better == "higher" else -difference.high


def differences(store: Store, first: Report, second: Report, seed: int) -> dict[str, Difference]:
    """Return, for each score that both have on the same questions, how much the second is above the first.

    Raises `UsageError` for reports that are not about the same tasks.
    """
    for report in (first, second):
        if report.suite != SUITE:
            raise UsageError(f"a report of {report.suite!r} cannot be compared", hint="Use those of evaluate.tasks.")
    one, other = evidence_of(store, first), evidence_of(store, second)
    shared = [name for name in one if "#" not in name and name in other]
    tasks = {name.partition("/")[0] for name in shared}
    for task in sorted(tasks):
        same = first.details["tasks"][task]["digest"] == second.details["tasks"][task]["digest"]
        if not same or not np.array_equal(one[f"{task}#ids"], other[f"{task}#ids"]):
            raise UsageError(
                f"the two reports did not measure {task!r} on the same questions",
                hint="Use the same task file, data, limit and seed for both.",
            )
    if not shared:
        raise UsageError("the two reports have no task in common")
    return dict(_each(shared, one, other, seed))


def _each(
    names: list[str], one: Mapping[str, Any], other: Mapping[str, Any], seed: int
) -> Iterator[tuple[str, Difference]]:
    for name in names:
        clusters = one.get(f"{name.partition('/')[0]}#clusters")
        labels = None if clusters is None else [str(label) for label in clusters]
        finish = measure_of(name.partition("/")[2]).finish
        yield name, paired(one[name], other[name], finish, seed=seed, clusters=labels)


def evidence_of(store: Store, report: Report) -> dict[str, Any]:
    """Return the arrays that a report's scores are sums of."""
    with np.load(store.checkout(report) / EVIDENCE, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
