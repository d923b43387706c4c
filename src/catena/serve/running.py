"""Which servers run over a workspace: each leaves a note with its address, for as long as its process lives.

<workspace>/running/<pid>-*.json   locked by the server; a note that nobody holds is of one that was killed
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = "running"
REPLICA = "_CATENA_REPLICA"
"""Set for the replicas of a gateway."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs."""

    url: str
    """Where this machine reaches it, without /v1."""
    models: tuple[str, ...]
    since: float
    """Seconds since 1970."""
    replicas: bool
    """Whether it is a gateway with replicas, or serves by itself."""


@contextmanager
def announced(root: Path) -> Iterator[Callable[[Running], None]]:
    """Keep a note while the block runs; gives the function that writes what it says.

    A replica of a gateway leaves none: it is behind the gateway.
    """
    if os.environ.get(REPLICA):
        yield lambda running: None
        return
    folder = root / FOLDER
    folder.mkdir(exist_ok=True)
    name = f"{os.getpid()}-{secrets.token_hex(4)}"
    hidden, file = folder / f".{name}", folder / f"{name}.json"
    descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)

    def say(running: Running) -> None:
        os.pwrite(descriptor, json.dumps(asdict(running)).encode(), 0)
        hidden.replace(file)  # the lock goes along: who sees the note sees it whole, and held

    try:
        yield say
    finally:
        hidden.unlink(missing_ok=True)
        file.unlink(missing_ok=True)
        os.close(descriptor)


def running(root: Path) -> Sequence[Running]:
    """Return the servers that run over a workspace on this machine: gateways first, then the newest."""
    found = []
    for file in (root / FOLDER).glob("*.json"):
        try:
            with file.open("rb") as stream:
                if _held(stream.fileno()):
                    told = json.loads(stream.read())
                    found.append(Running(told["url"], tuple(told["models"]), told["since"], told["replicas"]))
                else:
                    file.unlink(missing_ok=True)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it ends at this moment
    return sorted(found, key=lambda one: (not one.replicas, -one.since))


def _held(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
