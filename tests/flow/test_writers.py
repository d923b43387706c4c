"""Writers: TensorBoard's files and MLflow's tracking hold what the run's events say."""

from __future__ import annotations

import socket
import warnings
from pathlib import Path
from typing import Any

import pytest

import catena as c
from catena.core.errors import RemoteError
from catena.core.events import Events
from catena.flow.writers import MlflowWriter, writers

RECIPE = """\
name: demo
steps:
  small: {stage: example.numbers, with: {rows: 4}}
  base: {stage: example.descend, use: {source: small}, with: {rate: 0.02}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "demo.yaml"
    path.write_text(RECIPE)
    return path


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        read = EventAccumulator(str(folder))
        read.Reload()
    return {tag: [(item.step, item.value) for item in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_tensorboard_reads_the_curves_of_every_step(tmp_path: Path, recipe: Path) -> None:
    ws = c.open(tmp_path / ".catena")
    seen: list[dict[str, Any]] = []
    with writers(tmp_path / "board") as listeners:
        run = ws.run(recipe, listeners=[*listeners, seen.append])
    folder = tmp_path / "board" / f"demo-{run.group}"
    assert {path.name for path in folder.iterdir()} == {"small", "base"}
    curve = [(event["at_step"], event["value"]) for event in seen if event.get("name") == "val_loss"]
    found = scalars(folder / "base")
    assert [step for step, _ in found["val_loss"]] == [step for step, _ in curve] == list(range(1, 11))
    assert [value for _, value in found["val_loss"]] == pytest.approx([value for _, value in curve])
    assert found["rows"] == [(0, 4.0)]


def test_tensorboard_has_a_folder_for_each_trial_of_a_search(tmp_path: Path, recipe: Path) -> None:
    space = {"rate": {"kind": "log", "low": 1e-3, "high": 0.1}}
    with c.open(tmp_path / ".catena") as ws, writers(tmp_path / "board") as listeners:
        ws.tune(recipe, step="base", space=space, trials=2, listeners=listeners)
    (curve,) = (tmp_path / "board").glob("demo-*/trial-1")
    assert len(scalars(curve)["val_loss"]) == 10


@pytest.fixture
def tracking(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_mlflow_holds_configs_and_metrics_by_step(tmp_path: Path, recipe: Path, tracking: str) -> None:
    ws = c.open(tmp_path / ".catena")
    with writers(mlflow=tracking) as listeners:
        run = ws.run(recipe, listeners=listeners)
        with pytest.raises(c.CatenaError):
            ws.run(recipe, overrides=["base.rate=0.6"], listeners=listeners)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=tracking)
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    found = {
        (item.data.tags["catena.step"], item.info.status): item
        for item in client.search_runs([experiment.experiment_id])
    }
    assert set(found) == {("small", "FINISHED"), ("base", "FINISHED"), ("base", "FAILED")}
    base = found["base", "FINISHED"]
    assert base.data.params["rate"] == "0.02"
    assert base.data.tags["catena.group"] == run.group
    history = client.get_metric_history(base.info.run_id, "val_loss")
    assert sorted(item.step for item in history) == list(range(1, 11))


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_a_tracking_server_that_is_down_is_said_at_once_and_one_that_goes_away_at_the_end(
    tmp_path: Path, tracking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        away = MlflowWriter(f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(RemoteError, match="did not begin an experiment"):
            Events(listeners=[away]).emit("start", group="g", recipe="r")
    writer = MlflowWriter(tracking)
    events = Events(listeners=[writer])
    events.emit("start", group="g", recipe="r")
    events.emit("step", step="base", status="running", stage="s", config={"a": {"b": 1}, "long": "字" * 9000})
    monkeypatch.setattr(writer._client, "log_batch", lambda *_, **__: (_ for _ in ()).throw(OSError("gone")))
    events.bind(step="base").metric("loss", 2.0, 1)
    events.emit("step", step="base", status="done")
    with pytest.raises(RemoteError, match="did not take 1 metrics"):
        writer.close()
