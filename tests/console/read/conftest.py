"""A workspace with models, evaluations and runs, written through the store in milliseconds: no model computes here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catena.core.types import ModelVersion, Report, Run, RunStatus, Score
from catena.hub.index import now
from catena.hub.store import Store

RIGHT = ("1110000000", "1101100000")
"""Of ten questions, those that each of the two models answers rightly: 2 both, 1 lost, 2 gained, 5 neither."""


@dataclass
class Written:
    """What stands in the workspace."""

    store: Store
    models: tuple[ModelVersion, ModelVersion]
    tasks: tuple[Report, Report]
    answers: tuple[Report, Report]


def put_model(store: Store, folder: Path, name: str, **facts: Any) -> ModelVersion:
    """Store a folder as a model under a name; the name stands in its file, so that each is another."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "_name": name}))
    model = store.put_model(folder, architecture="LlamaForCausalLM", parameters=1000, dtype="float32", **facts)
    stored = store.index.add_artifact(model)
    assert isinstance(stored, ModelVersion)
    store.index.add_name(name, stored.digest)
    return stored


def put_tasks(store: Store, folder: Path, model: ModelVersion, right: str, name: str) -> Report:
    """Store a report of `evaluate.tasks` about ten questions."""
    folder.mkdir(parents=True, exist_ok=True)
    write_samples(folder / "samples.jsonl", "sums", right)
    scores = np.array([[float(mark), 1.0] for mark in right])
    np.savez_compressed(
        folder / "evidence.npz", **{"sums/exact": scores, "sums#ids": np.array([f"q{at}" for at in range(10)])}
    )
    about = {"kind": "generate", "digest": "0" * 64, "rows": 10, "description": "Sums", "main": "sums/exact"}
    details = {"tasks": {"sums": about}, "notes": {}, "config": {"limit": None, "seed": 0}}
    score = Score(value=right.count("1") / 10, low=0.1, high=0.6, n=10)
    return put_report(
        store, store.put_report(model, "tasks", {"sums/exact": score}, details=details, folder=folder), name
    )


def put_answers(store: Store, folder: Path, model: ModelVersion, right: str, name: str) -> Report:
    """Store a report of `evaluate.answers` about ten questions."""
    folder.mkdir(parents=True, exist_ok=True)
    write_samples(folder / "samples.jsonl", "test", right)
    details = {"data": "d" * 64, "config": {"limit": None}}
    score = Score(value=right.count("1") / 10, n=10)
    report = store.put_report(model, "answers", {"accuracy/test": score}, details=details, folder=folder)
    return put_report(store, report, name)


def write_samples(path: Path, split: str, right: str) -> None:
    lines = [
        {
            "split": split,
            "id": f"q{at}",
            "page": "p",
            "question": f"What is {at} + {at}? 多少",
            "answer": f"It is {at}",
            "reference": str(2 * at),
            "score": float(mark),
            "finish_reason": "stop",
        }
        for at, mark in enumerate(right)
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def put_report(store: Store, report: Report, name: str) -> Report:
    stored = store.index.add_artifact(report)
    store.index.add_name(name, stored.digest)
    assert isinstance(stored, Report)
    return stored


def put_run(store: Store, group: str, step: str, **fields: Any) -> Run:
    """Write the record of a step that took two seconds."""
    begun = now() - timedelta(seconds=10)
    status: RunStatus = fields.pop("status", "done")
    ended = None if status == "running" else begun + timedelta(seconds=2)
    told = {"recipe": "small", "name": f"small/{step}", "key": f"{group}-{step}".ljust(64, "0"), **fields}
    run = Run(
        id=f"{group[-4:]}{step}"[:12],
        group=group,
        step=step,
        stage="train.pretrain",
        status=status,
        started=begun,
        ended=ended,
        **told,
    )
    store.index.put_run(run)
    return run


def write_events(store: Store, group: str, events: Sequence[dict[str, Any]]) -> Path:
    """Append events to a run's file."""
    path = store.group_folder(group) / "events.jsonl"
    with path.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(event) + "\n" for event in events)
    return path


@pytest.fixture
def written(store: Store, tmp_path: Path) -> Written:
    """Two models, evaluated on the same questions."""
    models = put_model(store, tmp_path / "a", "helper"), put_model(store, tmp_path / "b", "helper-small", license="MIT")
    tasks = tuple(
        put_tasks(store, tmp_path / f"t{at}", model, RIGHT[at], f"tasks-{at}") for at, model in enumerate(models)
    )
    answers = tuple(
        put_answers(store, tmp_path / f"s{at}", model, RIGHT[at], f"answers-{at}") for at, model in enumerate(models)
    )
    store.tag("helper", "production", by="test")
    return Written(store, models, (tasks[0], tasks[1]), (answers[0], answers[1]))
