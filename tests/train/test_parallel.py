"""Facts about many processes: whatever is shared, the training is that of one process; and what is refused."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from catena.core.errors import ConfigError
from catena.train.parallel.contract import sizes_of
from catena.train.parallel.ownership import dealt
from catena.train.parallel.settings import ParallelConfig
from catena.train.parallel.share import share_columns, work_of
from tests.train.parallel_runs import CASES, EXACT, HALF, RESUMED, SMALL, STEPS, batches

ROOT = Path(__file__).parent.parent.parent


pytestmark = pytest.mark.xdist_group("parallel")  # four processes are enough for two cores


def free_ports(count: int) -> list[int]:
    """Return free ports, below those that the system gives to clients, so that they stay free for minutes."""
    found: list[int] = []
    with ExitStack() as held:
        for port in random.sample(range(20_000, 32_000), 12_000):
            one = held.enter_context(socket.socket())
            with suppress(OSError):
                one.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    raise OSError(f"there are no {count} free ports")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What four processes found; they are started once for all tests of this file."""
    folder = tmp_path_factory.mktemp("parallel")
    ports = ",".join(map(str, free_ports(len(CASES) + 4 * len(RESUMED) + 1)))
    command = [sys.executable, "-W", "error", "-m", "tests.train.parallel_runs", str(folder)]
    team = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PROCESS": str(process), "PORTS": ports},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(4)
    ]
    try:
        said = [process.communicate(timeout=1500)[0] for process in team]
    finally:
        for process in team:
            process.kill()
    assert not any(process.returncode for process in team), "\n".join(said)
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


@pytest.mark.parametrize("name", EXACT)
def test_processes_train_as_one(found: dict[str, Any], name: str) -> None:
    case = found[name]
    assert case["losses"] < 1e-5
    assert case["norms"] < 1e-4
    assert case["validation"] < 1e-5
    assert case["weights"] < 1e-4
    assert case["last"] < case["first"]


@pytest.mark.parametrize("name", SMALL)
def test_gradients_in_16_bits_cost_half_the_bytes_and_little_exactness(found: dict[str, Any], name: str) -> None:
    case = found[name]
    assert case["losses"] < (1e-2 if name == "bfloat16" else 1e-3)
    whole = found["zero1" if "zero1" in name else "ddp"]["wire"]
    weights = found["zero1"]["wire"] - found["ddp"]["wire"] if "zero1" in name else 0  # which ZeRO sends in full
    assert (case["wire"] - weights) / (whole - weights) == pytest.approx(0.5, abs=0.01)


def test_powersgd_of_rank_4_converges_on_less_than_half_the_bytes(found: dict[str, Any]) -> None:
    case = found["powersgd"]
    assert case["last"] < case["first"] / 2
    assert found["powersgd"]["wire"] < 0.5 * found["none"]["wire"]


@pytest.mark.parametrize("name", RESUMED)
def test_training_goes_on_with_other_processes(found: dict[str, Any], name: str) -> None:
    case = found[name]
    assert list(case["before"]) == [str(step) for step in range(1, HALF + 1)]
    assert list(case["after"]) == [str(step) for step in range(HALF + 1, STEPS + 1)]
    both = {**case["before"], **case["after"]}
    assert all(abs(both[step] - loss) < 2e-5 for step, loss in case["alone"].items())


def test_loop_trains_through_a_parameter_server(found: dict[str, Any]) -> None:
    curve = found["server"]
    assert list(curve) == [str(step) for step in range(1, STEPS + 1)]
    assert curve[str(STEPS)] < curve["1"]


@pytest.mark.parametrize(
    ("parallel", "world", "sentence"),
    [
        ({"tensor": 2}, 3, "3 processes cannot be shared as tensor 2"),
        ({"tensor": 2, "pipeline": 2}, 2, "2 processes cannot be shared as pipeline 2, tensor 2"),
        ({"tensor": 2}, 1, "1 process cannot be shared as tensor 2"),
        ({"tensor": 2, "context": 2}, 4, "context with tensor is not offered"),
        ({"data": "zero3", "pipeline": 2}, 4, "zero3 with pipeline is not offered"),
        ({"pipeline": 2, "tensor": 2}, 8, "is not offered"),
        ({"compression": "powersgd", "tensor": 2}, 4, "compression powersgd is for data-parallel processes alone"),
        ({"compression": "float16", "data": "zero3"}, 2, "zero3 has no compression"),
    ],
)
def test_what_cannot_be_shared_is_refused_before_anything_starts(
    parallel: dict[str, Any], world: int, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        sizes_of(ParallelConfig(**parallel), world)
    assert caught.value.hint


def test_data_parallel_takes_the_processes_that_are_left() -> None:
    assert sizes_of(ParallelConfig(tensor=2), 8) == (1, 4, 1, 2)


def test_weights_are_dealt_evenly() -> None:
    owners = dealt([100, 1, 1, 60, 40, 2], 2)
    assert owners[0] != owners[3] == owners[4]


def test_every_learnt_token_is_one_process_s() -> None:
    batch = batches(1, False)[0]
    for ranks in (1, 2, 4, 6):
        work = [work_of(batch, 2, rank, ranks, lockstep=True) for rank in range(ranks)]
        assert sum(piece.learnt for pieces in work for piece, weight in pieces if weight) == batch.learnt
        assert len({len(pieces) for pieces in work}) == 1


def test_columns_come_together_to_the_whole_batch() -> None:
    batch = batches(1, True)[0]
    parts = [share_columns(batch, rank, 4) for rank in range(4)]
    assert {part.inputs.shape for part in parts} == {(6, 5)}
    assert sum(part.learnt for part in parts) == batch.learnt
