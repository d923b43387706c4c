"""What the overview shows."""

from __future__ import annotations

from dataclasses import dataclass

from catena.workspace import Workspace


@dataclass(frozen=True)
class Totals:
    """How much there is."""

    datasets: int
    models: int
    reports: int
    runs: int


def totals(workspace: Workspace) -> Totals:
    """Count what a workspace holds."""
    kinds = [artifact.kind for artifact in workspace.store.index.all_artifacts()]
    runs = len(workspace.store.index.find_runs())
    return Totals(kinds.count("dataset"), kinds.count("model"), kinds.count("report"), runs)
