"""A small form of the demo's chain, for tests: started, killed and finished by command line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "python-helper.yaml"
SMALL = [
    "pages.start=[/index.html]",
    "pages.allow=[/index.html, /json*, /shutil*, /random*, /html*, /re.html, /statistics*, /textwrap*, /string*]",
    "definitions.limit=12",
    "definitions.split=''",
    "conversations.per_level={0: 1, 1: 50}",
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


def command(workspace: Path) -> list[str]:
    settings = [part for assignment in SMALL for part in ("--set", assignment)]
    return [sys.executable, "-m", "catena", "run", str(RECIPE), "--json", "--workspace", str(workspace), *settings]


def start(workspace: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(workspace), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, output[-3000:] + errors[-3000:]
    end: dict[str, Any] = json.loads(output.splitlines()[-1])
    return end


def digests(end: dict[str, Any]) -> dict[str, str]:
    return {step: output["digest"] for step, output in end["outputs"].items()}


@dataclass(frozen=True)
class Chain:
    """A chain that nobody disturbed."""

    workspace: Path
    end: dict[str, Any]
    """The last event: outputs and timings."""
    seconds: float
