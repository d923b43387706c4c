"""Views: what the store knows, as the JSON that others build on (held by tests/cli/test_contract.py)."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from catena.core.config import describe
from catena.core.stage import Stage
from catena.core.types import Artifact, ArtifactBase, DatasetVersion, ModelVersion

if TYPE_CHECKING:
    from catena.flow.run import RecipeRun
    from catena.flow.search import Trial
    from catena.flow.tune import Tuned
    from catena.hub.store import Store


def tags_of(store: Store) -> dict[tuple[str, str], list[str]]:
    """Return the tags that stand now: (name, digest) to tags, sorted."""
    found: dict[tuple[str, str], list[str]] = {}
    for (name, tag), digest in sorted(store.index.tags().items()):
        found.setdefault((name, digest), []).append(tag)
    return found


def names_of(store: Store) -> dict[str, str]:
    """Return the newest `name@version` of every digest."""
    rows = sorted(store.index.versions(), key=lambda row: row.created)
    return {row.digest: f"{row.name}@{row.version}" for row in rows}


def list_rows(store: Store, *, kind: str | None = None, pattern: str | None = None) -> list[dict[str, Any]]:
    """Return every version of every name, oldest first: `ref`, `kind`, `digest`, `created` (ISO 8601, UTC), `tags`."""
    kinds = {artifact.digest: artifact.kind for artifact in store.index.all_artifacts()}
    tags = tags_of(store)
    rows = [
        {
            "ref": f"{row.name}@{row.version}",
            "kind": kinds[row.digest],
            "digest": row.digest,
            "created": row.created.isoformat(),
            "tags": tags.get((row.name, row.digest), []),
        }
        for row in sorted(store.index.versions(), key=lambda row: (row.created, row.name, row.version))
        if row.digest in kinds and (pattern is None or fnmatchcase(row.name, pattern))
    ]
    return [row for row in rows if kind is None or row["kind"] == kind]


def run_result(result: RecipeRun) -> dict[str, Any]:
    """Return the last line of `catena run --json`: outputs and seconds by step, and where the report is."""
    outputs = {
        step: {"ref": result.names[step], "digest": artifact.digest, "kind": artifact.kind}
        for step, artifact in result.outputs.items()
    }
    return {
        "event": "end",
        "status": result.status,
        "group": result.group,
        "outputs": outputs,
        "seconds": {step: run.seconds for step, run in result.runs.items()},
        "report": None if result.report is None else str(result.report),
    }


def stage_record(stage: Stage) -> dict[str, Any]:
    """Return what `catena explain STAGE` shows."""
    return {
        "stage": stage.name,
        "summary": stage.summary,
        "inputs": [
            {"name": name, "kinds": kinds(classes), "required": name not in stage.optional}
            for name, classes in stage.inputs.items()
        ],
        "output": kinds(stage.output),
        "volatile": stage.volatile,
        "config": [row.model_dump(mode="json") for row in describe(stage.config)],
    }


def kinds(classes: tuple[type[ArtifactBase], ...]) -> list[str]:
    """Return the words for artifact classes: dataset, model, report."""
    return [str(item.model_fields["kind"].default) for item in classes]


def facts(artifact: Artifact) -> str:
    """Return the few words that say what an artifact is."""
    if isinstance(artifact, DatasetVersion):
        kept_back = f", {artifact.rejects:,} rejects" if artifact.rejects else ""
        return f"{artifact.rows:,} {artifact.shape} rows{kept_back}"
    if isinstance(artifact, ModelVersion):
        parts = [artifact.form, artifact.architecture, f"{artifact.parameters / 1e6:.1f}M parameters", artifact.dtype]
        return ", ".join(part for part in [*parts, artifact.quantization] if part)
    return f"{artifact.suite}: " + ", ".join(f"{name} {score.value:.4g}" for name, score in artifact.scores.items())


def artifact_line(ref: str, artifact: Artifact) -> str:
    """Return an artifact on one line."""
    return f"{ref}  {artifact.kind}  {artifact.digest[:12]}  {facts(artifact)}"


def interval(score: Mapping[str, Any]) -> str:
    """Return a score with its confidence interval: `0.93 [0.90, 0.95] n=400`."""
    text = f"{score['value']:.4g}"
    if score.get("low") is not None and score.get("high") is not None:
        text += f" [{score['low']:.4g}, {score['high']:.4g}]"
    if score.get("unit"):
        text += f" {score['unit']}"
    return text + (f" n={score['n']}" if score.get("n") else "")


def history_of(store: Store, about: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """Return `runs` and `tags` (moves), newest first; only those around an artifact or run, if one is named."""
    runs, moves, names = store.index.find_runs(), store.index.tag_history(), names_of(store)
    if about is not None:
        chosen = [run for run in runs if run.id == about or run.group == about]
        if chosen:
            runs, moves = chosen, []
        else:
            digest = store.resolve(about).digest
            runs = [run for run in runs if digest in (run.output, *run.inputs.values())]
            moves = [move for move in moves if move.digest == digest or move.name == about.partition("@")[0]]
    return {
        "runs": [
            {
                "id": run.id,
                "group": run.group,
                "recipe": run.recipe,
                "step": run.step,
                "stage": run.stage,
                "status": run.status,
                "started": run.started.isoformat() if run.started else "",
                "seconds": run.seconds,
                "output": run.output,
                "ref": names.get(run.output or ""),
                "error": run.error,
            }
            for run in reversed(runs)
        ],
        "tags": [
            {
                "name": move.name,
                "tag": move.tag,
                "digest": move.digest,
                "ref": names.get(move.digest or ""),
                "moved": move.moved.isoformat(),
                "by": move.by,
            }
            for move in reversed(moves)
        ],
    }


def tune_record(found: Tuned) -> dict[str, Any]:
    """Return the last line of `catena tune --json`: the best trial, all of them by number, and where the report is."""
    return {
        "event": "end",
        "status": "done",
        "step": found.config.step,
        "best": _trial_record(found, found.best),
        "front": [trial.number for trial in found.front],
        "trials": [_trial_record(found, trial) for trial in found.trials],
        "ref": found.ref,
        "digest": found.report.digest,
        "report": str(found.page),
    }


def _trial_record(found: Tuned, trial: Trial) -> dict[str, Any]:
    metrics = [objective.metric for objective in found.config.objectives]
    return {
        "trial": trial.number,
        "stage": trial.phase,
        "status": trial.status,
        "values": dict(trial.values),
        "scores": dict(zip(metrics, trial.scores, strict=False)),
        "ref": trial.ref,
        "digest": trial.digest,
        "error": trial.error,
    }
