"""Gates: does a candidate keep enough of its baseline to take its place? And promotion, which acts on the verdict.

The verdict is arithmetic on two reports, so that it can be read and repeated: each rule leaves its value, its limit and
whether it held.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from catena.core.config import Config
from catena.core.errors import ConfigError, DataError, GateFailed, UsageError, did_you_mean
from catena.core.stage import Context, stage
from catena.core.types import ModelVersion, Report, Score

Share = Annotated[float, Field(gt=0)]


class GateConfig(Config):
    """The rules; all of them must hold."""

    keep: dict[str, Share] = Field(default_factory=dict)
    """Score name to the share of the baseline's value that the candidate must keep: 0.95 of an accuracy, or a
    perplexity of at most the baseline's divided by 0.95."""
    at_least: dict[str, float] = Field(default_factory=dict)
    """Score name to a limit of its own for the candidate: a floor, or a ceiling where lower is better."""
    max_size_ratio: float | None = Field(default=None, gt=0)
    """Largest size of the candidate's files, as a share of the baseline's."""
    on_fail: Literal["baseline", "stop"] = "baseline"
    """Where a rule does not hold: the baseline wins, or the run stops with exit code 7."""

    @model_validator(mode="after")
    def _has_a_rule(self) -> GateConfig:
        if not self.keep and not self.at_least and self.max_size_ratio is None:
            raise ValueError("a gate needs at least one rule: keep, at_least or max_size_ratio")
        return self


class Rule(BaseModel):
    """One rule and how it came out."""

    name: str
    """`keep/<score>`, `at_least/<score>` or `size_ratio`."""
    value: float
    limit: float
    better: Literal["higher", "lower"]
    candidate: float
    baseline: float | None = None
    n: int | None = None

    @property
    def held(self) -> bool:
        """Whether the value is on the right side of the limit, or on it."""
        return self.value >= self.limit if self.better == "higher" else self.value <= self.limit

    def sentence(self) -> str:
        """Return the rule as it is read by a person."""
        if self.name.startswith("keep/") and self.baseline == 0:
            return f"{self.name} has nothing to go by: the baseline's value is 0, of which no share can be kept"
        sign = "at least" if self.better == "higher" else "at most"
        return f"{self.name} is {self.value:.4g}, and must be {sign} {self.limit:.4g}"


@stage("govern.gate")
def gate(
    ctx: Context,
    cfg: GateConfig,
    *,
    candidate: ModelVersion,
    baseline: ModelVersion,
    candidate_report: Report,
    baseline_report: Report,
    candidate_also: Report | None = None,
    baseline_also: Report | None = None,
) -> Report:
    """Decide whether a candidate may take its baseline's place, by the reports about both."""
    new = scores_of("candidate", candidate, [candidate_report, candidate_also])
    old = scores_of("baseline", baseline, [baseline_report, baseline_also])
    for first, second in ((candidate_report, baseline_report), (candidate_also, baseline_also)):
        _comparable(first, second, cfg.keep)
    rules = apply(cfg, new, old, (candidate.size, baseline.size))
    broken = [rule for rule in rules if not rule.held]
    if broken and cfg.on_fail == "stop":
        raise GateFailed(
            "the gate refused the candidate: " + "; ".join(rule.sentence() for rule in broken),
            hint="Look at the candidate's report, or let the baseline win with on_fail: baseline.",
        )
    for rule in broken:
        ctx.events.log(f"the gate's rule did not hold: {rule.sentence()}")
    winner = baseline if broken else candidate
    return ctx.store.put_report(
        candidate,
        "gate",
        {rule.name: _score(rule) for rule in rules},
        details={
            "verdict": "refused" if broken else "passed",
            "winner": winner.digest,
            "candidate": candidate.digest,
            "baseline": baseline.digest,
            "rules": [{**rule.model_dump(exclude_none=True), "held": rule.held} for rule in rules],
        },
    )


def _score(rule: Rule) -> Score:
    return Score(value=rule.value, n=rule.n, better=rule.better)


def scores_of(role: str, model: ModelVersion, reports: Iterable[Report | None]) -> dict[str, Score]:
    """Return the scores of reports about one model; raises `UsageError` for a report about another."""
    scores: dict[str, Score] = {}
    for report in reports:
        if report is None:
            continue
        if report.subject != model.digest:
            raise UsageError(
                f"the {role}'s report {report.suite!r} is about {report.subject[:12]}, not about the {role} "
                f"{model.digest[:12]}",
                hint=f"Give the gate the report of a step that measured the {role}.",
            )
        scores.update(report.scores)
    return scores


def _comparable(first: Report | None, second: Report | None, names: Iterable[str]) -> None:
    """Raise `UsageError` unless two reports measured the same thing on the same data in the same way.

    The scores of these names must have been measured on as many samples, too.
    """
    if first is None and second is None:
        return
    if first is None or second is None:
        raise UsageError("the gate has a second report about one model only", hint="Give both or neither.")
    hint = "Use the same stage, config and dataset for both models."
    if first.suite != second.suite or first.details.get("data") != second.details.get("data"):
        raise UsageError(
            f"the reports {first.suite!r} and {second.suite!r} were not measured on the same data in the same way",
            hint=hint,
        )
    found = [*_differences(first, second), *_other_counts(first, second, names)]
    if found:
        raise UsageError(
            f"the two reports {first.suite!r} were measured differently (candidate, baseline): {'; '.join(found)}",
            hint=hint,
        )


def _differences(first: Report, second: Report) -> list[str]:
    """Name each field of the measuring config that is not the same in both reports."""
    one, other = (dict(report.details.get("config") or {}) for report in (first, second))
    return [
        f"{name} {one.get(name, 'not told')}, {other.get(name, 'not told')}"
        for name in sorted({*one, *other})
        if name not in one or name not in other or one[name] != other[name]
    ]


def _other_counts(first: Report, second: Report, names: Iterable[str]) -> list[str]:
    both = [name for name in names if name in first.scores and name in second.scores]
    counts = [(name, first.scores[name].n, second.scores[name].n) for name in both]
    return [f"n of {name} {one}, {other}" for name, one, other in counts if one != other]


def apply(cfg: GateConfig, new: Mapping[str, Score], old: Mapping[str, Score], sizes: tuple[int, int]) -> list[Rule]:
    """Return every rule with its value: `new` are the candidate's scores, `old` the baseline's, sizes in bytes."""
    rules = []
    for name, share in cfg.keep.items():
        after, before = _find(new, name, "keep"), _find(old, name, "keep")
        rules.append(
            Rule(
                name=f"keep/{name}",
                value=kept(name, after, before),
                limit=share,
                better="higher",
                candidate=after.value,
                baseline=before.value,
                n=after.n,
            )
        )
    for name, limit in cfg.at_least.items():
        score = _find(new, name, "at_least")
        values: dict[str, Any] = {"value": score.value, "candidate": score.value, "better": score.better, "n": score.n}
        rules.append(Rule(name=f"at_least/{name}", limit=limit, **values))
    if cfg.max_size_ratio is not None:
        ratio = round(sizes[0] / sizes[1], 6)
        rules.append(
            Rule(
                name="size_ratio",
                value=ratio,
                limit=cfg.max_size_ratio,
                better="lower",
                candidate=sizes[0],
                baseline=sizes[1],
            )
        )
    return rules


def _find(scores: Mapping[str, Score], name: str, rule: str) -> Score:
    if name not in scores:
        raise ConfigError(f"{rule}: the reports have no score {name!r}", hint=did_you_mean(name, scores))
    return scores[name]


def kept(name: str, after: Score, before: Score) -> float:
    """Return which share of the baseline's value the candidate keeps; above 1 it is better than the baseline.

    0 where the baseline's value is 0: then there is nothing to take a share of.
    """
    if after.value < 0 or before.value < 0:
        raise DataError(f"the score {name!r} is negative, so no share of it can be kept", hint="Use at_least for it.")
    above, below = (after.value, before.value) if after.better == "higher" else (before.value, after.value)
    if before.value == 0:  # a measure that gives the baseline nothing cannot tell what the candidate lost
        return 0.0
    # What is left without a divisor is an error of zero, and nothing is better than that.
    return 1.0 if below == 0 else round(above / below, 6)


class PromoteConfig(Config):
    """Nothing to choose: the gate has decided."""


@stage("govern.promote")
def promote(
    ctx: Context, cfg: PromoteConfig, *, gate: Report, candidate: ModelVersion, baseline: ModelVersion
) -> ModelVersion:
    """Pass on the model that the gate named the winner; the recipe gives it its name and tags."""
    if gate.suite != "gate":
        raise UsageError(f"the input `gate` is a report of {gate.suite!r}", hint="Use the output of govern.gate.")
    models = {model.digest: model for model in (candidate, baseline)}
    if {gate.details["candidate"], gate.details["baseline"]} != set(models):
        raise UsageError("the gate decided about other models", hint="Give promote the same two models as the gate.")
    return models[gate.details["winner"]]
