"""Where the processes of one training meet: a small store on the main process, and what is said when one is missing.

    torchrun            its agent holds the store already
    our launchers       they listen before anybody starts and hand the socket down (CATENA_LISTENING): nobody else can
                        take the port in between, and whoever comes early waits in its queue
    Slurm, by hand      the main process listens on MASTER_PORT

Keys carry the training's word (CATENA_TRAINING), so that a process of another training that comes to the same port
meets nobody here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from catena.core.errors import EnvironmentProblem
from catena.train.parallel.contract import LISTENING, ProcessLost, token_of_environment, world_of_environment

GONE = re.compile(
    r"connection (was )?(closed|reset|refused|aborted)|broken pipe|socket (is )?closed|timed? ?out|peer|"
    r"remote process exited|recvValue failed|failed to (recv|send)",
    re.IGNORECASE,
)
"""How gloo, nccl and the store say that another process has left or does not answer."""


def store(patience_s: float) -> Store:
    """Return the store of this training; on the main process it is held here.

    Raises `EnvironmentProblem` where the port is taken, where nobody answers, or where the contract is not whole.
    """
    rank, world = world_of_environment()
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise EnvironmentProblem(
            f"{' and '.join(missing)} are not set, though WORLD_SIZE is {world}",
            hint="Start the training with `catena train --processes`, or with torchrun.",
        )
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    held = rank == 0 and not agent
    listening = os.environ.pop(LISTENING, None) if held else None
    try:
        found = dist.TCPStore(  # type: ignore[attr-defined]
            host,
            port,
            world,
            is_master=held,
            timeout=timedelta(seconds=patience_s),
            wait_for_workers=False,
            master_listen_fd=None if listening is None else int(listening),
        )
    except (RuntimeError, OSError) as error:  # DistError is a RuntimeError
        raise _not_met(rank, host, port, patience_s, held) from error
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"{token_of_environment()}/{again}", found)


def _not_met(rank: int, host: str, port: int, patience_s: float, held: bool) -> EnvironmentProblem:
    if held:
        return EnvironmentProblem(
            f"the main process cannot wait for the others at {host}:{port}",
            hint="Another program has this port. Set MASTER_PORT to a free one.",
        )
    return ProcessLost(
        f"process {rank} found no main process at {host}:{port} within {patience_s:.0f} s",
        hint="Look at what process 0 said, and whether this machine reaches that address.",
    )


def begin(backend: str, patience_s: float) -> None:
    """Make torch's group of all processes. Raises `ProcessLost` where not all of them come."""
    rank, world = world_of_environment()
    meeting = store(patience_s)
    try:
        dist.init_process_group(
            backend, store=meeting, rank=rank, world_size=world, timeout=timedelta(seconds=patience_s)
        )
    except RuntimeError as error:
        if lost(error) is None:
            raise
        raise ProcessLost(
            f"not all {world} processes of the training came together within {patience_s:.0f} s",
            hint="Look at what the others said; parallel.patience_s is how long each waits.",
        ) from error


@contextmanager
def saying_who_is_lost() -> Iterator[None]:
    """Turn what a backend raises when another process is gone into `ProcessLost`."""
    try:
        yield
    except RuntimeError as error:
        known = lost(error)
        if known is None:
            raise
        raise known from error


def lost(error: BaseException) -> ProcessLost | None:
    """Return what to say of an error of an exchange with other processes; None where it is about something else."""
    from_exchange = isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "nccl" in str(error).lower()
    if not (isinstance(error, RuntimeError) and from_exchange and GONE.search(str(error))):
        return None
    return ProcessLost(
        "another process of the training has ended, or did not answer in time",
        hint="Look at what the others said. The same command goes on from the last checkpoint.",
    )
