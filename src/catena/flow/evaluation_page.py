"""The page of an evaluation: one HTML file with scores, plots and every sample; and that of the leaderboard.

reports of evaluate.tasks (and evaluate.compare) -> evaluation.jinja -> page.html, without a script
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from catena.core.types import Report, Score
from catena.evaluate.suite import DOCUMENTS, SAMPLES
from catena.flow.evaluation import Standing
from catena.flow.report_curves import plot_scores
from catena.hub.files import write_atomically
from catena.hub.store import Store

MOST_ROWS_PLOTTED = 40
MOST_TEXT = 6000
"""Characters of one text that are shown; the rest is in the report's files."""


@dataclass(frozen=True)
class TaskPart:
    """What the page shows of one task."""

    name: str
    about: Mapping[str, Any]
    notes: Mapping[str, Any]
    scores: Mapping[str, tuple[Score, Score | None, Score | None]]
    """By name: of the model, of the other one, the gain."""
    samples: Sequence[Mapping[str, Any]]
    documents: Sequence[Mapping[str, Any]]
    plot: Markup


def write_page(
    store: Store, report: Report, path: Path, other: Report | None = None, comparison: Report | None = None
) -> Path:
    """Write the page of a model's scores in tasks, beside another one's where there is one."""
    lines = _lines(store, report, SAMPLES)
    others = {(line["split"], line["id"]): line for line in (_lines(store, other, SAMPLES) if other else ())}
    documents = _lines(store, report, DOCUMENTS)
    names = [_name(store, one) for one in (report, other) if one is not None]
    parts = []
    for name, about in report.details["tasks"].items():
        mine = [{**line, "other": others.get((line["split"], line["id"]))} for line in lines if line["split"] == name]
        scores = {
            score: (
                value,
                other.scores.get(score) if other is not None else None,
                comparison.scores.get(f"gain/{score}") if comparison is not None else None,
            )
            for score, value in report.scores.items()
            if score.partition("/")[0] == name
        }
        shown = list(scores.items())[:MOST_ROWS_PLOTTED]
        plot = plot_scores(names, {key: values[: len(names)] for key, values in shown})
        texts = [line for line in documents if line["split"] == name]
        notes = report.details["notes"].get(name, {})
        parts.append(TaskPart(name, about, notes, scores, mine, texts, Markup(plot)))
    p_values = comparison.details["p_values"] if comparison is not None else {}
    html = (
        _environment()
        .get_template("evaluation.jinja")
        .render(
            title=f"{names[0]}: scores", names=names, parts=parts, details=report.details, p_values=p_values, board=()
        )
    )
    return _write(path, html)


def write_leaderboard(rows: Sequence[Standing], path: Path) -> Path:
    """Write the table of all models that were measured, task by task, with a plot of each."""
    groups: dict[tuple[str, str], list[Standing]] = {}
    for row in rows:
        groups.setdefault((row.task, row.way), []).append(row)
    board = [
        (task, way, mine, Markup(plot_scores([mine[0].score_name], {one.model: (one.score,) for one in mine})))
        for (task, way), mine in groups.items()
    ]
    html = (
        _environment()
        .get_template("evaluation.jinja")
        .render(title="Leaderboard", names=(), parts=(), details={}, p_values={}, board=board)
    )
    return _write(path, html)


def _write(path: Path, html: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, html.encode("utf-8", "replace"))
    return path


def _lines(store: Store, report: Report, file: str) -> list[dict[str, Any]]:
    if not any(one.path == file for one in report.files):
        return []
    return [orjson.loads(line) for line in (store.checkout(report) / file).read_bytes().splitlines()]


def _name(store: Store, report: Report) -> str:
    versions = store.index.versions(digest=report.subject)
    return f"{versions[-1].name}@{versions[-1].version}" if versions else report.subject[:12]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("catena.flow", "."),
        autoescape=True,  # answers are text from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        value=lambda value: f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.4g}",
        cut=lambda text: text if len(str(text)) <= MOST_TEXT else str(text)[:MOST_TEXT] + " [...]",
    )
    return environment
