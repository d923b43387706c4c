"""The report of a recipe's run: one HTML file that needs nothing but a browser, made from the store alone.

    runs of a group -> funnel, curves, scores, gate, answers, lineage, timings -> report.jinja -> report.html

It shows what is stored; it measures nothing itself. The page has no script and its policy allows no request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from catena.core.errors import NotFound
from catena.core.types import Artifact, DatasetVersion, ModelVersion, Report, Run
from catena.flow.report_compression import SUITE as COMPRESSION, compressed, measures, plot_pareto
from catena.flow.report_curves import curves_of, origin_of, plot_curves, plot_scores
from catena.flow.report_funnel import funnel_step
from catena.flow.report_scores import answer_groups, comparisons, score_table
from catena.hub.drawing import as_svg
from catena.hub.files import write_atomically
from catena.hub.lineage import graph_of
from catena.hub.store import Store

GATE = "gate"
PRODUCTION = "production"
MACHINE = {"python": "Python {}", "system": "{}", "cores": "{} cores", "memory_gib": "{} GiB"}


@dataclass(frozen=True)
class Done:
    """A finished step: its run, its output, and the run that did the work (another one where it was cached)."""

    run: Run
    output: Artifact
    origin: Run


@dataclass(frozen=True)
class Winner:
    """The model that the run is about, and how it is called on the command line."""

    ref: str
    step: str
    model: ModelVersion


@dataclass(frozen=True)
class ModelRow:
    """One line of the table of models."""

    step: str
    model: ModelVersion
    ratio: float | None
    """Size as a share of the model that it was made from."""


def write_report(store: Store, group: str, path: Path) -> Path:
    """Write the report of one `catena run` to `path`. Raises `NotFound` for a group without finished steps."""
    done = finished(store, group)
    if not done:
        raise NotFound(f"the run {group!r} has no finished step", hint="`catena log` lists the runs.")
    template = _environment().get_template("report.jinja")
    html = template.render(_page(store, group, done))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, html.encode())
    return path


def finished(store: Store, group: str) -> list[Done]:
    """Return the steps of a group that have an output, in the order in which they ran."""
    found = []
    for run in store.index.find_runs(run_group=group):
        output = store.index.artifact(run.output) if run.status in ("done", "cached") and run.output else None
        if output is not None:
            found.append(Done(run, output, origin_of(store, run)))
    return found


def _page(store: Store, group: str, done: Sequence[Done]) -> dict[str, Any]:
    """Return everything that the template shows."""
    models, labels = _models(store, done), _labels(store, done)
    reports = [item.output for item in done if isinstance(item.output, Report)]
    measured = [report for report in reports if report.suite not in (GATE, COMPRESSION)]
    gates = [report for report in reports if report.suite == GATE]
    versions = compressed(reports, labels)
    table = score_table(measured, {digest: labels[digest] for digest in models})
    winner = _winner(store, done)
    about = [report for report in measured if winner is not None and report.subject == winner.model.digest]
    curves = {item.run.step: plot_curves(curves_of(store, item.run)) for item in done}
    return {
        "recipe": done[0].run.recipe,
        "group": group,
        "started": done[0].run.started,
        "seconds": _wall_seconds(done),
        "machine": _machine(max(done, key=lambda item: item.run.seconds or 0.0).run.machine),
        "cached": sum(item.run.status == "cached" for item in done),
        "steps": done,
        "winner": winner,
        "funnel": [
            funnel_step(store, item.run, item.output) for item in done if isinstance(item.output, DatasetVersion)
        ],
        "curves": {step: Markup(svg) for step, svg in curves.items() if svg},
        "table": table,
        "scores_plot": Markup(plot_scores(table.models, table.scores)),
        "comparisons": comparisons(store, measured, models),
        "labels": labels,
        "models": _model_rows(models, labels),
        "versions": versions,
        "measures": measures(versions),
        "pareto": Markup(plot_pareto(versions)),
        "gates": gates,
        "answers": [group for report in about for group in answer_groups(store, report, labels[report.subject])],
        "lineage": Markup(as_svg(graph_of(store, [item.run for item in done]))),
        "slowest": max([item.origin.seconds or 0.0 for item in done] + [1e-9]),
    }


def _models(store: Store, done: Sequence[Done]) -> dict[str, ModelVersion]:
    """Return every model that the run was given or made, each after those that it was made from."""
    digests = [digest for item in done for digest in (*item.run.inputs.values(), item.output.digest)]
    found = (store.index.artifact(digest) for digest in dict.fromkeys(digests))
    return {artifact.digest: artifact for artifact in found if isinstance(artifact, ModelVersion)}


def _labels(store: Store, done: Sequence[Done]) -> dict[str, str]:
    """Return what the page calls each artifact: the step that made it (a later one passed it on), or its own name."""
    labels: dict[str, str] = {}
    for item in done:
        labels.setdefault(item.output.digest, item.run.step)
    for digest in (digest for item in done for digest in item.run.inputs.values()):
        if digest not in labels:
            versions = store.index.versions(digest=digest)
            labels[digest] = f"{versions[-1].name}@{versions[-1].version}" if versions else digest[:12]
    return labels


def _machine(facts: Mapping[str, Any]) -> list[str]:
    """Return what a run knows of its machine, in words."""
    return [MACHINE[name].format(facts[name]) for name in MACHINE if facts.get(name) is not None]


def _wall_seconds(done: Sequence[Done]) -> float:
    begun = [item.run.started for item in done if item.run.started]
    ended = [item.run.ended for item in done if item.run.ended]
    return (max(ended) - min(begun)).total_seconds() if begun and ended else 0.0


def _winner(store: Store, done: Sequence[Done]) -> Winner | None:
    """Return the model tagged `production`, or else the last one that was made."""
    made = [item for item in done if isinstance(item.output, ModelVersion) and item.output.form != "tokenizer"]
    if not made:
        return None
    tags = {digest: f"{name}@{tag}" for (name, tag), digest in store.index.tags().items() if tag == PRODUCTION}
    chosen = next((item for item in reversed(made) if item.output.digest in tags), made[-1])
    versions = store.index.versions(digest=chosen.output.digest)
    ref = tags.get(chosen.output.digest) or (f"{versions[-1].name}@{versions[-1].version}" if versions else "")
    assert isinstance(chosen.output, ModelVersion)
    return Winner(ref or chosen.output.digest[:12], chosen.run.step, chosen.output)


def _model_rows(models: Mapping[str, ModelVersion], labels: Mapping[str, str]) -> list[ModelRow]:
    rows = []
    for digest, model in models.items():
        base = models.get(model.base or "")
        rows.append(ModelRow(labels[digest], model, model.size / base.size if base and base.size else None))
    return rows


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("catena.flow", "."),
        autoescape=True,  # rejected rows and answers are text from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=lambda value: f"{value:,}",
        percent=lambda value: f"{100 * value:.1f} %",
        seconds=_seconds,
        megabytes=lambda value: f"{value / 1e6:,.2f} MB",
        value=lambda value: f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}",
    )
    return environment


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s"
