"""The change log of models: every version of every name, what it was made by and from, and every move of its tags.

Read off the index, where nothing of it can be left out: names, tag moves and runs are written by the same transaction
as what they tell of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from catena.core.types import ModelVersion, Report, Run
from catena.hub.store import Store


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the log."""

    time: datetime
    name: str
    what: Literal["version", "tag"]
    detail: str
    """`version 3`, `production: 1a2b3c4d5e6f`, `production taken away`."""
    digest: str = ""
    by: str = ""
    run: str = ""
    """What made it: stage, of which recipe."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Input name to what it was: a name with its version, or a digest."""
    changed: Mapping[str, str] = field(default_factory=dict)
    """Against the version before: field of the config, or input, to `old -> new`."""
    license: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Of every report about it: `suite/score`."""


def change_log(store: Store, name: str = "") -> list[Change]:
    """Return the changes of all models, or of one name, oldest first."""
    index = store.index
    names: dict[str, list[str]] = {}
    for row in index.versions():
        names.setdefault(row.digest, []).append(f"{row.name}@{row.version}")
    reports: dict[str, dict[str, float]] = {}
    models: dict[str, ModelVersion] = {}
    for artifact in index.all_artifacts():
        if isinstance(artifact, Report):
            told = {f"{artifact.suite}/{key}": score.value for key, score in artifact.scores.items()}
            reports.setdefault(artifact.subject, {}).update(told)
        elif isinstance(artifact, ModelVersion):
            models[artifact.digest] = artifact
    made: list[Change] = []
    before: dict[str, Run] = {}
    for row in index.versions(name=name or None):
        if row.digest not in models:
            continue
        run = _maker(store, row.digest)
        inputs = {key: _called(digest, names) for key, digest in run.inputs.items()} if run is not None else {}
        made.append(
            Change(
                time=row.created,
                name=row.name,
                what="version",
                detail=f"version {row.version}",
                digest=row.digest,
                run="" if run is None else " of ".join(part for part in (run.stage, run.recipe) if part),
                inputs=inputs,
                changed=_differences(before.get(row.name), run, names),
                license=models[row.digest].license or "",
                scores=reports.get(row.digest, {}),
            )
        )
        if run is not None:
            before[row.name] = run
    known = {change.name for change in made}
    for move in index.tag_history(name or None):
        if move.name in known and not move.tag.startswith("@"):
            moved = f"{move.tag}: {move.digest[:12]}" if move.digest else f"{move.tag} taken away"
            made.append(Change(move.moved, move.name, "tag", moved, move.digest or "", move.by))
    return sorted(made, key=lambda change: (change.time, change.what == "tag"))


def _maker(store: Store, digest: str) -> Run | None:
    """Return the run that first made a model; one that was given it only passed it on."""
    runs = [run for run in store.index.find_runs(output=digest) if digest not in run.inputs.values()]
    return runs[0] if runs else None


def _called(digest: str, names: Mapping[str, list[str]]) -> str:
    return names.get(digest, [digest[:12]])[0]


def _differences(old: Run | None, new: Run | None, names: Mapping[str, list[str]]) -> dict[str, str]:
    if old is None or new is None:
        return {}
    changed = {}
    for field_, (one, other) in _pairs(old.config, new.config).items():
        changed[field_] = f"{one} -> {other}"
    for key, (one, other) in _pairs(old.inputs, new.inputs).items():
        changed[key] = f"{_called(str(one), names)} -> {_called(str(other), names)}"
    if old.code != new.code:
        changed["code"] = "another version of the stage's source"
    return changed


def _pairs(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (old.get(key), new.get(key)) for key in sorted({*old, *new}) if old.get(key) != new.get(key)}
