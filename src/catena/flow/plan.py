"""Plans: which steps are done already (same stage, code, config, seed and inputs) and which will run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Literal

from catena.core.config import check
from catena.core.digest import digest_of
from catena.core.errors import NotFound
from catena.core.types import Artifact, DatasetVersion, Run
from catena.flow.recipe import Recipe, Step
from catena.hub.store import Store


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """What will happen to one step, and why."""

    step: str
    stage: str
    status: Literal["cached", "run"]
    reason: str
    inputs: Mapping[str, str]
    name: str
    output: str | None = None
    """Digest of the stored output, if cached."""


def step_key(step: Step, inputs: Mapping[str, Artifact]) -> str:
    """Return the content address of a step's work: equal keys have equal outputs."""
    return digest_of(
        {
            "stage": step.stage.name,
            "code": step.stage.code(step.config),
            "config": step.config.deciding(),
            "seed": step.seed,
            "inputs": {name: artifact.digest for name, artifact in inputs.items()},
        }
    )


def stored_inputs(store: Store, recipe: Recipe, steps: Iterable[Step]) -> dict[str, Artifact]:
    """Return what these steps use that no step of the recipe makes, by reference.

    All at once, before the first step: a tag that moves during a run would give it two versions of one thing.
    """
    targets = dict.fromkeys(target for step in steps for target in step.use.values())
    return {target: store.resolve(target) for target in targets if target not in recipe.steps}


def after_stored(store: Store, step: Step, inputs: Mapping[str, Artifact]) -> Step:
    """Return a step whose config has what was stored under its output's name before, if that counts for it."""
    return replace(step, config=step.config.after(lambda: _stored_before(store, step, inputs)))


def _stored_before(store: Store, step: Step, inputs: Mapping[str, Artifact]) -> tuple[str, ...]:
    """Return the digests under a step's name, up to what it made of these inputs: done again, it sees what it saw."""
    digests = {name: artifact.digest for name, artifact in inputs.items()}
    mine = {
        run.output
        for run in store.index.find_runs(stage=step.stage.name)
        if run.name == step.name and run.inputs == digests
    }
    named = dict.fromkeys(row.digest for row in store.index.versions(name=step.name))
    return tuple(takewhile(lambda digest: digest not in mine, filter(store.index.artifact, named)))


def pinned(store: Store, step: Step) -> Step:
    """Return a step whose config has the digests of the stored things that it names; raises `NotFound`."""
    return replace(step, config=step.config.pinned(lambda name: store.resolve(name).digest, step.use))


def find_done(store: Store, key: str) -> tuple[Run, Artifact] | None:
    """Return the newest finished run with this key whose output is still whole at a glance (every file, its size)."""
    for run in reversed(store.index.find_runs(key=key, status="done")):
        artifact = store.index.artifact(run.output) if run.output else None
        if artifact is not None and present(store, artifact):
            return run, artifact
    return None


def present(store: Store, artifact: Artifact) -> bool:
    """Tell whether every file of an artifact is there with its size. The bytes are verified when they are read."""
    if isinstance(artifact, DatasetVersion):
        folder = store.datasets / artifact.table
        paths = {folder / file.path: file.size for file in artifact.files}
        return all(path.exists() and path.stat().st_size == size for path, size in paths.items())
    return all(store.files.size(file.sha256) == file.size for file in artifact.files)


def make_plan(store: Store, recipe: Recipe, *, until: str | None = None, refresh: bool = False) -> list[PlannedStep]:
    """Say for each step whether it comes from the store. Nothing runs."""
    steps = recipe.until(until)
    known = stored_inputs(store, recipe, steps)
    planned = []
    for step in steps:
        waits = [target for target in step.use.values() if target not in known]
        row = PlannedStep(step.key, step.stage.name, "run", "", dict(step.use), step.name)
        if waits:
            planned.append(_with(row, f"after {', '.join(dict.fromkeys(waits))}"))
            continue
        inputs = {name: known[target] for name, target in step.use.items()}
        try:
            step = pinned(store, after_stored(store, step, inputs))
        except NotFound as error:  # a step before it may make it
            planned.append(_with(row, error.message))
            continue
        found = find_done(store, step_key(step, inputs))
        if refresh and step.stage.volatile:
            planned.append(_with(row, "looks at the world again (--refresh)"))
        elif found is None:
            planned.append(_with(row, _why(store, step)))
        else:
            run, artifact = found
            known[step.key] = artifact
            planned.append(
                PlannedStep(
                    step.key, step.stage.name, "cached", f"run {run.id}", dict(step.use), step.name, artifact.digest
                )
            )
    return planned


def _with(row: PlannedStep, reason: str) -> PlannedStep:
    return PlannedStep(row.step, row.stage, row.status, reason, row.inputs, row.name, row.output)


def _why(store: Store, step: Step) -> str:
    """Say what differs from the last finished run of this step."""
    done = [run for run in store.index.find_runs(step=step.key, stage=step.stage.name) if run.status == "done"]
    if not done:
        return "new"
    last = done[-1]
    old, _ = check(type(step.config), last.config)
    config, before = step.config.deciding(), old.deciding() if old else last.config
    before = {name: last.config.get(name, value) for name, value in before.items()}  # as it was, not made out anew
    changed = sorted(key for key in config.keys() | before.keys() if config.get(key) != before.get(key))
    if changed:
        return "changed: " + ", ".join(changed)
    if last.seed != step.seed:
        return "another seed"
    if last.code != step.stage.code(step.config):
        return "the stage's code changed"
    return "other inputs"
