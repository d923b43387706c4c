"""What the overview shows: the chain from sources to production, what runs now, what is in production, what happened.

The chain is lineage, made short. From the models in production (or the newest models) it goes back to where the data
came from; of the datasets on the way only the sources and those that models were trained on are drawn.

    sources -> trained on -> models -> reports -> production
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import psutil

from catena.core.types import ModelVersion, Report, Run
from catena.hub.lineage import Graph, Node, facts_line, trace
from catena.hub.store import Store
from catena.workspace import Workspace

PRODUCTION = "production"
MOST_MODELS, MOST_IN_COLUMN, MOST_EVENTS = 3, 6, 14


@dataclass(frozen=True)
class Totals:
    """How much there is."""

    datasets: int
    models: int
    reports: int
    runs: int


@dataclass(frozen=True)
class Box:
    """One artifact of the drawing."""

    id: str
    kind: str
    """dataset, model, report or production."""
    ref: str
    """`name@version`, or a digest."""
    below: str
    """The few facts that tell it from its neighbours."""


@dataclass(frozen=True)
class Chain:
    """The drawing: columns from left to right, and what leads to what."""

    columns: Sequence[tuple[str, Sequence[Box]]]
    """Each with what it is: sources, learnt, models, reports or production."""
    links: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class InProduction:
    """A model that has the tag `production`."""

    name: str
    model: ModelVersion
    version: int | None
    since: datetime
    by: str


@dataclass(frozen=True)
class Happened:
    """One line of what happened last."""

    at: datetime
    kind: str
    """tag, untag, version, done, failed, cancelled or interrupted."""
    ref: str
    what: str
    by: str


@dataclass(frozen=True)
class Overview:
    """All of it, read once."""

    totals: Totals
    chain: Chain
    running: Sequence[Run]
    production: Sequence[InProduction]
    events: Sequence[Happened]


def overview(workspace: Workspace) -> Overview:
    """Read what the overview shows."""
    store = workspace.store
    artifacts = store.index.all_artifacts()
    kinds = [artifact.kind for artifact in artifacts]
    runs = store.index.find_runs()
    standing = production(store)
    models = [one for one in artifacts if isinstance(one, ModelVersion) and one.form not in ("tokenizer", "filter")]
    shown = [one.model for one in standing] or models[-1:]
    reports = [one for one in artifacts if isinstance(one, Report)]
    return Overview(
        totals=Totals(kinds.count("dataset"), kinds.count("model"), kinds.count("report"), len(runs)),
        chain=chain(store, shown[:MOST_MODELS], reports, standing),
        running=[run for run in runs if run.status == "running" and alive(run)][::-1],
        production=standing,
        events=events(store, runs),
    )


def production(store: Store) -> list[InProduction]:
    """Return the models that stand under the tag `production`, the newest first."""
    moves = {move.name: move for move in store.index.tag_history() if move.tag == PRODUCTION}
    found = []
    for name, move in moves.items():
        artifact = store.index.artifact(move.digest) if move.digest else None
        if isinstance(artifact, ModelVersion):
            versions = [row.version for row in store.index.versions(name=name) if row.digest == artifact.digest]
            found.append(InProduction(name, artifact, versions[-1] if versions else None, move.moved, move.by))
    return sorted(found, key=lambda one: one.since, reverse=True)


def alive(run: Run) -> bool:
    """Tell whether a run that is recorded as running may be: its process was not killed meanwhile, as far as we see."""
    pid = run.machine.get("pid")
    if not isinstance(pid, int) or run.started is None:
        return True
    try:
        return psutil.Process(pid).create_time() <= run.started.timestamp() + 1
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def events(store: Store, runs: Sequence[Run], most: int = MOST_EVENTS) -> list[Happened]:
    """Return what happened last: tags that moved and runs that ended, the newest first."""
    found = [
        Happened(move.moved, "tag" if move.digest else "untag", move.name, move.tag, move.by)
        for move in store.index.tag_history()
        if not move.tag.startswith("@")
    ]
    found += [
        Happened(run.ended or run.started or datetime.now(UTC), run.status, run.name, run.stage, run.recipe)
        for run in runs
        if run.status in ("done", "failed", "cancelled", "interrupted")
    ]
    return sorted(found, key=lambda one: one.at, reverse=True)[:most]


def chain(
    store: Store, models: Sequence[ModelVersion], reports: Sequence[Report], standing: Sequence[InProduction]
) -> Chain:
    """Return the drawing for some models: what they come from, what was measured, what is in production."""
    nodes: dict[str, Node] = {}
    after: dict[str, set[str]] = {}
    for model in models:
        _join(trace(store, model, up=True, down=False), nodes, after)
    drawn = [node for node in nodes.values() if node.kind == "model" and node.facts.get("form") not in ("tokenizer",)]
    datasets = {id for id, node in nodes.items() if node.kind == "dataset"}
    made_from = {target for id in datasets for target in after.get(id, ()) if target in datasets}
    learnt = {id for id in datasets if any(nodes[target].kind == "model" for target in after.get(id, ()))}
    sources = [nodes[id] for id in nodes if id in datasets and id not in made_from and id not in learnt]
    kept = {node.id for node in drawn}
    about = [one for one in reports if one.subject in kept and one.scores][-MOST_IN_COLUMN:]
    columns = {
        "sources": [_box(node) for node in sources[-MOST_IN_COLUMN:]],
        "learnt": [_box(nodes[id]) for id in nodes if id in learnt][-MOST_IN_COLUMN:],
        "models": [_box(node) for node in drawn[-MOST_IN_COLUMN:]],
        "reports": [Box(one.digest, "report", one.digest, _score(one)) for one in about],
        "production": [
            Box(f"production:{one.name}", "production", f"{one.name}@{PRODUCTION}", "")
            for one in standing[:MOST_MODELS]
        ],
    }
    shown = {box.id for name in ("sources", "learnt", "models") for box in columns[name]}
    links = _links(shown, after)
    links += [(one.subject, one.digest) for one in about if one.subject in shown]
    links += [(one.model.digest, f"production:{one.name}") for one in standing[:MOST_MODELS]]
    return Chain([(name, column) for name, column in columns.items() if column], links)


def _join(graph: Graph, nodes: dict[str, Node], after: dict[str, set[str]]) -> None:
    """Add a graph's artifacts, with what leads from one to another; runs are ways and not stations here."""
    made = {edge.source: edge.target for edge in graph.edges if edge.source.startswith("run:")}
    for node in graph.nodes:
        if node.kind != "run":
            nodes[node.id] = node
    for edge in graph.edges:
        if edge.target in made and edge.source != made[edge.target]:
            after.setdefault(edge.source, set()).add(made[edge.target])


def _links(shown: set[str], after: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Return which of the shown lead to which, over any number of others that are not shown."""
    found = []
    for start in shown:
        waiting, seen = list(after.get(start, ())), set()
        while waiting:
            at = waiting.pop()
            if at in seen:
                continue
            seen.add(at)
            if at in shown:
                found.append((start, at))
            else:
                waiting.extend(after.get(at, ()))
    return sorted(found)


def _box(node: Node) -> Box:
    ref = next((name for name in reversed(node.names) if name.rpartition("@")[2].isdecimal()), node.id)
    return Box(node.id, node.kind, ref, facts_line(node))


def _score(report: Report) -> str:
    name, score = next(iter(report.scores.items()))
    return f"{report.suite}: {score.value:.4g} {name}"
