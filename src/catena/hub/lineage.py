"""Lineage: what an artifact was made from, back to its source documents, and what was made of it.

    trace           the graph of artifacts and runs around one artifact
    sources         the source documents of a dataset
    answer_sources  (in `hub.attribution`) the page that an answer of a model was learnt from

Runs are the edges of history, kept as nodes: they say how. A run that passes an input on (a promotion) makes nothing:
it is drawn with what it was given, and no way leads on through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow.compute as compute

from catena.core.errors import CatenaError
from catena.core.types import Artifact, DatasetVersion, ModelVersion, Run
from catena.hub.attribution import AnswerSource, answer_sources
from catena.hub.store import Store

__all__ = [
    "AnswerSource",
    "Edge",
    "Graph",
    "Node",
    "Sources",
    "answer_sources",
    "as_json",
    "as_text",
    "facts_line",
    "graph_of",
    "sources",
    "trace",
]

FIRST_SOURCES = 1000
RUN = "run:"
PLURALS = {"media": "media rows"}
"""Of shapes whose plural has no s."""


@dataclass(frozen=True, slots=True)
class Node:
    """An artifact (id: its digest) or a run (id: `run:` and the run's id)."""

    id: str
    kind: Literal["dataset", "model", "report", "run", "gone"]
    """`gone`: an input that is no longer in the store."""
    label: str
    """What a person calls it: name and version, or the stage."""
    names: tuple[str, ...] = ()
    """Every `name@version` and `name@tag` of an artifact."""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Edge:
    """From an artifact to a run (label: the input's name) or from a run to what it made (label: `made`)."""

    source: str
    target: str
    label: str


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes and edges; `root` is the artifact that was asked about, if one was."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    root: str = ""

    def node(self, name: str) -> Node:
        """Return a node by its id."""
        return next(node for node in self.nodes if node.id == name)

    def before(self, name: str) -> list[Edge]:
        """Return the edges that end in a node."""
        return [edge for edge in self.edges if edge.target == name]

    def after(self, name: str) -> list[Edge]:
        """Return the edges that begin in a node."""
        return [edge for edge in self.edges if edge.source == name]


def trace(store: Store, artifact: Artifact, up: bool = True, down: bool = True) -> Graph:
    """Follow an artifact to all that it was made from (`up`) and all that was made of it (`down`)."""
    runs: dict[str, Run] = {}
    for wanted, follow in ((up, _makers), (down, _users)):
        waiting, seen = [artifact.digest] if wanted else [], {artifact.digest}
        while waiting:
            for run in follow(store, waiting.pop()):
                runs[run.id] = run
                others = run.inputs.values() if follow is _makers else _made(run)
                fresh = [digest for digest in others if digest not in seen]
                seen.update(fresh)
                waiting.extend(fresh)
    return graph_of(store, sorted(runs.values(), key=_age), artifact)


def _makers(store: Store, digest: str) -> list[Run]:
    """Return the runs that made an artifact; one that was given it only passed it on."""
    found = store.index.find_runs(output=digest, status="done")
    return _newest(run for run in found if digest not in run.inputs.values())


def _users(store: Store, digest: str) -> list[Run]:
    return _newest(run for run in store.index.runs_given(digest) if run.status == "done" and run.output)


def _made(run: Run) -> list[str]:
    return [run.output] if run.output and run.output not in run.inputs.values() else []


def _newest(runs: Iterable[Run]) -> list[Run]:
    """Return one run, the last, of those that did the same with the same."""
    found = {(run.stage, tuple(sorted(run.inputs.items())), run.output): run for run in sorted(runs, key=_age)}
    return list(found.values())


def _age(run: Run) -> tuple[float, str]:
    return (run.started.timestamp() if run.started else 0.0, run.id)


def graph_of(store: Store, runs: Iterable[Run], root: Artifact | None = None) -> Graph:
    """Return the graph of these runs with all their inputs and outputs, in the order of the runs."""
    labels = _labels(store)
    nodes: dict[str, Node] = {}
    edges: list[Edge] = []

    def add(digest: str) -> None:
        if digest not in nodes:
            nodes[digest] = _artifact_node(store, digest, labels.get(digest, ()))

    if root is not None:
        add(root.digest)
    for run in runs:
        for digest in run.inputs.values():
            add(digest)
        node = _run_node(run)
        nodes[node.id] = node
        edges += [Edge(digest, node.id, name) for name, digest in run.inputs.items()]
        for digest in _made(run):
            add(digest)
            edges.append(Edge(node.id, digest, "made"))
    _add_sources(store, nodes, edges)
    return Graph(tuple(nodes.values()), tuple(edges), root.digest if root else "")


def _labels(store: Store) -> dict[str, tuple[str, ...]]:
    """Return every artifact's names: tags first, for they say most."""
    found: dict[str, list[str]] = {}
    for (name, tag), digest in store.index.tags().items():
        found.setdefault(digest, []).append(f"{name}@{tag}")
    for row in store.index.versions():
        found.setdefault(row.digest, []).append(f"{row.name}@{row.version}")
    return {digest: tuple(names) for digest, names in found.items()}


def _artifact_node(store: Store, digest: str, names: tuple[str, ...]) -> Node:
    artifact = store.index.artifact(digest)
    label = names[0] if names else digest[:12]
    if artifact is None:
        return Node(digest, "gone", label, names, {"digest": digest})
    return Node(digest, artifact.kind, label, names, {"digest": digest, **facts_of(artifact)})


def facts_of(artifact: Artifact) -> dict[str, Any]:
    """Return the few facts that tell an artifact from its neighbours."""
    if isinstance(artifact, DatasetVersion):
        rejected = {"rejects": artifact.rejects} if artifact.rejects else {}
        return {"shape": artifact.shape, "rows": artifact.rows, **rejected}
    if isinstance(artifact, ModelVersion):
        size = {"parameters": artifact.parameters} if artifact.parameters else {}
        scheme = {"quantization": artifact.quantization} if artifact.quantization else {}
        return {"form": artifact.form, **size, **scheme, "bytes": artifact.size}
    verdict = {"verdict": artifact.details["verdict"]} if "verdict" in artifact.details else {}
    return {"suite": artifact.suite, **verdict, "scores": {name: item.value for name, item in artifact.scores.items()}}


def _run_node(run: Run) -> Node:
    facts = {"run": run.id, "stage": run.stage, "step": run.step, "recipe": run.recipe, "seconds": run.seconds}
    passes = {"passes_on": run.output} if run.output in run.inputs.values() else {}
    return Node(RUN + run.id, "run", run.stage, (), {**facts, **passes})


def _add_sources(store: Store, nodes: dict[str, Node], edges: Iterable[Edge]) -> None:
    """Say of each dataset that came from outside how many source documents it holds."""
    given = {edge.target for edge in edges}
    origins = {edge.target for edge in edges if edge.source.startswith(RUN) and edge.source not in given}
    for digest in origins:
        artifact = store.index.artifact(digest)
        if not isinstance(artifact, DatasetVersion):
            continue
        try:
            found = sources(store, artifact, limit=3)
        except CatenaError:
            continue  # `catena fsck` is the place for damage; history can be told without the bytes
        node = nodes[digest]
        facts = {**node.facts, "sources": found.total, "first_sources": list(found.counts)}
        nodes[digest] = Node(node.id, node.kind, node.label, node.names, facts)


@dataclass(frozen=True, slots=True)
class Sources:
    """The source documents of a dataset: how many in all, and the first by name with their numbers of rows."""

    total: int
    counts: Mapping[str, int]


def sources(store: Store, dataset: DatasetVersion, limit: int = FIRST_SOURCES) -> Sources:
    """Return the distinct values of `_source` with counts, at most `limit` of them."""
    column = store.open_dataset(dataset).table(columns=["_source"])["_source"]
    counted = compute.value_counts(column).to_pylist()
    counts = sorted((entry["values"] or "", int(entry["counts"])) for entry in counted)
    return Sources(len(counts), dict(counts[:limit]))


def as_json(graph: Graph) -> dict[str, Any]:
    """Return `{"root": digest, "nodes": [...], "edges": [{"from", "to", "label"}]}` for other programs.

    An artifact has `id` (its digest), `kind`, `label`, `digest`, `names`, `facts`; a run has `id` (`run:` and its id),
    `kind` ("run"), `label`, `run`, `stage`, `step`, `recipe`, `seconds` and, where it made nothing, `passes_on`.
    """
    nodes: list[dict[str, Any]] = []
    for node in graph.nodes:
        head: dict[str, Any] = {"id": node.id, "kind": node.kind, "label": node.label}
        if node.kind == "run":
            nodes.append({**head, **node.facts})
        else:
            nodes.append({**head, "digest": node.id, "names": list(node.names), "facts": dict(node.facts)})
    edges = [{"from": edge.source, "to": edge.target, "label": edge.label} for edge in graph.edges]
    return {"root": graph.root, "nodes": nodes, "edges": edges}


def facts_line(node: Node) -> str:
    """Return a node's facts in a few words: what it is, how much of it."""
    facts = node.facts
    if node.kind == "run":
        return "" if facts.get("seconds") is None else f"{facts['seconds']:.1f} s"
    words: list[str] = [node.kind]
    if node.kind == "dataset":
        words += [f"{facts['rows']:,} {PLURALS.get(facts['shape'], facts['shape'] + 's')}"]
        words += [f"{facts['sources']:,} sources"] if "sources" in facts else []
    if node.kind == "model":
        words += [str(facts.get("quantization") or facts["form"])]
        words += [f"{_compact(facts['parameters'])} parameters"] if "parameters" in facts else []
        words += [f"{facts['bytes'] / 1e6:,.2f} MB"]
    if node.kind == "report":
        words += [str(facts["suite"]), str(facts.get("verdict", ""))]
        words += [] if "verdict" in facts else [f"{name} {value:.4g}" for name, value in facts["scores"].items()]
    return ", ".join(word for word in words if word)


def _compact(count: int) -> str:
    """Return a large number as it is spoken of: 3.6M, 1.2B."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)


def as_text(graph: Graph) -> str:
    """Return the graph as two trees around its root: what it was made from, and what it was used for."""
    if not graph.root:
        raise ValueError("a tree needs a root")
    lines = [_line(graph, graph.root)]
    for title, branches in (("made from", _made_from), ("used for", _used_for)):
        if branches(graph, graph.root):
            lines += ["", title]
            _tree(graph, branches, graph.root, "", {graph.root}, lines)
    return "\n".join(lines)


Branches = Callable[[Graph, str], list[tuple[str, str]]]


def _line(graph: Graph, name: str) -> str:
    """Return an artifact on a line: its names, what it is, and the stages that made it."""
    node = graph.node(name)
    others = f" = {', '.join(node.names[1:])}" if node.names[1:] else ""
    makers = " and ".join(_stage(graph.node(edge.source)) for edge in graph.before(name))
    return f"{node.label}{others} ({facts_line(node)})" + (f" by {makers}" if makers else "")


def _stage(run: Node) -> str:
    seconds = facts_line(run)
    return f"{run.label}, {seconds}" if seconds else run.label


def _made_from(graph: Graph, name: str) -> list[tuple[str, str]]:
    inputs = [edge for maker in graph.before(name) for edge in graph.before(maker.source)]
    return [(f"{edge.label}: {_line(graph, edge.source)}", edge.source) for edge in inputs]


def _used_for(graph: Graph, name: str) -> list[tuple[str, str]]:
    found = []
    for use in graph.after(name):
        made = graph.after(use.target)
        found += [(f"{use.label}: {_line(graph, edge.target)}", edge.target) for edge in made]
        if not made:
            run = graph.node(use.target)
            passed = str(run.facts["passes_on"])
            label = next((node.label for node in graph.nodes if node.id == passed), passed[:12])
            found.append((f"{use.label}: {_stage(run)}, passes on {label}", ""))
    return found


def _tree(graph: Graph, branches: Branches, name: str, indent: str, seen: set[str], lines: list[str]) -> None:
    found = branches(graph, name)
    for number, (text, below) in enumerate(found):
        last = number == len(found) - 1
        again = below in seen and bool(branches(graph, below))
        lines.append(f"{indent}{'└─ ' if last else '├─ '}{text}{' (its branches: above)' if again else ''}")
        if below and below not in seen:
            seen.add(below)
            _tree(graph, branches, below, indent + ("   " if last else "│  "), seen, lines)
