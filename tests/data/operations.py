"""Operations that the tests of the shards hand to workers: one counts, one kills its worker, one has a problem."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from catena.core.config import Config
from catena.core.errors import DataError
from catena.core.sample import Sample
from catena.data.shards import Outcome, Shard


class Plan(Config):
    marks: str = ""
    """Folder for what is to be remembered from one worker to the next."""
    bad: int = -1
    """First row of the shard that goes wrong."""


def count(shard: Shard, cfg: Config, folder: Path) -> None:
    assert isinstance(cfg, Plan)
    with (Path(cfg.marks) / f"{shard.start}.log").open("a") as log:
        log.write(f"{os.getpid()}\n")
    rows = sum(len(texts) for texts in shard.texts())
    (folder / "rows").write_text(str(rows))


def die_once(shard: Shard, cfg: Config, folder: Path) -> None:
    assert isinstance(cfg, Plan)
    count(shard, cfg, folder)
    dead = Path(cfg.marks) / "dead"
    if shard.start == cfg.bad and not dead.exists():
        dead.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def die_always(shard: Shard, cfg: Config, folder: Path) -> None:
    if not shard.start:
        os.kill(os.getpid(), signal.SIGKILL)


def refuse(shard: Shard, cfg: Config, folder: Path) -> None:
    raise DataError("this row is bad", hint="Take another.")


def stumble(shard: Shard, cfg: Config, folder: Path) -> None:
    print("what an operation prints is no answer")
    raise ZeroDivisionError("a mistake of ours")


def shout(cfg: Plan) -> Callable[[Sample], Outcome]:
    def shouted(sample: Sample) -> Outcome:
        if "secret" in sample.text:
            return Outcome(sample, "secret", "has the word", {"secrets": 1})
        return Outcome(sample.with_text(sample.text.upper()), counts={"letters": len(sample.text)})

    return shouted
