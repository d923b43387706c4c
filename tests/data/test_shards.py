from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from catena.core.errors import DataError, EnvironmentProblem, UsageError
from catena.core.events import read_events
from catena.core.stage import Context
from catena.core.types import DatasetVersion
from catena.data.shards import map_rows, work_shards
from tests.data.operations import Plan
from tests.data.stores import documents, run

HERE = "tests.data.operations"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catena.data.shards.SHARD_ROWS", 10)
    monkeypatch.setattr("catena.data.shards.SMALL_ROWS", 20)


@pytest.fixture
def source(context: Context) -> DatasetVersion:
    return documents(context.store, *(f"text {number}" + " secret" * (number % 5 == 0) for number in range(35)))


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


def work(context: Context, source: DatasetVersion, operation: str, workers: int, **plan: object) -> list[Path]:
    cfg = Plan.model_validate(plan)
    return work_shards(context, source, f"{HERE}:{operation}", cfg, label="Work", workers=workers)


def times(marks: Path) -> dict[int, int]:
    return {int(path.stem): len(path.read_text().split()) for path in marks.glob("*.log")}


def test_shards_come_back_in_order_and_are_done_once(context: Context, source: DatasetVersion, marks: Path) -> None:
    for workers in (1, 2):
        folders = work(context, source, "count", workers, marks=str(marks))
        assert [int((folder / "rows").read_text()) for folder in folders] == [10, 10, 10, 5]
    assert times(marks) == {0: 1, 10: 1, 20: 1, 30: 1}  # the second time everything was there
    progress = [event for event in read_events(context.workdir.parent / "events.jsonl") if event["label"] == "Work"]
    assert progress[-1]["done"] == progress[-1]["total"] == 35
    assert any("mb_per_s" in event for event in progress)


def test_a_killed_worker_costs_only_its_shard(context: Context, source: DatasetVersion, marks: Path) -> None:
    folders = work(context, source, "die_once", 2, marks=str(marks), bad=10)
    assert [int((folder / "rows").read_text()) for folder in folders] == [10, 10, 10, 5]
    assert times(marks) == {0: 1, 10: 2, 20: 1, 30: 1}


def test_a_shard_that_kills_every_worker_is_named(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catena.data.executors.ATTEMPTS", 2)
    source = documents(context.store, *map(str, range(11)))
    with pytest.raises(EnvironmentProblem, match="rows 0 to 10 ended their worker 2 times") as caught:
        work(context, source, "die_always", 2)
    assert "memory" in caught.value.hint


def test_a_workers_problem_is_raised_as_it_was(context: Context, source: DatasetVersion) -> None:
    with pytest.raises(DataError, match="this row is bad") as caught:
        work(context, source, "refuse", 2)
    assert caught.value.hint == "Take another."
    with pytest.raises(RuntimeError, match=r"(?s)ZeroDivisionError: a mistake of ours.*Traceback"):
        work(context, source, "stumble", 2)


def test_another_config_or_other_rows_are_other_work(context: Context, source: DatasetVersion, marks: Path) -> None:
    other = documents(context.store, *(f"text {number}" for number in range(12)))
    first = work(context, source, "count", 1, marks=str(marks))
    assert not set(first) & set(work(context, source, "count", 1, marks=str(marks), bad=3))
    assert not set(first) & set(work(context, other, "count", 1, marks=str(marks)))


def test_drafts_of_killed_workers_are_cleared_away(context: Context, source: DatasetVersion, marks: Path) -> None:
    left = context.workdir / "shards" / ".abcd-1234"
    left.mkdir(parents=True)
    work(context, source, "count", 1, marks=str(marks))
    assert not left.exists()


def test_rows_are_the_same_here_and_with_workers(context: Context, source: DatasetVersion) -> None:
    def rows(ctx: Context) -> list[tuple[object, ...]]:
        found = map_rows(ctx, source, f"{HERE}:shout", Plan(), label="Shout")
        return [(row.sample, row.reason, row.detail, dict(row.counts)) for row in found]

    sharded = rows(replace(context, workers=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("catena.data.shards.SMALL_ROWS", 100)
        assert rows(context) == sharded
    assert Counter(row[1] for row in sharded) == {"": 28, "secret": 7}


@pytest.mark.parametrize(
    ("stage", "values"),
    [
        ("data.filter", {"filters": {"length": {"min_tokens": 3}}}),
        ("data.language", {}),
        ("data.mask", {}),
        ("data.repair", {}),
        ("data.lines", {"terminal_punctuation": False}),
    ],
)
def test_stages_of_one_row_make_the_same_dataset_in_shards(
    context: Context, stage: str, values: dict[str, object]
) -> None:
    texts = [f"Write to person{number}@mail.org about it\r" if number % 3 else "Bonjour" for number in range(30)]
    source = documents(context.store, *texts)
    sharded = run(replace(context, workers=1), stage, values, source=source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("catena.data.shards.SMALL_ROWS", 100)
        assert run(context, stage, values, source=source).digest == sharded.digest


def test_an_unknown_executor_is_refused(context: Context, source: DatasetVersion) -> None:
    with pytest.raises(UsageError, match="no executor 'slurm'"):
        work(replace(context, executor="slurm"), source, "count", 1)
