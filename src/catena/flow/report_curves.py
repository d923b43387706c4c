"""Plots of the report: training curves and scores, as inline SVG that takes its text colour from the page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from catena.core.events import read_events
from catena.core.types import Run, Score
from catena.hub.store import Store

Points = dict[int, float]
Curves = dict[str, Points]

PANEL_WIDTH, PANEL_HEIGHT = 9.4, 2.6
SMALL_HEIGHT = 1.9
"""Inches; the page scales the drawing."""
MOST_POINTS = 400
"""Of one curve. More cannot be seen and make the file heavy."""
# Okabe and Ito's colours, told apart by people with any colour vision, on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
FIRST = ("learning_rate", "grad_norm", "tokens_per_s", "mfu")
"""Panels below the losses, in this order; what else a training tells comes after them."""
LABELS = {
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_s": "tokens/s",
    "mfu": "MFU",
    "checkpoint_save_s": "seconds to write a checkpoint, beside the training",
    "checkpoint_stall_ms": "milliseconds that the training waits for it",
}
INK = "#010203"  # stands for the page's text colour until `as_element` puts `currentColor` in its place
LOOK: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "catena",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "legend.frameon": False,
}


def curves_of(store: Store, run: Run) -> Curves:
    """Return every metric of a run that has a course: name to {training step: value}.

    What a killed attempt at the same work recorded before belongs to it; a step recorded twice counts the last time.
    """
    made = origin_of(store, run)
    attempts = [attempt for attempt in store.index.find_runs(key=made.key) if _begun(attempt) <= _begun(made)]
    curves: Curves = {}
    for attempt in sorted(attempts, key=_begun):
        for event in read_events(store.root / "runs" / attempt.group / "events.jsonl"):
            if event.get("event") == "metric" and event.get("step") == attempt.step:
                _add(curves, event)
    return {name: dict(sorted(points.items())) for name, points in sorted(curves.items())}


def _add(curves: Curves, event: Mapping[str, Any]) -> None:
    step, value = event.get("at_step"), event.get("value")
    if isinstance(step, int) and isinstance(value, int | float) and math.isfinite(value):
        curves.setdefault(str(event["name"]), {})[step] = float(value)


def _begun(run: Run) -> float:
    return run.started.timestamp() if run.started else 0.0


def origin_of(store: Store, run: Run) -> Run:
    """Return the run that did the work: the run itself, or the one whose output it took from the store."""
    found = store.index.find_runs(id=str(run.metrics["origin"])) if "origin" in run.metrics else []
    return found[0] if found else run


def thinned(points: Points, most: int = MOST_POINTS) -> tuple[list[float], list[float]]:
    """Return steps and values; where there are more than `most`, neighbours are averaged."""
    pairs = list(points.items())
    size = math.ceil(len(pairs) / most) if pairs else 1
    blocks = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    steps = [sum(step for step, _ in block) / len(block) for block in blocks]
    return steps, [sum(value for _, value in block) / len(block) for block in blocks]


def plot_curves(curves: Curves) -> str:
    """Draw losses together in a panel across, and every other metric in a small one below; empty text for no curves."""
    losses = {name: points for name, points in curves.items() if "loss" in name}
    others = [name for name in FIRST if name in curves]
    # One point is no course: `catena show` tells such numbers.
    others += [name for name, points in curves.items() if name not in (*losses, *FIRST) and len(points) > 1]
    if not losses and not others:
        return ""
    small = math.ceil(len(others) / 2)
    height = PANEL_HEIGHT * bool(losses) + SMALL_HEIGHT * small
    with rc_context(dict(LOOK)):
        figure = Figure(figsize=(PANEL_WIDTH, height), layout="constrained")
        ratios = [PANEL_HEIGHT] * bool(losses) + [SMALL_HEIGHT] * small
        grid = figure.add_gridspec(len(ratios), 2, height_ratios=ratios)
        if losses:
            _draw_panel(figure.add_subplot(grid[0, :]), losses)
        for number, name in enumerate(others):
            row, column = divmod(number, 2)
            # The last of an odd number has the row to itself.
            cell = slice(None) if number == len(others) - 1 and not column else column
            axes = figure.add_subplot(grid[row + bool(losses), cell])
            _draw_panel(axes, {LABELS.get(name, name): curves[name]})
        return as_element(figure, "Training curves: " + ", ".join(curves))


def _draw_panel(axes: Axes, panel: Curves) -> None:
    for number, (name, points) in enumerate(panel.items()):
        steps, values = thinned(points)
        marker = "o" if len(steps) < 40 else ""
        axes.plot(steps, values, color=COLOURS[number % 4], label=name, linewidth=1.4, marker=marker, markersize=3)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(panel) > 1:
        axes.legend(loc="best")
    else:
        axes.set_title(next(iter(panel)), fontsize=9)


def plot_scores(models: Sequence[str], scores: Mapping[str, Sequence[Score | None]]) -> str:
    """Draw shares between 0 and 1 as points with their intervals: a row for each score, a colour for each model."""
    rows = {name: values for name, values in scores.items() if all(_is_share(value) for value in values)}
    if not rows or len(models) > len(COLOURS):
        return ""
    with rc_context(dict(LOOK)):
        figure = Figure(figsize=(PANEL_WIDTH, 0.7 + 0.5 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for number, model in enumerate(models):
            if all(values[number] is None for values in rows.values()):
                continue  # a base that was measured by perplexity alone has no share to show
            drawn = [(place, values[number]) for place, values in enumerate(rows.values())]
            _draw_scores(axes, model, COLOURS[number], (number - (len(models) - 1) / 2) * 0.22, drawn)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(right=1.005)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return as_element(figure, "Scores with 95 % intervals")


def _is_share(score: Score | None) -> bool:
    return score is None or (score.better == "higher" and not score.unit and 0 <= score.value <= 1)


def _draw_scores(axes: Axes, model: str, colour: str, shift: float, drawn: Iterable[tuple[int, Score | None]]) -> None:
    there = [(place + shift, score) for place, score in drawn if score is not None]
    values = [score.value for _, score in there]
    lows = [score.value - (score.value if score.low is None else score.low) for _, score in there]
    highs = [(score.value if score.high is None else score.high) - score.value for _, score in there]
    axes.errorbar(
        values,
        [place for place, _ in there],
        xerr=[lows, highs],
        fmt="o",
        color=colour,
        label=model,
        markersize=5,
        capsize=3,
    )


def as_element(figure: Figure, label: str) -> str:
    """Return a figure as an SVG element that scales with the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    quoted = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return f'{head} class="plot" role="img" aria-label="{quoted}">{rest}'.replace(INK, "currentColor")
