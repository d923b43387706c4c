"""Facts about checkpoints: who writes and reads what, which stay, and what a full disk or a damaged one comes to."""

import errno
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from catena.core.errors import DataError, DiskFull
from catena.models.presets import build
from catena.train import checkpoint, randomness
from catena.train.checkpoint import Checkpoints
from catena.train.loop import train
from catena.train.parallel.strategy import Piece, Strategy
from catena.train.regions import write_tensors
from catena.train.settings import TrainConfig
from tests.train.conftest import Recorded
from tests.train.test_loop import CONFIG, make_plan, same, weights

MakeContext = Callable[[str], Recorded]


class Rank(Strategy):
    """One of several processes, of which a test plays them all."""

    def __init__(self, rank: int, world: int) -> None:
        super().__init__(TrainConfig(), torch.device("cpu"))
        self.rank, self.world = rank, world


def rows(tensor: torch.Tensor, rank: int, world: int) -> Piece:
    """The rows of a matrix that one of several processes holds, as memory of its own."""
    step = -(-len(tensor) // world)
    part = tensor[rank * step : (rank + 1) * step].clone()
    return Piece("model/matrix", part, tuple(tensor.shape), (rank * step, 0))


def checkpoints(folder: Path, rank: int = 0, world: int = 1, kept: int = 2) -> Checkpoints:
    return Checkpoints(folder, Rank(rank, world), kept, lambda message: said.append(message))


said: list[str] = []


@pytest.fixture(autouse=True)
def _silent() -> None:
    said.clear()


def write_by(world: int, folder: Path, matrix: torch.Tensor, scalar: torch.Tensor, step: int = 5) -> None:
    ranks = [checkpoints(folder, rank, world) for rank in range(world)]
    for rank, writer in enumerate(ranks):
        shared = Piece("step/matrix", scalar, (), (), writes=rank == 0)
        writer.save([rows(matrix, rank, world), shared], {"step": step, "fingerprint": "f"})
    for writer in ranks:
        writer.must_be_there()


@pytest.mark.parametrize("written", [1, 2, 3])
@pytest.mark.parametrize("read", [1, 2, 4])
def test_any_number_of_processes_reads_what_any_number_wrote(tmp_path: Path, written: int, read: int) -> None:
    matrix, scalar = torch.randn(7, 3), torch.tensor(4.0)
    write_by(written, tmp_path, matrix, scalar)
    for rank in range(read):
        piece = rows(torch.zeros(7, 3), rank, read)
        steps = Piece("step/matrix", torch.tensor(0.0), (), ())
        assert checkpoints(tmp_path, rank, read).load([piece, steps], "f") == {"step": 5, "fingerprint": "f"}
        assert torch.equal(piece.tensor, rows(matrix, rank, read).tensor)
        assert steps.tensor == scalar


def test_optional_piece_that_is_not_there_stays_as_it_is(tmp_path: Path) -> None:
    write_by(1, tmp_path, torch.ones(4, 2), torch.tensor(1.0))
    error = Piece("error/0/matrix", torch.full((2,), 3.0), (2,), (0,), optional=True)
    assert checkpoints(tmp_path).load([rows(torch.zeros(4, 2), 0, 1), error], "f")
    assert error.tensor.tolist() == [3.0, 3.0]


def test_part_that_a_process_could_not_write_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, tensors: dict[str, torch.Tensor]) -> str:
        if "rank-0001" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_tensors(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    main, other = checkpoints(tmp_path, 0, 2), checkpoints(tmp_path, 1, 2)
    for rank, writer in enumerate((main, other)):
        writer.save([rows(torch.ones(4, 2), rank, 2)], {"step": 1, "fingerprint": "f"})
    assert not main.wait()
    assert not other.wait()
    assert "rank-0001 did not write its part" in said[0]
    assert not list(tmp_path.glob("checkpoint-*"))


def test_newest_ones_and_those_asked_for_are_kept(tmp_path: Path) -> None:
    writer = checkpoints(tmp_path, kept=2)
    piece = rows(torch.ones(2, 2), 0, 1)
    for step in range(1, 7):
        writer.save([piece], {"step": step, "fingerprint": "f"}, also={2, None})
    writer.must_be_there()
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["2", "5", "6"]


def test_what_comes_after_the_step_that_was_gone_back_to_does_not_push_out_what_is_written_then(tmp_path: Path) -> None:
    writer = checkpoints(tmp_path, kept=3)
    piece = rows(torch.ones(2, 2), 0, 1)
    for step in (3, 6, 9):
        writer.save([piece], {"step": step, "fingerprint": "f"})
    assert writer.load([piece], "f", 3) is not None
    writer.save([piece], {"step": 4, "fingerprint": "f"})
    writer.must_be_there()
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["3", "4"]


def test_copy_is_taken_at_once_and_later_changes_are_not_in_it(tmp_path: Path) -> None:
    piece = rows(torch.ones(64, 64), 0, 1)
    writer = checkpoints(tmp_path)
    writer.save([piece], {"step": 1, "fingerprint": "f"})
    piece.tensor.zero_()
    writer.must_be_there()
    assert load_file(tmp_path / "checkpoint-00000001" / "rank-0000.safetensors")["model/matrix"].eq(1).all()


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-00000003.1.writing").mkdir()
    checkpoints(tmp_path)
    assert not list(tmp_path.iterdir())


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    randomness.seed_all(3)
    piece = rows(torch.ones(2, 2), 0, 1)
    writer = checkpoints(tmp_path)
    writer.save([piece], {"step": 1, "fingerprint": "f"})

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    expected = draw()
    randomness.seed_all(4)
    assert writer.load([piece], "f") is not None
    assert draw() == expected


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.int64, torch.bool])
def test_tensors_of_every_kind_are_read_by_safetensors(tmp_path: Path, kind: torch.dtype) -> None:
    tensors = {"a": torch.arange(6).reshape(2, 3).to(kind), "b": torch.tensor(1).to(kind), "c": torch.zeros(0, 4)}
    write_tensors(tmp_path / "x.safetensors", tensors)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in found)


def test_checkpoint_of_another_architecture_is_refused_by_name_and_shape(recorded: MakeContext) -> None:
    train(recorded("a").context, build("llama-nano", 70, 0), make_plan(2), CONFIG)
    with pytest.raises(DataError, match=r"another architecture: model/model.embed_tokens.weight is \[70, "):
        train(recorded("a").context, build("llama-nano", 90, 0), make_plan(2), CONFIG)
    frozen = build("llama-nano", 70, 0)
    frozen.model.embed_tokens.weight.requires_grad_(False)
    with pytest.raises(DataError, match="which is not trained here") as caught:
        train(recorded("a").context, frozen, make_plan(2), CONFIG)
    assert "work folder" in caught.value.hint
    sgd = CONFIG.model_copy(update={"optimizer": "sgd"})
    with pytest.raises(DataError, match="it has no momentum_buffer/"):
        train(recorded("a").context, build("llama-nano", 70, 0), make_plan(2), sgd)


def full_from(first: int, last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk be full for some writings."""
    count = 0

    def write(path: Path, tensors: dict[str, torch.Tensor]) -> str:
        nonlocal count
        count += 1
        if first <= count <= last:
            path.write_bytes(b"half of i")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write_tensors(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", write)


def test_full_disk_is_said_and_training_goes_on_and_saves_later(
    recorded: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_from(3, 4, monkeypatch)
    made = recorded("full")
    train(made.context, build("llama-nano", 70, 0), make_plan(6), CONFIG)
    assert made.said().count("no space is left on the disk") == 2
    names = sorted(path.name for path in made.context.workdir.glob(".*checkpoint*")) + sorted(
        path.name for path in made.context.workdir.glob("checkpoint-*")
    )
    assert names == ["checkpoint-00000005", "checkpoint-00000006"]


def test_disk_that_is_full_at_the_end_is_an_error_and_the_last_good_checkpoint_stays(
    recorded: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_from(5, 99, monkeypatch)
    made = recorded("still-full")
    with pytest.raises(DiskFull, match="no space is left") as caught:
        train(made.context, build("llama-nano", 70, 0), make_plan(6), CONFIG)
    assert "goes on where it was" in caught.value.hint
    monkeypatch.setattr(checkpoint, "write_tensors", write_tensors)
    made, model = recorded("still-full"), build("llama-nano", 70, 9)
    train(made.context, model, make_plan(6), CONFIG)
    assert "going on from step 4" in made.said()
    expected = build("llama-nano", 70, 0)
    train(recorded("never-full").context, expected, make_plan(6), CONFIG)
    assert same(weights(model), weights(expected))


def test_truncated_state_falls_back_to_the_checkpoint_before(recorded: MakeContext) -> None:
    made = recorded("cut")
    train(made.context, build("llama-nano", 70, 0), make_plan(3), CONFIG)
    state = made.context.workdir / "checkpoint-00000003" / "state.json"
    state.write_text(state.read_text()[:100])
    model = build("llama-nano", 70, 9)
    made = recorded("cut")
    train(made.context, model, replace(make_plan(3), fingerprint="a"), CONFIG)
    assert "checkpoint-00000003 cannot be read" in made.said()
    assert "going on from step 2" in made.said()


def test_state_says_everything_in_json(recorded: MakeContext) -> None:
    made = recorded("json")
    train(made.context, build("llama-nano", 70, 0), make_plan(2), CONFIG)
    state: dict[str, Any] = json.loads((made.context.workdir / "checkpoint-00000002" / "state.json").read_text())
    assert state["world"] == 1
    assert state["counters"]["step"] == 2
    assert {"guard", "scale", "fingerprint"} <= state["counters"].keys()
    assert sorted(state["sha256"]) == ["rank-0000.json", "rank-0000.safetensors"]
