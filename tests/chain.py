"""A small form of the demo's chain, for tests: started, killed and finished as processes of their own.

Each is forked from a server that has imported what a chain imports, torch too: seconds that a test of twenty kills
would pay twenty times. In the fork the command line runs as it does in a program.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "python-helper.yaml"
SMALL = [
    "pages.start=[/index.html]",
    "pages.allow=[/index.html, /json*, /shutil*, /random*, /html*, /re.html, /statistics*, /textwrap*, /string*]",
    "definitions.limit=12",
    "definitions.split=''",
    "conversations.per_level={0: 1, 1: 24}",
    "tokenizer.vocab_size=512",
    "base.preset=llama-nano",
    "base.tokens=4096",
    "base.sequence_length=64",
    "base.checkpoint_seconds=0.1",
    "tuned.phases=[{levels: [0], epochs: 2}, {levels: [1], epochs: 1}]",
    "tuned.checkpoint_seconds=0.1",
    "perplexity-base.max_tokens=200",
    "perplexity-full.max_tokens=200",
    "perplexity-int8.max_tokens=200",
    "answers-full.limit=3",
    "answers-int8.limit=3",
    "answers-full.max_tokens=8",
    "answers-int8.max_tokens=8",
    # An untrained model's scores say nothing: the gate judges the size alone.
    "gate.keep={}",
    "gate.max_size_ratio=1.0",
]


PRELOADED = [
    "transformers.models.llama.modeling_llama",
    "pyarrow.dataset",
    "sqlalchemy",
    "matplotlib.figure",
    "pydantic",
]
"""Without Lance, whose threads do not survive a fork."""
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(PRELOADED)


def _program(words: list[str], output: str) -> None:
    """Be the program `catena`: its words to a file, its exit code to whoever waits."""
    from catena.cli.main import main

    os.setsid()
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(target, 1)
    os.dup2(target, 2)
    sys.argv = ["catena", *words]
    main()


@dataclass(frozen=True)
class Started:
    """A chain that runs, and where its words go."""

    process: ForkServerProcess
    output: Path

    def has_reached(self, step: str) -> bool:
        """Tell whether it is at a step, or beyond."""
        return self.output.exists() and f'"step": "{step}"' in self.output.read_text(errors="replace")

    def kill(self) -> bool:
        """End it as a failure of the machine would: nothing in it is told. Return False if it had ended."""
        self.process.kill()
        self.process.join()
        return self.process.exitcode == -signal.SIGKILL

    def events(self) -> list[dict[str, Any]]:
        """Wait for its end, which must be good, and return its lines."""
        self.process.join(600)
        text = self.output.read_text()
        assert self.process.exitcode == 0, text[-6000:]
        return [json.loads(line) for line in text.splitlines()]

    def end(self) -> dict[str, Any]:
        """Wait for its end and return its last line: outputs and timings."""
        return self.events()[-1]


def start(workspace: Path) -> Started:
    """Begin the small chain in a workspace, or go on with it."""
    settings = [part for assignment in SMALL for part in ("--set", assignment)]
    words = ["run", str(RECIPE), "--json", "--workspace", str(workspace), *settings]
    output = workspace.with_name(f"{time.monotonic_ns()}.jsonl")
    process = SERVER.Process(target=_program, args=(words, str(output)))
    process.start()
    return Started(process, output)


def digests(end: dict[str, Any]) -> dict[str, str]:
    return {step: output["digest"] for step, output in end["outputs"].items()}


@dataclass(frozen=True)
class Chain:
    """A chain that nobody disturbed."""

    workspace: Path
    end: dict[str, Any]
    """The last event: outputs and timings."""
