"""Evaluation by name: a model on tasks, maybe beside another one, as a recipe; and all scores of the store as a table.

model -> evaluate.tasks ------.
other -> evaluate.tasks ------+--> evaluate.compare -> one page
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from catena.core.digest import digest_of
from catena.core.errors import UsageError
from catena.core.source import Source
from catena.core.types import DatasetVersion, ModelVersion, Report, Score
from catena.evaluate.suite import SUITE
from catena.evaluate.taskfile import data_of, load_tasks
from catena.flow.recipe import Recipe, check_recipe
from catena.hub.store import Store

SCORES, OTHER, COMPARISON = "scores", "other", "comparison"


def evaluation_recipe(
    store: Store,
    model: str,
    tasks: Sequence[str],
    *,
    compare: str | None = None,
    judge: str | None = None,
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Recipe:
    """Return the recipe that measures a model on tasks, and beside it another one where there is one to compare.

    `judge` is a stored model, or a URL with the model's name behind `#`. `config` are fields of `TasksConfig`.
    """
    if not tasks:
        raise UsageError("no task is named", hint="For example: --tasks basics, or --tasks gsm8k --data FOLDER")
    subject = store.resolve(model, ModelVersion)
    given = {key: value for key, value in (config or {}).items() if value is not None}
    pinned = {
        place.dataset: store.resolve(place.dataset, DatasetVersion).digest
        for loaded in load_tasks(tasks, str(given.get("data", "")))
        for place in data_of(loaded.task)
        if place.dataset is not None
    }
    values: dict[str, Any] = {"tasks": list(tasks), **given, **({"datasets": pinned} if pinned else {})}
    beside: dict[str, str] = {}
    if judge is not None and "://" in judge:
        url, _, name = judge.partition("#")
        values["judge"] = {"generator": "openai", "engine": {"url": url, **({"model": name} if name else {})}}
    elif judge is not None:
        beside["judge"] = store.resolve(judge, ModelVersion).digest
    step = {"stage": "evaluate.tasks", "with": values}
    called = f"{model.partition('@')[0].replace('/', '-')}-evaluated"
    steps: dict[str, Any] = {SCORES: {**step, "use": {"model": subject.digest, **beside}}}
    if compare is not None:
        other = store.resolve(compare, ModelVersion)
        if other.digest == subject.digest:
            raise UsageError(f"{model!r} and {compare!r} are the same model")
        steps[OTHER] = {**step, "use": {"model": other.digest, **beside}}
        steps[COMPARISON] = {"stage": "evaluate.compare", "use": {"candidate": SCORES, "baseline": OTHER}}
    written = {"name": called, "seed": seed, "steps": steps}
    return check_recipe(Source(f"catena evaluate {model}", "", written), store=store)


@dataclass(frozen=True)
class Standing:
    """One model's main score in one task."""

    model: str
    """`name@version`."""
    digest: str
    task: str
    score_name: str
    score: Score
    way: str
    """Equal for scores that may be compared: the same task, rows, limit, seed."""
    made: str
    """When the report was first made."""


def standings(store: Store, task: str | None = None) -> list[Standing]:
    """Return the newest main score of each model in each task that was measured, best first, tasks by name.

    With a task's name only that; scores of a task that were measured in another way stand apart (`way`).
    """
    newest: dict[tuple[str, str, str], Standing] = {}
    for artifact in store.index.all_artifacts():
        if isinstance(artifact, Report) and artifact.suite == SUITE:
            for one in _of_report(store, artifact):
                key = (one.digest, one.task, one.way)
                if (task is None or one.task == task) and (key not in newest or newest[key].made <= one.made):
                    newest[key] = one
    return sorted(newest.values(), key=lambda one: (one.task, one.way, _worse_first(one), one.model))


def _worse_first(one: Standing) -> float:
    return one.score.value if one.score.better == "lower" else -one.score.value


def _of_report(store: Store, report: Report) -> Iterator[Standing]:
    versions = store.index.versions(digest=report.subject)
    label = f"{versions[-1].name}@{versions[-1].version}" if versions else report.subject[:12]
    config = dict(report.details.get("config") or {})
    how = {key: config.get(key) for key in ("limit", "seed", "chat", "judge", "judge_model", "data", "datasets")}
    for name, about in dict(report.details.get("tasks") or {}).items():
        main = about["main"]
        way = digest_of([about["digest"], how])[:8]
        made = report.created.isoformat() if report.created else ""
        yield Standing(label, report.subject, name, main, report.scores[main], way, made)
