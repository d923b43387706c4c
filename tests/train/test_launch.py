"""Facts about starting processes: they make what one makes, and whatever ends one of them ends them all."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from catena.core.errors import ConfigError, DataError, EnvironmentProblem
from catena.core.types import DatasetVersion
from catena.hub.store import Store
from catena.train import launch
from catena.train.parallel.contract import ProcessLost
from catena.train.parallel.settings import ParallelConfig
from catena.train.slurm import slurm_contract, slurm_script
from catena.workspace import Workspace
from tests.needs import cannot_be_had
from tests.train.conftest import Recorded
from tests.train.launched_stages import ActedConfig, acted
from tests.train.team import run_module

ROOT = Path(__file__).parent.parent.parent
MakeContext = Callable[[str], Recorded]


def config(what: str, **parallel: object) -> ActedConfig:
    return ActedConfig(what=what, parallel=ParallelConfig.model_validate({"processes": 2, **parallel}))


def test_processes_share_the_contract_and_the_main_one_s_result_and_events_come_back(recorded: MakeContext) -> None:
    made = recorded("a")
    model = acted(made.context, config("work"))
    assert model.labels == {"processes": "2"}
    assert made.values("seen") == [1.0]
    assert sorted(path.name for path in made.context.workdir.glob("began-*")) == ["began-0", "began-1"]


def test_error_of_one_process_is_told_and_ends_the_others(
    recorded: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "MOURNING_S", 0.1)
    with pytest.raises(DataError, match="the data of process 1 is bad") as caught:
        acted(recorded("b").context, config("fail"))
    assert caught.value.hint == "Give better data."


def test_killed_process_ends_the_others(recorded: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "MOURNING_S", 0.1)
    with pytest.raises(EnvironmentProblem, match="process 1 of the training was ended by SIGKILL"):
        acted(recorded("c").context, config("die"))


def test_signal_is_passed_on_and_processes_may_leave_a_checkpoint(recorded: MakeContext) -> None:
    made = recorded("d")
    stopper = threading.Thread(target=interrupt_when, args=(lambda: made.said() == "waiting",))
    stopper.start()
    with pytest.raises(KeyboardInterrupt):
        acted(made.context, config("wait"))
    stopper.join()
    assert (made.context.workdir / "stopped-0").exists()


def interrupt_when(ready: Callable[[], bool]) -> None:
    waiting = threading.Event()
    while not ready():
        waiting.wait(0.02)
    os.kill(os.getpid(), signal.SIGINT)


def test_processes_that_cannot_share_are_not_started(recorded: MakeContext) -> None:
    made = recorded("e")
    with pytest.raises(ConfigError, match="2 processes cannot be shared as tensor 4"):
        acted(made.context, config("work", tensor=4))
    assert not (made.context.workdir / "launch").exists()


def left(folder: Path, rank: int, kind: str, at: float, *, follows: bool = False) -> None:
    told = {"class": kind, "message": f"{rank} failed", "hint": "", "follows": follows, "at": at}
    (folder / f"error-{rank}.json").write_text(json.dumps(told))


def test_reason_that_was_there_first_is_raised_and_not_what_it_did_to_the_others(tmp_path: Path) -> None:
    left(tmp_path, 0, "ProcessLost", 1.0, follows=True)
    left(tmp_path, 1, "", 2.0)
    left(tmp_path, 2, "DataError", 3.0)
    assert isinstance(launch._first_problem(tmp_path, [5, 1, 4]), DataError)
    left(tmp_path, 2, "ErrorOfAPlugin", 3.0)
    assert str(launch._first_problem(tmp_path, [5, 1, 1])) == "2 failed"
    (tmp_path / "error-2.json").unlink()
    assert "process 1 of the training met something unexpected: 1 failed" in str(
        launch._first_problem(tmp_path, [5, 1, None])
    )
    (tmp_path / "error-1.json").unlink()
    assert isinstance(launch._first_problem(tmp_path, [5, None]), ProcessLost)
    assert isinstance(launch._first_problem(tmp_path, [5, 130]), KeyboardInterrupt)
    gone = launch._first_problem(tmp_path, [5, launch.LOST])
    assert str(gone) == "the machine of process 1 of the training is gone"


def test_process_that_ends_without_a_reason_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "worker-1.log").write_text("Fatal Python error: Segmentation fault\n\n")
    crashed = launch._first_problem(tmp_path, [None, -signal.SIGSEGV])
    assert isinstance(crashed, EnvironmentProblem)
    assert "ended by SIGSEGV" in str(crashed)
    assert "at the end: Fatal Python error: Segmentation fault" in crashed.hint
    quiet = launch._first_problem(tmp_path, [0, 3])
    assert isinstance(quiet, EnvironmentProblem)
    assert "worker-1.log has what it said" in quiet.hint


@pytest.mark.chain
@pytest.mark.xdist_group("ray")
@pytest.mark.filterwarnings("ignore:lance is not fork-safe")
def test_ray_starts_the_same_workers(recorded: MakeContext) -> None:
    if importlib.util.find_spec("ray") is None:
        cannot_be_had("ray is not installed")
    made = recorded("f")
    model = acted(made.context, config("work", launcher="ray"))
    assert model.labels == {"processes": "2"}
    assert made.values("seen") == [1.0]


def test_slurm_script_runs_the_command_on_each_task() -> None:
    script = slurm_script(["catena", "train", "sft", "--set", "a=b c"], 8, "team/helper")
    assert "#SBATCH --ntasks=8" in script
    assert "--job-name=team-helper" in script
    assert script.endswith("srun --kill-on-bad-exit=1 catena train sft --set 'a=b c'\n")


def test_slurm_s_variables_are_the_contract() -> None:
    given = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "71234"}
    assert slurm_contract({**given, "MASTER_ADDR": "node1"}) == {
        "RANK": "3",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "31234",
    }
    assert slurm_contract({}) == {}


def test_training_by_command_is_the_same_alone_and_on_two_processes_of_slurm_or_torchrun(
    store: Store, documents: DatasetVersion, recorded: MakeContext
) -> None:
    from catena.train.tokenizer import TokenizerConfig, tokenizer

    words = tokenizer(recorded("words").context, TokenizerConfig(vocab_size=300), source=documents)
    for name, artifact in (("pages", documents), ("words", words)):
        store.index.add_artifact(artifact)
        store.index.add_name(name, artifact.digest)
    values = {"preset": "llama-nano", "steps": 4, "log_every": 1, "sequence_length": 32, "precision": "float32"}
    Workspace(store).do("train.pretrain", {"tokenizer": "words", "data": "pages"}, values, name="alone")
    train = ["-w", str(store.root), "train", "pretrain", "--use", "tokenizer=words", "--use", "data=pages"]
    # Another value that changes nothing: else the store would have the answer.
    for key, value in {**values, "eval_every": 201}.items():
        train += ["--set", f"{key}={value}"]
    said = run_module("tests.train.queued", *train, "--name", "queued", "--launch", "slurm", "--json", strict=False)
    assert '"ref": "queued@1"' in said
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "catena"]
    train += ["--set", "eval_every=202", "--name", "started", "--launch", "torchrun", "--json"]
    said = run_module(*torchrun, *train, strict=False)
    assert '"ref": "started@1"' in said
    alone, *shared = (losses(store, name) for name in ("alone", "queued", "started"))
    assert len(alone) == 4
    for curve in shared:
        assert all(abs(one - other) < 1e-5 for one, other in zip(alone, curve, strict=True))


def test_processes_of_torchrun_meet_at_the_store_of_its_agent() -> None:
    said = run_module(
        "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.train.met", strict=False
    )
    assert {"process 0 of 2: here", "process 1 of 2: here"} <= set(said.splitlines())


def losses(store: Store, name: str) -> list[float]:
    from catena.core.events import read_events

    (run,) = [run for run in store.index.find_runs() if run.name == name]
    events = read_events(store.group_folder(run.group) / "events.jsonl")
    return [event["value"] for event in events if event.get("name") == "loss"]
