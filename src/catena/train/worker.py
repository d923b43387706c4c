"""One process of a training: `python -m catena.train.worker SPEC.json`, with RANK, WORLD_SIZE and MASTER_* set.

Every process runs the same stage. The main one leaves its events and its result beside the spec; the others end with
`WorkerDone` when the training is over, and touch the store only to read.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catena.core.config import Config, parse
from catena.core.cpu import guard
from catena.core.errors import CatenaError, UsageError
from catena.core.events import Events
from catena.core.stage import Context, Stage, stage_of
from catena.core.types import ARTIFACT, ArtifactBase
from catena.hub.files import write_atomically
from catena.hub.store import open_store
from catena.train.parallel.contract import ProcessLost, WorkerDone, world_of_environment


def run(spec: Path) -> int:
    """Do a worker's work and return its exit status; why it failed stands in `error-<rank>.json` beside the spec."""
    guard()
    rank, _ = world_of_environment()
    try:
        made = perform(json.loads(spec.read_text()), Events(spec.parent / "events.jsonl") if rank == 0 else Events())
        if rank == 0:
            write_atomically(spec.parent / "result.json", made.model_dump_json().encode())
    except WorkerDone:
        return 0
    except KeyboardInterrupt:
        return 130
    except BaseException as error:  # noqa: BLE001  told to whoever waits, and printed
        known = isinstance(error, CatenaError)
        told = {
            "class": type(error).__name__ if known else "",
            "message": str(error) if known else f"{type(error).__name__}: {error}",
            "hint": error.hint if isinstance(error, CatenaError) else "",
            "follows": isinstance(error, ProcessLost),
            "at": time.time(),
        }
        traceback.print_exc()
        write_atomically(spec.parent / f"error-{rank}.json", json.dumps(told).encode())
        return error.exit_code if isinstance(error, CatenaError) else 1
    return 0


def perform(spec: Mapping[str, Any], events: Events) -> ArtifactBase:
    """Run the stage that a spec names; returns what it made (on the main process: elsewhere `WorkerDone`)."""
    module, _, name = spec["stage"].partition(":")
    stage = stage_of(getattr(importlib.import_module(module), name))
    store = open_store(Path(spec["workspace"]))
    try:
        context = Context(
            store,
            Path(spec["workdir"]),
            spec["seed"],
            events,
            spec["name"],
            executor=spec["executor"],
            workers=spec["workers"],
        )
        inputs = {key: ARTIFACT.validate_python(value) for key, value in spec["inputs"].items()}
        return stage.function(context, parse(stage.config, spec["config"], where=stage.name), **inputs)
    finally:
        store.close()


def take_part(context: Context, config: Config, stage: Stage, inputs: Mapping[str, ArtifactBase]) -> None:
    """Do the work of a process that is not the main one and that something else than our launcher has started."""
    try:
        stage.function(context, config, **inputs)
    except WorkerDone:
        return


def end_with_parent() -> None:
    """End this process when the one that started it is gone: its end of our standard input is closed then."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _interrupted(_: int, __: object) -> None:
    """Take SIGTERM as Ctrl-C: a stage gets the chance to leave what it has done."""
    raise KeyboardInterrupt


def main() -> None:
    """Run the worker of this process and exit."""
    if len(sys.argv) != 2:
        raise UsageError("a worker takes one spec", hint="python -m catena.train.worker SPEC.json")
    end_with_parent()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # the launcher asks where a process stands before it ends it
    signal.signal(signal.SIGTERM, _interrupted)
    sys.exit(run(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
