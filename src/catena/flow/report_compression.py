"""Compressed versions in the report: a table of before and after, and what each costs for its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.figure import Figure

from catena.core.types import Report
from catena.flow.report_curves import COLOURS, LOOK, PANEL_HEIGHT, PANEL_WIDTH, as_element

SUITE = "compression"
LOWER = ("size", "perplexity", "bits_per_byte", "first_token_ms", "token_ms")
"""Measures in the order of the table; accuracies, of which more is better, come after them."""


@dataclass(frozen=True)
class Made:
    """A version, or the model that all were made from, with what was measured on it."""

    label: str
    values: Mapping[str, float]
    best: bool = False
    """No other is at least as small and as good, and better in one of the two."""


def compressed(reports: Sequence[Report], labels: Mapping[str, str]) -> list[Made]:
    """Return the whole model and its versions, smallest last; nothing where there are none.

    Where versions of several models are reported, each stands beside the first one's.
    """
    mine = [report for report in reports if report.suite == SUITE]
    if not mine:
        return []
    rows: dict[str, Mapping[str, float]] = {}
    for report in mine:
        rows.setdefault(report.details["baseline"], report.details["before"])
        rows[report.subject] = report.details["after"]
    made = [Made(labels.get(digest, digest[:12]), values) for digest, values in rows.items()]
    good = quality(made)
    unbeaten = {one.label for one in made if good and not any(_beats(other, one, good) for other in made)}
    ordered = sorted(made, key=lambda one: -one.values["size"])
    return [Made(one.label, one.values, one.label in unbeaten) for one in ordered]


def quality(made: Sequence[Made]) -> str:
    """Return the measure that versions are compared by beside their size: the first accuracy, else perplexity."""
    names = [name for name in made[0].values if all(name in one.values for one in made)] if made else []
    accuracies = [name for name in names if name not in LOWER]
    return next(iter(accuracies), "perplexity" if "perplexity" in names else "")


def _beats(one: Made, other: Made, measure: str) -> bool:
    sign = 1 if measure in LOWER else -1
    mine, theirs = ((made.values["size"], sign * made.values[measure]) for made in (one, other))
    return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]


def measures(made: Sequence[Made]) -> list[str]:
    """Return the columns of the table."""
    names = dict.fromkeys(name for one in made for name in one.values)
    return [name for name in LOWER if name in names] + [name for name in names if name not in LOWER]


def plot_pareto(made: Sequence[Made]) -> str:
    """Draw quality over size, a point for each version, and a line through those that none beats."""
    good = quality(made)
    if not good or len(made) < 2:
        return ""
    with rc_context(dict(LOOK)):
        figure = Figure(figsize=(PANEL_WIDTH, PANEL_HEIGHT + 0.8), layout="constrained")
        axes = figure.add_subplot()
        front = sorted((one for one in made if one.best), key=lambda one: one.values["size"])
        axes.plot(*_points(front, good), color=COLOURS[2], linewidth=1.2, label="none is smaller and better")
        axes.scatter(*_points([one for one in made if one.best], good), color=COLOURS[2], s=28, zorder=3)
        axes.scatter(*_points([one for one in made if not one.best], good), color=COLOURS[1], s=28, zorder=3)
        for one in made:
            place = (one.values["size"] / 1e6, one.values[good])
            axes.annotate(one.label, place, xytext=(5, 4), textcoords="offset points", fontsize=8)
        axes.set_xlabel("size, MB")
        axes.set_ylabel(good.replace("_", " "))
        axes.margins(0.12)
        axes.legend(loc="best")
        return as_element(figure, f"{good} over size of every version")


def _points(made: Sequence[Made], measure: str) -> tuple[list[float], list[float]]:
    return [one.values["size"] / 1e6 for one in made], [one.values[measure] for one in made]
