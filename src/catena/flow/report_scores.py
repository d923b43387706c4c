"""Scores of the report: models side by side with their intervals, and what changed question by question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from catena.core.types import ModelVersion, Report, Score
from catena.evaluate.stats import mcnemar
from catena.hub.store import Store

SAMPLES = "samples.jsonl"
SHOWN = 3
"""Answers of each split, right and wrong ones."""


@dataclass(frozen=True)
class ScoreTable:
    """Scores by name; the values stand in the order of `models`."""

    models: tuple[str, ...]
    scores: Mapping[str, tuple[Score | None, ...]]


@dataclass(frozen=True)
class Comparison:
    """The same questions answered by two models."""

    split: str
    before: str
    after: str
    both: int
    lost: int
    """Right before, wrong after."""
    gained: int
    neither: int
    p_value: float
    """Exact McNemar test: how likely a difference at least as large is between two equally good models."""


@dataclass(frozen=True)
class AnswerGroup:
    """Some answered questions of one split, wrong ones first."""

    split: str
    model: str
    total: int
    right: int
    samples: tuple[Mapping[str, Any], ...]


def score_table(reports: Iterable[Report], labels: Mapping[str, str]) -> ScoreTable:
    """Put the scores of models side by side; `labels` names the measured models by digest, in their order."""
    reports = [report for report in reports if report.subject in labels]  # one about data has no column here
    subjects = [digest for digest in labels if any(report.subject == digest for report in reports)]
    names = dict.fromkeys(name for report in reports for name in report.scores)
    found = {(report.subject, name): score for report in reports for name, score in report.scores.items()}
    return ScoreTable(
        tuple(labels[digest] for digest in subjects),
        {name: tuple(found.get((digest, name)) for digest in subjects) for name in names},
    )


def read_samples(store: Store, report: Report) -> list[dict[str, Any]]:
    """Return the lines of a report's `samples.jsonl`; nothing where it has none."""
    if not any(file.path == SAMPLES for file in report.files):
        return []
    lines = (store.checkout(report) / SAMPLES).read_bytes().splitlines()
    return [orjson.loads(line) for line in lines]


def comparisons(store: Store, reports: Sequence[Report], models: Mapping[str, ModelVersion]) -> list[Comparison]:
    """Compare each model that was made smaller with the one that it was made from, over the same questions."""
    found = []
    for after in reports:
        base = models[after.subject].base if after.subject in models else None
        for before in reports:
            same = before.suite == after.suite and before.details.get("data") == after.details.get("data")
            if base and before.subject == base and same:
                found += compare(read_samples(store, before), read_samples(store, after), (base, after.subject))
    return found


def compare(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], models: tuple[str, str]
) -> list[Comparison]:
    """Count, for each split, the questions that only one of two models got right."""
    earlier = {(line["split"], line["id"]): line["score"] >= 1 for line in before}
    counts: dict[str, dict[tuple[bool, bool], int]] = {}
    for line in after:
        key = (line["split"], line["id"])
        if key in earlier:
            cells = counts.setdefault(
                line["split"], dict.fromkeys([(a, b) for a in (True, False) for b in (True, False)], 0)
            )
            cells[earlier[key], line["score"] >= 1] += 1
    return [
        Comparison(
            split,
            *models,
            both=cells[True, True],
            lost=cells[True, False],
            gained=cells[False, True],
            neither=cells[False, False],
            p_value=mcnemar(cells[True, False], cells[False, True]),
        )
        for split, cells in counts.items()
    ]


def answer_groups(store: Store, report: Report, model: str) -> list[AnswerGroup]:
    """Return a few answers of each split, wrong ones first: they teach most."""
    lines = read_samples(store, report)
    groups = []
    for split in dict.fromkeys(line["split"] for line in lines):
        mine = [line for line in lines if line["split"] == split]
        wrong = [line for line in mine if line["score"] < 1]
        right = [line for line in mine if line["score"] >= 1]
        groups.append(AnswerGroup(split, model, len(mine), len(right), tuple(wrong[:SHOWN] + right[:SHOWN])))
    return groups
