"""Damage is found and named; gc frees what nothing needs, and never beside a run."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from catena.core.errors import EnvironmentProblem, IntegrityError, NotFound
from catena.core.events import Events
from catena.core.types import Artifact, DatasetVersion, ModelVersion, Run, Score
from catena.hub.fsck import check, collect_garbage, forget, unused_artifacts
from catena.hub.index import now
from catena.hub.store import Store

Put = Callable[..., Any]


def object_path(store: Store, sha256: str) -> Path:
    return store.root / "objects" / sha256[:2] / sha256


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def table_file(store: Store, dataset: DatasetVersion) -> Path:
    return store.datasets / dataset.table / next(file.path for file in dataset.files if "data" in file.path)


def ran(store: Store, output: Artifact, key: str, **inputs: str) -> None:
    """Leave the record of a run that made `output`."""
    run = Run(
        id=f"run-{key}", group="g", step=key, stage="s", status="done", key=key, inputs=inputs,
        output=output.digest, started=now(), ended=now(),
    )  # fmt: skip
    store.index.put_run(run)


def test_sound_store_has_no_findings_and_counts_its_bytes(store: Store, put_documents: Put, put_model: Put) -> None:
    dataset, model = put_documents(store, "one", "two"), put_model(store)
    seen: list[dict[str, Any]] = []
    assert check(store, Events(listeners=[seen.append])) == []
    size = sum(file.size for artifact in (dataset, model) for file in artifact.files)
    assert seen[-1]["done"] == seen[-1]["total"] == size


def test_flipped_bytes_in_a_model_are_found_and_named(store: Store, put_model: Put) -> None:
    model = put_model(store)
    store.index.add_name("second", model.digest)
    file = next(file for file in model.files if file.path == "model.safetensors")
    overwrite(object_path(store, file.sha256), b"weightz")
    (finding,) = check(store)
    assert finding.artifact == model.digest
    assert finding.names == ("model@1", "second@1")
    assert (finding.kind, finding.file) == ("model", "model.safetensors")
    assert finding.problem == "has other bytes than were stored"


@pytest.mark.parametrize(("data", "problem"), [(None, "is missing"), (b"", "has 0 bytes instead of")])
def test_missing_and_short_files_of_a_dataset_are_found(
    store: Store, put_documents: Put, data: bytes | None, problem: str
) -> None:
    dataset = put_documents(store, "one")
    path = table_file(store, dataset)
    path.unlink() if data is None else overwrite(path, data)
    (finding,) = check(store)
    assert finding.artifact == dataset.digest
    assert problem in finding.problem


def test_a_file_that_two_models_share_is_found_in_both(store: Store, put_model: Put) -> None:
    first, second = put_model(store, b"a"), put_model(store, b"b")
    config = next(file for file in first.files if file.path == "config.json")
    object_path(store, config.sha256).unlink()
    assert {finding.artifact for finding in check(store)} == {first.digest, second.digest}


def test_forget_removes_records_and_the_next_write_is_sound(store: Store, put_documents: Put, put_model: Put) -> None:
    dataset, model = put_documents(store, "one"), put_model(store)
    ran(store, dataset, "k1")
    other = put_model(store, b"sound", name="other")
    overwrite(table_file(store, dataset), b"junk")
    overwrite(object_path(store, next(f.sha256 for f in model.files if f.path == "model.safetensors")), b"junk")
    with pytest.raises(IntegrityError):
        store.open_dataset(dataset)
    forgotten = forget(store, check(store))
    assert set(forgotten) == {dataset.digest, model.digest}
    assert check(store) == []
    with pytest.raises(NotFound):
        store.resolve("pages")
    assert store.index.find_runs(key="k1", status="done") == []
    store.checkout(other)
    again = put_documents(store, "one")
    assert again.digest == dataset.digest
    assert [sample.text for sample in store.open_dataset(again).samples()] == ["one"]


def test_gc_removes_leftovers_and_nothing_that_is_referred_to(store: Store, put_documents: Put, put_model: Put) -> None:
    dataset, model = put_documents(store, "one", "two"), put_model(store)
    store.checkout(model)
    (store.datasets / ".writing-abc").mkdir()
    (store.datasets / ".writing-abc" / "samples.spool").write_bytes(b"x" * 1000)
    part = store.root / "objects" / model.files[0].sha256[:2] / f"{model.files[0].sha256}.12345678.part"
    part.write_bytes(b"x" * 100)
    (store.root / ".workspace.json.01234567").write_bytes(b"x")
    (store.root / "work" / "tmp-1").mkdir()
    ran(store, dataset, "finished")
    (store.workdir("finished") / "checkpoint").write_bytes(b"x" * 10)
    (store.workdir("unfinished") / "checkpoint").write_bytes(b"x")
    dry = collect_garbage(store, dry_run=True)
    assert part.exists()
    freed = collect_garbage(store)
    assert (freed.files, freed.bytes) == (dry.files, dry.bytes)
    assert freed.bytes == 1000 + 100 + 1 + 10
    assert not part.exists()
    assert not list(store.datasets.glob(".writing-*"))
    assert {path.name for path in (store.root / "work").iterdir()} == {"unfinished"}
    assert check(store) == []
    assert len(list(store.open_dataset(dataset).samples())) == 2
    store.checkout(model)
    assert collect_garbage(store, unused=True).paths == [f"checkouts/{model.digest}", "work/unfinished"]


def test_gc_removes_bytes_without_an_owner(store: Store, put_documents: Put, put_model: Put) -> None:
    dataset, model = put_documents(store, "one"), put_model(store)
    for artifact in (dataset, model):
        store.index.remove_artifact(artifact.digest)
    collect_garbage(store)
    assert list(store.files.all()) == []
    assert not (store.datasets / dataset.table).exists()


def test_gc_spares_what_is_younger_than_asked(store: Store) -> None:
    old, young = store.datasets / ".writing-old", store.datasets / ".writing-young"
    for folder in (old, young):
        folder.mkdir()
    hours_ago = time.time() - 7200
    os.utime(old, (hours_ago, hours_ago))
    assert collect_garbage(store, older_than=timedelta(hours=1)).paths == ["datasets/.writing-old"]
    assert young.exists()


def test_unused_keeps_tags_newest_versions_their_lineage_and_their_scores(
    store: Store, put_documents: Put, put_model: Put
) -> None:
    pages, base = put_documents(store, "one"), put_model(store, b"base", name="base")
    tagged = put_model(store, b"v1", base=base.digest)
    store.tag("model@1", "production")
    score = store.put_report(tagged, "answers", {"accuracy": Score(value=0.9)})
    store.index.add_artifact(score)
    store.index.add_name("scores", score.digest)
    middle = put_model(store, b"v2")
    newest = put_model(store, b"v3")
    ran(store, newest, "k3", source=pages.digest)
    put_documents(store, "two")
    later = store.put_report(newest, "answers", {"accuracy": Score(value=0.8)})
    store.index.add_artifact(later)
    store.index.add_name("scores", later.digest)
    assert unused_artifacts(store) == {middle.digest}
    dry = collect_garbage(store, unused=True, dry_run=True)
    assert dry.artifacts == (middle.digest,)
    assert isinstance(store.resolve("model@2"), ModelVersion)
    freed = collect_garbage(store, unused=True)
    assert (freed.files, freed.bytes) == (dry.files, dry.bytes) == (1, 2)
    with pytest.raises(NotFound):
        store.resolve("model@2")
    assert store.resolve("model@production").digest == tagged.digest
    assert check(store) == []


@pytest.mark.parametrize("work", [collect_garbage, lambda store: forget(store, [])])
def test_gc_and_forget_refuse_while_a_run_goes_on(store: Store, work: Callable[[Store], object]) -> None:
    with store.lock("gc", shared=True), pytest.raises(EnvironmentProblem, match="a run or a server is at work"):
        work(store)
    work(store)


def test_gc_of_a_large_old_checkout_counts_no_linked_bytes(store: Store, put_model: Put) -> None:
    model = put_model(store, b"x" * 10_000)
    shutil.rmtree(store.checkout(model))
    store.checkout(model)
    assert collect_garbage(store).bytes == 0
