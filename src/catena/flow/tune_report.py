"""The page of a search: how it went, where it looked, and the trials' curves over one another. One file, no script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from catena.flow.report_curves import COLOURS, LABELS, LOOK, PANEL_HEIGHT, PANEL_WIDTH, as_element, thinned
from catena.flow.search import Trial, cost, front, ranked
from catena.flow.space import Choice, TuneConfig
from catena.hub.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PHASES = {"coarse": COLOURS[0], "fine": COLOURS[1]}
BEST = COLOURS[2]
SLICES_IN_A_ROW = 3


def write_page(path: Path, recipe: str, step: str, config: TuneConfig, trials: Sequence[Trial]) -> Path:
    """Write the report of a search over a step of a recipe; returns its path."""
    environment = Environment(
        loader=PackageLoader("catena.flow", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    best = ranked(config, trials)
    with rc_context(dict(LOOK)):
        plots = {
            "How it went": plot_history(config, trials),
            "Where it looked": plot_slices(config, trials),
            "Two objectives": plot_front(config, trials),
            "Curves": plot_overlaid(config, trials),
        }
    html = environment.get_template("tune_report.jinja").render(
        recipe=recipe,
        step=step,
        config=config,
        trials=best + [trial for trial in trials if trial.status != "done"],
        front={trial.number for trial in front(config, trials)} if len(config.objectives) > 1 else {best[0].number},
        best=best[0],
        plots={title: Markup(svg) for title, svg in plots.items() if svg},
        labels=LABELS,
        count={status: sum(trial.status == status for trial in trials) for status in ("done", "pruned", "failed")},
    )
    write_atomically(path, html.encode())
    return path


def plot_history(config: TuneConfig, trials: Sequence[Trial]) -> str:
    """Draw each trial's first score by number, and the best so far as a line."""
    figure = Figure(figsize=(PANEL_WIDTH, PANEL_HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    _points(axes, config, trials, [trial.number for trial in trials])
    so_far, best = [], None
    for trial in trials:
        if trial.status == "done" and (best is None or cost(config, trial) < cost(config, best)):
            best = trial
        so_far.append(best.scores[0] if best else float("nan"))
    axes.step([trial.number for trial in trials], so_far, where="post", color=BEST, linewidth=1.2, label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel(config.objectives[0].metric)
    axes.legend(loc="best")
    return as_element(figure, "The score of each trial, and the best so far")


def plot_slices(config: TuneConfig, trials: Sequence[Trial]) -> str:
    """Draw the first score over each parameter."""
    names = list(trials[0].values)
    rows = -(-len(names) // SLICES_IN_A_ROW)
    columns = min(len(names), SLICES_IN_A_ROW)
    figure = Figure(figsize=(PANEL_WIDTH, 2.1 * rows), layout="constrained")
    for number, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, number + 1)
        values = [trial.values[name] for trial in trials]
        words = not all(isinstance(value, int | float) for value in values)
        _points(axes, config, trials, [str(value) if words else value for value in values])
        if name in config.space and config.space[name].kind == "log":
            axes.set_xscale("log")
        axes.set_xlabel(name)
    return as_element(figure, "The score over each value: " + ", ".join(names))


def _points(axes: Axes, config: TuneConfig, trials: Sequence[Trial], places: Sequence[Choice]) -> None:
    for phase, colour in PHASES.items():
        for status, marker in (("done", "o"), ("pruned", "x")):
            chosen = [
                (place, trial.scores[0])
                for trial, place in zip(trials, places, strict=True)
                if trial.phase == phase and trial.status == status
            ]
            if chosen:
                label = phase if status == "done" else f"{phase}, given up"
                across, up = zip(*chosen, strict=True)
                axes.scatter(across, up, s=14, marker=marker, color=colour, label=label)


def plot_front(config: TuneConfig, trials: Sequence[Trial]) -> str:
    """Draw the second objective over the first, and a line through the trials that none beats; empty for one."""
    if len(config.objectives) < 2:
        return ""
    figure = Figure(figsize=(PANEL_WIDTH, PANEL_HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    good, unbeaten = ranked(config, trials), front(config, trials)
    axes.scatter([trial.scores[0] for trial in good], [trial.scores[1] for trial in good], s=14, color=COLOURS[0])
    axes.plot(
        [trial.scores[0] for trial in unbeaten], [trial.scores[1] for trial in unbeaten], color=BEST, marker="o", ms=4
    )
    axes.set_xlabel(config.objectives[0].metric)
    axes.set_ylabel(config.objectives[1].metric)
    return as_element(figure, "Two objectives, and the trials that none beats in both")


def plot_overlaid(config: TuneConfig, trials: Sequence[Trial]) -> str:
    """Draw the curves of all trials over one another, the best one's on top; empty where there is no course."""
    drawn = [trial for trial in trials if len(trial.curve) > 1]
    if not drawn:
        return ""
    best = ranked(config, trials)[0]
    figure = Figure(figsize=(PANEL_WIDTH, PANEL_HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    for trial in drawn:
        axes.plot(*thinned(dict(trial.curve)), color=PHASES[trial.phase], linewidth=0.8, alpha=0.35)
    if len(best.curve) > 1:
        axes.plot(*thinned(dict(best.curve)), color=BEST, linewidth=1.8, label=f"trial {best.number}, the best")
        axes.legend(loc="best")
    axes.set_xlabel("step")
    axes.set_ylabel(config.objectives[0].metric)
    return as_element(figure, "The curves of all trials")
