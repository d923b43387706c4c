"""The contract of a training's processes, whoever starts them; and what can be shared among how many. Free of torch.

    RANK          which process this is; 0 is the main one, which alone writes events, reports and the store
    WORLD_SIZE    how many there are
    LOCAL_RANK    which of those on this machine it is, and so which GPU is its own
    MASTER_ADDR, MASTER_PORT    where the main process waits for the others

It is torchrun's. All processes run the same stage with the same config, inputs, seed and work folder.
"""

from __future__ import annotations

import os
import socket

from catena.core.errors import ConfigError, EnvironmentProblem
from catena.train.parallel.settings import ParallelConfig

LISTENING = "CATENA_LISTENING"
"""Names the file descriptor of a socket on which the main process is listened for already, where there is one."""
NAMES = ("pipeline", "data", "context", "tensor")
TESTED = (
    ("ddp", "tensor"),
    ("zero1", "tensor"),
    ("zero2", "tensor"),
    ("zero3", "tensor"),
    ("ddp", "pipeline"),
    ("zero1", "pipeline"),
    ("ddp", "context"),
    ("zero1", "context"),
    ("zero2", "context"),
    ("zero3", "context"),
    ("pipeline", "tensor"),
    ("pipeline", "context"),
    ("context", "tensor"),
)
"""Pairs of ways to share that are known to equal one process."""


class WorkerDone(BaseException):
    """Raised by `train` on every process but the main one, when the training is over: there is nothing left to do.

    Not an `Exception`: whatever a stage catches, it goes through to the worker.
    """


class ProcessLost(EnvironmentProblem):
    """Another process of the training has ended or does not answer. What ended it stands in what *that* one said."""


def listen(host: str = "127.0.0.1") -> socket.socket:
    """Listen on a port that the system chooses, for a main process that is started later."""
    return socket.create_server((host, 0), backlog=4096)


def sizes_of(config: ParallelConfig, world: int) -> tuple[int, int, int, int]:
    """Return the sizes (pipeline, data, context, tensor) for `world` processes.

    Raises `ConfigError` where they cannot be shared so, or where a combination is not known to be exact.
    """
    inner = config.pipeline * config.context * config.tensor
    if world % inner:
        shares = ", ".join(
            f"{name} {getattr(config, name)}" for name in NAMES if name != "data" and _given(config, name)
        )
        raise ConfigError(
            f"{_counted(world)} cannot be shared as {shares}",
            hint=f"Start {inner}, or a multiple of it; or change the sizes under parallel.",
        )
    data = world // inner
    used: list[str] = [config.data] if data > 1 else []
    used += [name for name in NAMES if name != "data" and _given(config, name)]
    pair = tuple(sorted(used, key=_order))
    if pair in (("zero2", "pipeline"), ("zero3", "pipeline")):
        raise ConfigError(
            f"{' with '.join(pair)} is not offered: each piece in the pipeline would share its stage's weights or "
            "gradients again",
            hint="Use zero1 with pipeline: it sends as little as ddp and shares the optimizer's state.",
        )
    if len(pair) > 2 or (len(pair) == 2 and pair not in TESTED):
        raise ConfigError(
            f"{' with '.join(pair)} is not offered: it has not been shown to equal one process",
            hint="These are: " + "; ".join(" with ".join(pair) for pair in TESTED) + ".",
        )
    if config.compression != "none" and used and used != [config.data]:
        raise ConfigError(
            f"compression {config.compression} is for data-parallel processes alone, not with {' and '.join(used)}",
            hint="Set compression: none, or leave the other sizes at 1.",
        )
    if config.compression != "none" and config.data in ("zero3", "server"):
        raise ConfigError(
            f"{config.data} has no compression of gradients", hint="Use ddp, zero1 or zero2, or compression: none."
        )
    return config.pipeline, data, config.context, config.tensor


def _given(config: ParallelConfig, name: str) -> bool:
    return int(getattr(config, name)) > 1


def _counted(world: int) -> str:
    return "1 process" if world == 1 else f"{world} processes"


def _order(name: str) -> int:
    kinds = ("ddp", "zero1", "zero2", "zero3", "server", "pipeline", "context", "tensor")
    return kinds.index(name)


def world_of_environment() -> tuple[int, int]:
    """Return (rank, processes) as torchrun and our launchers put them into the environment."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def is_worker() -> bool:
    """Whether somebody started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def token_of_environment() -> str:
    """Return the word that only the processes of this training know, as far as whoever started them gave one."""
    names = ("CATENA_TRAINING", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")
