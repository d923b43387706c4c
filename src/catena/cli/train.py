"""Command: train, a training stage on one process or on many."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from catena.cli.session import Session, session_of
from catena.cli.stage import pairs
from catena.core.errors import UsageError

if TYPE_CHECKING:
    from catena.workspace import Workspace

Launch = Literal["local", "torchrun", "ray", "slurm"]


def train(
    context: typer.Context,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="pretrain, sft, ...: a stage whose name begins train.")],
    use: Annotated[
        list[str] | None, typer.Option(metavar="INPUT=REF", help="Give an input something stored; many times.")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a value of the config; many times.")
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What the model is called.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    launch: Annotated[Launch, typer.Option(help="Who starts the processes.")] = "local",
    processes: Annotated[int, typer.Option(min=1, help="How many share the work.")] = 1,
) -> None:
    """Train on one process or many, here or on a cluster. They start here, by torchrun, on Ray, or through Slurm."""
    from catena.core.config import override
    from catena.train.slurm import slurm_contract

    session, full = session_of(context), stage if "." in stage else f"train.{stage}"
    given, values = pairs(use or ()), override({}, assignments or ())
    if launch == "slurm":
        os.environ.update(slurm_contract(os.environ))
        if "RANK" not in os.environ:
            _write_script(session, name or stage, processes)
            return
    if launch in ("torchrun", "slurm"):
        _check_started(launch, processes)
    elif processes > 1:
        values["parallel"] = values.get("parallel", {}) | {"processes": processes, "launcher": launch}
    with session.open(create=True) as workspace:
        if int(os.environ.get("RANK", "0")) and launch in ("torchrun", "slurm"):
            _take_part(workspace, full, given, values, seed)
            return
        with session.out.progress() as listeners:
            made = workspace.do(full, given, values, name=name, seed=seed, listeners=listeners)
        _tell(session, workspace, made)


def _check_started(launch: Launch, processes: int) -> None:
    """Raise where this process is not one of several, or of another number."""
    world = os.environ.get("WORLD_SIZE")
    if world is None:
        raise UsageError(
            f"--launch {launch} is for processes that are started already",
            hint=f"torchrun --nproc-per-node {max(processes, 2)} -m catena train ... --launch torchrun",
        )
    if processes not in (1, int(world)):
        raise UsageError(f"--processes says {processes}, and {world} were started", hint="Leave --processes away.")


def _take_part(workspace: Workspace, stage: str, inputs: Any, values: Any, seed: int) -> None:
    """Be one of the processes whose main one runs `workspace.do`, with the same work folder; leave nothing."""
    from catena.core.events import Events
    from catena.core.stage import Context
    from catena.flow.plan import find_done, step_key
    from catena.flow.recipe import one_step
    from catena.train.worker import take_part

    store = workspace.store
    (step,) = one_step(stage, inputs, values, seed=seed, store=store).steps.values()
    artifacts = {name: store.resolve(ref) for name, ref in step.use.items()}
    key = step_key(step, artifacts)
    if find_done(store, key) is None:
        take_part(Context(store, store.workdir(key), step.seed, Events(), ""), step.config, step.stage, artifacts)


def _write_script(session: Session, name: str, processes: int) -> None:
    """Leave a script for sbatch that runs this very command on each of its processes."""
    from catena.train.slurm import slurm_script

    path = Path(f"{name.replace('/', '-')}.sbatch")
    path.write_text(slurm_script([sys.executable, "-m", "catena", *sys.argv[1:]], processes, name))
    if session.out.json:
        session.out.value({"script": str(path)})
    else:
        session.out.line(f"Written: {path}. Look through it, then:  sbatch {path}")


def _tell(session: Session, workspace: Workspace, made: Any) -> None:
    from catena.cli.views import artifact_line

    names = [f"{row.name}@{row.version}" for row in workspace.store.index.versions(digest=made.digest)]
    if session.out.json:
        session.out.value({"ref": names[-1], "digest": made.digest, "kind": made.kind})
    else:
        session.out.line(artifact_line(names[-1], made))


COMMANDS = (
    (
        "train",
        train,
        "  catena train sft --use base=base --use data=answers --name helper --processes 2\n"
        "  catena train pretrain --use tokenizer=words --use data=pages --processes 4 --set parallel.tensor=2\n"
        "  torchrun --nproc-per-node 8 -m catena train sft --use base=base --use data=answers --launch torchrun",
    ),
)
