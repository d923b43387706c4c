"""Facts about many processes: whatever is shared, the training is that of one process; and what is refused."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from catena.core.errors import ConfigError, EnvironmentProblem
from catena.train.parallel import rendezvous
from catena.train.parallel.contract import LISTENING, ProcessLost, listen, sizes_of
from catena.train.parallel.ownership import dealt
from catena.train.parallel.settings import ParallelConfig
from catena.train.parallel.share import share_columns, work_of
from tests.train.parallel_runs import EXACT, HALF, RESUMED, SMALL, STEPS, batches
from tests.train.team import run_module

pytestmark = pytest.mark.xdist_group("parallel")  # four processes are enough for two cores


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What four processes found; they are started once for all tests of this file."""
    folder = tmp_path_factory.mktemp("parallel")
    run_module("tests.train.parallel_runs", str(folder))
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
    assert all(abs(both[step] - loss) < 1e-5 for step, loss in case["alone"].items())


def test_loop_trains_through_a_parameter_server(found: dict[str, Any]) -> None:
    curve = found["server"]
    assert list(curve) == [str(step) for step in range(1, STEPS + 1)]
    assert curve[str(STEPS)] < curve["1"]


def test_all_processes_halve_when_one_runs_out_of_memory(found: dict[str, Any]) -> None:
    told = "memory ran out with 3 rows at once; step 0 again with 2"
    assert found["short"] == f"2 steps, 2 rows: ['{told}']"


def test_process_that_is_left_alone_says_so(found: dict[str, Any]) -> None:
    assert found["left"] == "another process of the training has ended, or did not answer in time"


@pytest.fixture
def contract(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of process 0 of two, whose launcher listens for it; the other never comes."""
    with listen() as meeting:
        port = meeting.getsockname()[1]
        monkeypatch.setenv(LISTENING, str(os.dup(meeting.fileno())))
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_processes_that_never_come_are_not_waited_for_for_ever(contract: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProcessLost, match="not all 2 processes of the training came together within 1 s") as caught:
        rendezvous.begin("gloo", 1)
    assert "patience_s" in caught.value.hint


def test_main_process_that_never_comes_is_not_waited_for_for_ever(contract: pytest.MonkeyPatch) -> None:
    contract.setenv("RANK", "1")
    os.close(int(os.environ.pop(LISTENING)))
    with pytest.raises(ProcessLost, match=r"process 1 found no main process at 127\.0\.0\.1:[0-9]+ within 1 s"):
        rendezvous.store(1)


def test_port_that_is_taken_is_said(contract: pytest.MonkeyPatch) -> None:
    os.close(int(os.environ.pop(LISTENING)))
    with listen() as other:
        contract.setenv("MASTER_PORT", str(other.getsockname()[1]))
        with pytest.raises(EnvironmentProblem, match="cannot wait for the others") as caught:
            rendezvous.store(1)
    assert "MASTER_PORT" in caught.value.hint


def test_process_of_another_training_meets_nobody(contract: pytest.MonkeyPatch) -> None:
    contract.setenv("CATENA_TRAINING", "ours")
    ours = rendezvous.store(1)
    ours.set("key", "value")
    contract.setenv("RANK", "1")
    assert rendezvous.store(1).get("key") == b"value"
    contract.setenv("CATENA_TRAINING", "theirs")
    assert not rendezvous.store(1).check(["key"])


@pytest.mark.parametrize(
    ("parallel", "world", "sentence"),
    [
        ({"tensor": 2}, 3, "3 processes cannot be shared as tensor 2"),
        ({"tensor": 2, "pipeline": 2}, 2, "2 processes cannot be shared as pipeline 2, tensor 2"),
        ({"tensor": 2}, 1, "1 process cannot be shared as tensor 2"),
        ({"data": "server", "tensor": 2}, 4, "server with tensor is not offered"),
        ({"data": "zero3", "pipeline": 2}, 4, "zero3 with pipeline is not offered: each piece"),
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
