"""A worker: reads shards as lines of JSON, does them, and answers each with a line. Started by `executors`.

It ends when its input does, and so with the process that started it, however that one ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from typing import TextIO

from catena.core.cpu import guard
from catena.core.errors import CatenaError
from catena.data.shards import read_shard, run_shard


def serve(lines: TextIO, answers: TextIO) -> None:
    """Do the shards of `lines` one after another."""
    for line in lines:
        answers.write(json.dumps(answer(line)) + "\n")
        answers.flush()


def answer(line: str) -> dict[str, dict[str, str]]:
    """Do one shard; returns what to answer: nothing, or the problem."""
    try:
        run_shard(read_shard(line))
    except CatenaError as error:
        return {"problem": {"kind": type(error).__name__, "message": error.message, "hint": error.hint}}
    except Exception as error:  # noqa: BLE001 - the process that waits raises it
        told = f"{type(error).__name__}: {error}"
        return {"problem": {"kind": "", "message": told, "hint": "", "trace": traceback.format_exc()}}
    return {}


def main() -> None:
    """Serve on the standard streams; what an operation prints goes to standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits, which ends this one
    guard()
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
