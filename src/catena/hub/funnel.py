"""The run that made an artifact, and the funnel of a dataset: rows in, out and kept back, from the source on."""

from __future__ import annotations

from typing import Any

from catena.core.errors import UsageError
from catena.core.types import Artifact, DatasetVersion, Run
from catena.hub.store import Store


def run_of(store: Store, artifact: Artifact, ref: str = "", *, cached: bool = False) -> Run | None:
    """Return the newest run that made an artifact under the name asked for, or the one that made it first.

    With `cached`, runs that took it from the store count too.
    """
    status = ("done", "cached") if cached else ("done",)
    runs = [run for run in store.index.find_runs(output=artifact.digest) if run.status in status]
    named = [run for run in runs if run.name == ref.partition("@")[0]]
    made = [run for run in runs if run.id == artifact.made_by]
    return next(iter([*named[::-1], *made, *runs]), None)


def funnel_of(store: Store, artifact: Artifact, ref: str) -> list[dict[str, Any]]:
    """Return the funnels from the source down to this dataset: `ref`, `stage`, and the fields of `Funnel`.

    They are those of the runs, step by step: steps that changed nothing made the same dataset and are all here.
    """
    versions = sorted(store.index.versions(), key=lambda row: row.created)
    names, rows = {row.digest: f"{row.name}@{row.version}" for row in versions}, []
    run = run_of(store, artifact, ref, cached=True) if isinstance(artifact, DatasetVersion) else None
    while run is not None and run.output is not None:
        funnel = run.profile.get("funnel")
        if funnel:
            versions = [row for row in store.index.versions(name=run.name) if row.digest == run.output]
            shown = f"{run.name}@{versions[-1].version}" if versions else names.get(run.output, run.output[:12])
            rows.append({"ref": shown, "stage": run.stage, **funnel})
        run = _run_before(store, run)
    if not rows:
        raise UsageError(f"a {artifact.kind} has no funnel", hint="--funnel is for datasets.")
    return rows[::-1]


def _run_before(store: Store, run: Run) -> Run | None:
    """Return the run that made the first dataset which a run was given: the step of its group, or any."""
    for name, digest in run.inputs.items():
        given = store.index.artifact(digest)
        if not isinstance(given, DatasetVersion):
            continue
        steps = [found for found in store.index.find_runs(run_group=run.group) if found.step == run.uses.get(name)]
        return steps[-1] if steps else run_of(store, given, run.uses.get(name, ""), cached=True)
    return None
