"""The stage `data.drift`: a time, or a dataset, against another: how far apart, whether by chance, and what to do.

    reference, current -> sampled facts -> features -> compared one by one -> verdicts -> report, page, maybe a stop

Each feature is `stable`, worth a look (`watch`) or `drift`. A finding needs both: a distance that matters, and a
p-value below `alpha` divided by the number of features: all of them together raise a false alarm at most that often.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, field_validator

from catena.core.config import Config
from catena.core.digest import digest_of
from catena.core.errors import DataError, GateFailed, UsageError
from catena.core.stage import Context, stage
from catena.core.trace import TRACES, TraceSource
from catena.core.types import Artifact, DatasetVersion, Report, Score
from catena.data.drift.facts import Facts, language_of, of_sample, of_trace, sampled

Verdict = Literal["stable", "watch", "drift", "too few"]
Feature = Literal["question_words", "answer_words", "language", "topic", "refused", "moderated", "liked", "ms"]
FEATURES: tuple[Feature, ...] = (
    *("question_words", "answer_words", "language", "topic"),
    *("refused", "moderated", "ms"),
)
AGE = re.compile(r"(\d{1,6})([smhd])")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class DriftConfig(Config):
    """What is compared, and when it counts."""

    source: str = "audit"
    """Where traces come from."""
    folder: Path | None = Field(default=None, exclude=True)
    """Folder of the audit; none: `audit` in the workspace."""
    reference_since: str = "28d"
    """Where the reference begins, if it is no dataset: a time (ISO 8601) or an age (7d, 12h)."""
    reference_until: str = "7d"
    """Where it ends."""
    since: str = "7d"
    """Where the time to look at begins, if it is no dataset."""
    until: str = "0s"
    """Where it ends."""
    models: tuple[str, ...] = ()
    """Only traces of these models; empty: all."""
    features: tuple[Feature, ...] = FEATURES
    """What is looked at; what one side does not know (a dataset has no latency) is left out."""
    topics: int = Field(default=8, ge=2, le=100)
    """Clusters of the reference's questions."""
    least: int = Field(default=100, ge=2)
    """Fewest rows on each side; with fewer nothing is said about a feature."""
    most: int = Field(default=20_000, ge=100)
    """Most rows of each side, drawn by chance."""
    watch: float = Field(default=0.1, gt=0)
    """PSI from which a feature is worth a look."""
    drift: float = Field(default=0.25, gt=0)
    """PSI from which it has drifted."""
    ks_drift: float = Field(default=0.2, gt=0, le=1)
    """KS distance from which a number has drifted; from half of it, it is worth a look."""
    share_drift: float = Field(default=0.05, gt=0, le=1)
    """Change of a share (refusals, moderation) that counts as drift; half of it is worth a look."""
    alpha: float = Field(default=0.01, gt=0, lt=1)
    """Chance of a false alarm by any of the features, where nothing has changed."""
    on_drift: Literal["report", "stop"] = "report"
    """Where a feature has drifted: only the report says so, or the run stops with exit code 7."""

    @field_validator("reference_since", "reference_until", "since", "until")
    @classmethod
    def _is_a_time(cls, text: str) -> str:
        when(text, datetime.now(UTC))
        return text


def when(text: str, now: datetime) -> datetime:
    """Return a moment: as given, or so long before now. Raises `ValueError`."""
    if match := AGE.fullmatch(text):
        return now - timedelta(seconds=int(match[1]) * UNITS[match[2]])
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is neither a time (2026-01-31T12:00) nor an age (7d)") from error
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Found:
    """One feature and what is said of it."""

    name: str
    verdict: Verdict
    rows: tuple[int, int]
    """In the reference, and now."""
    measure: str = "psi"
    value: float = 0.0
    psi: float = 0.0
    p: float = 1.0
    ks: float | None = None
    difference: float | None = None
    labels: tuple[str, ...] = ()
    reference: tuple[int, ...] = ()
    current: tuple[int, ...] = ()


@stage("data.drift", volatile=True, uses=("catena.govern.feedback.traces",))
def drift(
    ctx: Context, cfg: DriftConfig, *, reference: DatasetVersion | None = None, current: DatasetVersion | None = None
) -> Report:
    """Compare what is asked and answered now with a time before or a dataset: lengths, languages, topics, refusals.

    `reference` takes the place of the time before, `current` that of the time to look at.
    """
    from catena.data.drift.page import write_page

    now = datetime.now(UTC)
    span = (when(cfg.reference_since, now), when(cfg.reference_until, now))
    first, told_first = _side(ctx, cfg, reference, span)
    second, told_second = _side(ctx, cfg, current, (when(cfg.since, now), when(cfg.until, now)))
    if not first or not second:
        empty, told = ("reference", told_first) if not first else ("time to look at", told_second)
        raise DataError(
            f"there is nothing in the {empty} ({told})", hint="Is the server's audit on? See docs/feedback.md."
        )
    found = compare(first, second, cfg, ctx.seed)
    drifted = [one.name for one in found if one.verdict == "drift"]
    details: dict[str, Any] = {
        "verdict": "drift" if drifted else "watch" if any(one.verdict == "watch" for one in found) else "stable",
        "drifted": drifted,
        "reference": told_first,
        "current": told_second,
        "rows": [len(first), len(second)],
        "features": {one.name: asdict(one) for one in found},
        "config": cfg.model_dump(mode="json"),
    }
    folder = ctx.workdir / "report"
    folder.mkdir(exist_ok=True)
    write_page(details, found, folder / "drift.html")
    for one in found:
        ctx.events.log(f"{one.name}: {one.verdict}", psi=round(one.psi, 4), p=round(one.p, 4))
    if drifted and cfg.on_drift == "stop":
        raise GateFailed(
            f"there is drift in {', '.join(drifted)}", hint=f"Look at {folder / 'drift.html'}; or say on_drift: report."
        )
    subject = reference or current or _Times(digest_of([told_first, told_second]))
    return ctx.store.put_report(cast("Artifact", subject), "drift", scores_of(found), details=details, folder=folder)


@dataclass(frozen=True, slots=True)
class _Times:
    """What a report is about where neither side is stored."""

    digest: str


def _side(
    ctx: Context, cfg: DriftConfig, dataset: DatasetVersion | None, span: tuple[datetime, datetime]
) -> tuple[list[Facts], str]:
    if dataset is not None:
        rows: Iterable[Facts | None] = map(of_sample, ctx.store.open_dataset(dataset).samples())
        return sampled(rows, cfg.most, ctx.seed), f"dataset {dataset.digest[:12]}"
    if span[0] >= span[1]:
        raise UsageError(f"the time from {span[0]:%Y-%m-%d %H:%M} to {span[1]:%Y-%m-%d %H:%M} is empty")
    source: TraceSource = TRACES.load(cfg.source)(ctx.store.root, cfg.folder)
    traces = (one for one in source.window(*span) if not cfg.models or one.model in cfg.models)
    told = " to ".join(one.isoformat(timespec="seconds") for one in span)
    return sampled(map(of_trace, traces), cfg.most, ctx.seed), told


# -- features ----------------------------------------------------------------------------------------------------------


def compare(first: Sequence[Facts], second: Sequence[Facts], cfg: DriftConfig, seed: int) -> list[Found]:
    """Compare each feature that both sides know."""
    values: dict[str, tuple[list[Any], list[Any]]] = {}
    for name in cfg.features:
        if name != "topic":
            values[name] = (_values(name, first), _values(name, second))
    if "topic" in cfg.features and min(len(first), len(second)) >= cfg.least:
        values["topic"] = _topics(first, second, cfg, seed)
    known = {name: pair for name in cfg.features if (pair := values.get(name)) and pair[0] and pair[1]}
    return [_judged(name, *pair, cfg, (seed, cfg.alpha / len(known))) for name, pair in known.items()]


def _values(name: str, facts: Sequence[Facts]) -> list[Any]:
    if name == "language":
        tell = language_of()
        return [tell(one.question) for one in facts]
    if name in ("answer_words", "refused") and not any(one.answer for one in facts):
        return []
    found = (getattr(one, name) for one in facts)
    return [value for value in found if value is not None]


def _topics(
    first: Sequence[Facts], second: Sequence[Facts], cfg: DriftConfig, seed: int
) -> tuple[list[str], list[str]]:
    """Return the topics of both sides. The clusters are those of every other row of the reference, and the rest of it
    is what is compared: rows are nearer to clusters that were made of them.
    """
    from catena.data.drift.topics import Topics

    made_of, compared = [one.question for one in first[::2]], [one.question for one in first[1::2]]
    try:
        topics = Topics(made_of, cfg.topics, seed)
    except ValueError:
        return [], []
    return topics.of(compared), topics.of([one.question for one in second])


def _judged(name: str, first: list[Any], second: list[Any], cfg: DriftConfig, chance: tuple[int, float]) -> Found:
    from catena.data.drift import measure

    rows = (len(first), len(second))
    if min(rows) < (cfg.least // 2 if name == "topic" else cfg.least):
        return Found(name, "too few", rows)
    seed, alpha = chance
    kinds: Mapping[str, Callable[[Any, Any, int], Any]] = {
        **{"language": measure.categories, "topic": measure.categories},
        **{"refused": measure.shares, "moderated": measure.shares, "liked": measure.shares},
    }
    one = kinds.get(name, measure.numbers)(first, second, seed)
    far = {"psi": one.psi / cfg.drift}
    near = {"psi": one.psi / cfg.watch}
    if one.ks is not None:
        far["ks"] = one.ks / cfg.ks_drift
        near["ks"] = 2 * far["ks"]
    if one.difference is not None:
        far["difference"] = abs(one.difference) / cfg.share_drift
        near["difference"] = 2 * far["difference"]
    by_chance = one.p >= alpha
    verdict: Verdict = "stable"
    if not by_chance:
        verdict = "drift" if max(far.values()) >= 1 else "watch" if max(near.values()) >= 1 else "stable"
    chosen = max(far, key=far.__getitem__)
    value = {"psi": one.psi, "ks": one.ks, "difference": one.difference}[chosen]
    return Found(
        *(name, verdict, rows, chosen, float(value or 0.0), one.psi, one.p, one.ks, one.difference),
        *(tuple(one.labels), tuple(one.reference), tuple(one.current)),
    )


def scores_of(found: Sequence[Found]) -> dict[str, Score]:
    """Return the scores of a report: for each feature its PSI, and KS or the change of its share where it has one."""
    scores = {"drifted": Score(value=float(sum(one.verdict == "drift" for one in found)), better="lower")}
    for one in found:
        if one.verdict == "too few":
            continue
        n = min(one.rows)
        scores[f"psi/{one.name}"] = Score(value=round(one.psi, 6), n=n, better="lower")
        if one.ks is not None:
            scores[f"ks/{one.name}"] = Score(value=round(one.ks, 6), n=n, better="lower")
        if one.difference is not None:
            scores[f"difference/{one.name}"] = Score(value=round(one.difference, 6), n=n, better="lower")
    return scores
