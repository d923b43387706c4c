"""Evaluations: the leaderboard over all models, one report, and two models compared with the paired statistic.

reports -> EvaluationBook.boards()            a board for each task and way of measuring it, best first
two reports -> EvaluationBook.compare(a, b)   what each score gained, its interval and p-value; pairs of answers
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from catena.console.read.samples import FILES, RIGHT, Pairs, SampleBook
from catena.console.read.tables import reading, stamp
from catena.core.digest import digest_of
from catena.core.errors import UsageError
from catena.core.types import ModelVersion, Report, Score
from catena.evaluate.compare import differences
from catena.evaluate.stats import mcnemar
from catena.evaluate.suite import SUITE
from catena.flow.evaluation import standings
from catena.hub.schema import artifacts
from catena.hub.store import Store

MEASURING = ("answers", "perplexity", "classification", "moderation")
"""Suites beside tasks whose scores may be compared over models."""


@dataclass(frozen=True)
class Place:
    """One model's score on a board."""

    model: str
    """`name@version`."""
    digest: str
    report: str
    score: Score
    made: datetime | None


@dataclass(frozen=True)
class Board:
    """All models that were measured in one way."""

    task: str
    """What was measured: a task, or `suite: score`."""
    score: str
    way: str
    """Tells boards of the same task apart that were measured on other rows or in another way."""
    places: tuple[Place, ...]
    """Best first."""


@dataclass(frozen=True)
class EvaluationRow:
    """One report in the list."""

    digest: str
    ref: str
    suite: str
    model: str
    subject: str
    created: datetime | None
    scores: Mapping[str, Score]
    samples: bool
    """Whether its answers can be looked at."""


@dataclass(frozen=True)
class Gain:
    """How much better the second of two models is in one score; more is better, whatever the score."""

    name: str
    first: Score
    second: Score
    value: float
    low: float | None
    high: float | None
    p_value: float | None

    @property
    def certain(self) -> bool:
        """Whether chance alone would rarely do this (5 %)."""
        return self.p_value is not None and self.p_value < 0.05


@dataclass(frozen=True)
class Comparison:
    """Two models on the same questions."""

    names: tuple[str, str]
    reports: tuple[Report, Report]
    gains: tuple[Gain, ...]
    pairs: Pairs | None
    """None where the reports kept no answers."""


class EvaluationBook:
    """The evaluations of a workspace. For threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.samples = SampleBook(store)
        self._lock = threading.Lock()
        self._stamp: tuple[object, ...] | None = None
        self._boards: list[Board] = []
        self._rows: list[EvaluationRow] = []

    def boards(self) -> list[Board]:
        """Return the leaderboard: tasks by name, then other measures; the newest score of each model, best first."""
        self._bring_up_to_date()
        return self._boards

    def reports(self, subject: str = "") -> list[EvaluationRow]:
        """Return the reports that measure a model, newest first; of one model, by its digest, or of all."""
        self._bring_up_to_date()
        return [row for row in self._rows if not subject or row.subject == subject]

    def report(self, ref: str) -> Report:
        """Return a report. Raises `NotFound`."""
        return self.store.resolve(ref, Report)

    def name_of(self, digest: str) -> str:
        """Return `name@version` of an artifact, or the beginning of its digest."""
        versions = self.store.index.versions(digest=digest)
        return f"{versions[-1].name}@{versions[-1].version}" if versions else digest[:12]

    def partners(self, report: Report) -> list[EvaluationRow]:
        """Return the reports on other models that this one can be compared with, newest first."""
        mine = _way(report)
        return [
            row
            for row in self.reports()
            if row.suite == report.suite and row.subject != report.subject and _way(self.report(row.digest)) & mine
        ]

    def compare(self, first: str, second: str) -> Comparison:
        """Compare two reports. Raises `UsageError` for such as did not measure the same."""
        one, other = self.report(first), self.report(second)
        if one.digest == other.digest or one.subject == other.subject:
            raise UsageError("both evaluations are of the same model", hint="Choose two models.")
        if one.suite != other.suite:
            raise UsageError(f"{one.suite!r} and {other.suite!r} measure different things")
        kept = all(any(file.path in FILES for file in report.files) for report in (one, other))
        pairs = self.samples.pairing(one, other) if kept else None
        if one.suite == SUITE:
            gains = [
                _gain(name, one, other, (found.value, found.low, found.high), found.p_value)
                for name, found in differences(self.store, one, other, 0).items()
            ]
        else:
            shared = [name for name in one.scores if name in other.scores]
            gains = [_gain(name, one, other, None, _p_value(name, pairs)) for name in shared]
        return Comparison((self.name_of(one.subject), self.name_of(other.subject)), (one, other), tuple(gains), pairs)

    def _bring_up_to_date(self) -> None:
        with self._lock:
            now = stamp(self.store)
            if now == self._stamp:
                return
            reports, names = _read(self.store), _names(self.store)
            models = {row.digest for row in self.store.index.all_artifacts() if isinstance(row, ModelVersion)}
            measuring = [one for one in reports if one.subject in models and one.suite in (SUITE, *MEASURING)]
            rows = [_row(report, names) for report in measuring]
            self._rows = sorted(rows, key=lambda row: -(row.created.timestamp() if row.created else 0))
            self._boards = [*_of_tasks(self.store, measuring), *_of_others(measuring, names)]
            self._stamp = now


def _read(store: Store) -> list[Report]:
    with reading(store) as connection:
        query = select(artifacts.c.body).where(artifacts.c.kind == "report").order_by(artifacts.c.created)
        bodies = list(connection.execute(query).scalars())
    return [Report.model_validate_json(body) for body in bodies]


def _names(store: Store) -> dict[str, str]:
    return {row.digest: f"{row.name}@{row.version}" for row in store.index.versions()}


def _row(report: Report, names: Mapping[str, str]) -> EvaluationRow:
    kept = any(file.path in FILES for file in report.files)
    ref, model = names.get(report.digest, report.digest[:12]), names.get(report.subject, report.subject[:12])
    return EvaluationRow(report.digest, ref, report.suite, model, report.subject, report.created, report.scores, kept)


def _of_tasks(store: Store, reports: Iterable[Report]) -> list[Board]:
    """Return the boards of `catena evaluate leaderboard`."""
    made = {(one.subject, one.created.isoformat() if one.created else ""): one for one in reports if one.suite == SUITE}
    found: dict[tuple[str, str], list[Any]] = {}
    for standing in standings(store):
        found.setdefault((standing.task, standing.way), []).append(standing)
    boards = []
    for (task, way), mine in found.items():
        places = [
            Place(one.model, one.digest, report.digest, one.score, report.created)
            for one in mine
            if (report := made.get((one.digest, one.made))) is not None
        ]
        boards.append(Board(task, mine[0].score_name.rpartition("/")[2], way, tuple(places)))
    return boards


def _of_others(reports: Iterable[Report], names: Mapping[str, str]) -> list[Board]:
    """Return a board for each score of other suites and each way of measuring it; the newest counts."""
    found: dict[tuple[str, str, str], dict[str, Place]] = {}
    for report in reports:
        if report.suite == SUITE:
            continue
        way = digest_of([report.details.get("data"), report.details.get("config")])[:8]
        for name, score in report.scores.items():
            label = names.get(report.subject, report.subject[:12])
            place = Place(label, report.subject, report.digest, score, report.created)
            found.setdefault((report.suite, name, way), {})[report.subject] = place
    return [
        Board(suite, name, way, tuple(sorted(places.values(), key=_worst_last)))
        for (suite, name, way), places in sorted(found.items())
    ]


def _worst_last(place: Place) -> tuple[float, str]:
    value = place.score.value
    return (value if place.score.better == "lower" else -value, place.model)


def _way(report: Report) -> set[str]:
    """Return what two reports must have in common to be compared: a task with its digest, or data and config."""
    if report.suite == SUITE:
        return {f"{name} {about['digest']}" for name, about in dict(report.details.get("tasks") or {}).items()}
    return {digest_of([report.details.get("data"), report.details.get("config")])}


def _gain(
    name: str, one: Report, other: Report, difference: tuple[float, float, float] | None, p_value: float | None
) -> Gain:
    first, second = one.scores[name], other.scores[name]
    sign = 1.0 if second.better == "higher" else -1.0
    if difference is None:
        return Gain(name, first, second, sign * (second.value - first.value), None, None, p_value)
    low, high = sorted((sign * difference[1], sign * difference[2]))
    return Gain(name, first, second, sign * difference[0], low, high, p_value)


def _p_value(name: str, pairs: Pairs | None) -> float | None:
    """Return the exact McNemar test for an accuracy of a split (`accuracy/test`); None for what is no accuracy."""
    measure, _, split = name.partition("/")
    if pairs is None or not pairs.judged or measure != "accuracy" or split not in pairs.splits:
        return None
    counts = pairs.counts(split)
    return mcnemar(counts["lost"], counts["gained"])


__all__ = ["RIGHT", "Board", "Comparison", "EvaluationBook", "EvaluationRow", "Gain", "Place"]
