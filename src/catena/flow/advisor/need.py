"""What is needed, as people say it: `a100:2`, `200ms`, `1500/month`."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from catena.core.config import Config
from catena.core.errors import UsageError

HOURS_OF_MONTH = 730.0
MOST_GPUS = 65_536
"""As many as the planner of trainings takes."""


class Need(Config):
    """A task and what it may take. Shares and times at the end are assumptions: put in what you measured."""

    task: str = "chat"
    """What the model is wanted for: a name of the table of tasks."""
    language: tuple[str, ...] = ("en",)
    """Codes of the languages that it has to know."""
    kind: Literal["decoder", "encoder", "encoder-decoder"] | None = None
    """The class of model; default: by the task."""
    model: str | None = None
    """Only this one; default: the best of the table."""
    licence: tuple[str, ...] = ()
    """Only models of these licences; default: any."""
    users: int = Field(default=8, ge=1)
    """Requests that are answered at the same time."""
    context: int = Field(default=4096, ge=1)
    """Tokens of a conversation that are kept in memory for each user; at least those of what is asked and answered."""
    prompt: int | None = Field(default=None, ge=1)
    """Tokens of what is asked; default: by the task."""
    new: int | None = Field(default=None, ge=1)
    """Tokens of the answer; default: by the task."""
    latency: float | None = Field(default=None, gt=0)
    """Seconds to the first token at most; of encoders, to the answer."""
    speed: float = Field(default=5.0, ge=0)
    """Tokens a second for each user at least: about as fast as people read. 0: any."""
    price: float | None = Field(default=None, gt=0)
    """What an hour of one GPU (or of the machine) costs, in any currency."""
    budget: str | None = None
    """At most: `2000` for the training, `1500/month` or `4/hour` for serving. Needs a price."""
    train: Literal["auto", "full", "lora", "qlora", "none"] = "auto"
    """How it has to be trainable there; auto: all weights, else LoRA, else LoRA on a base of 4 bits."""
    train_tokens: float = Field(default=10_000_000, gt=0)
    """Tokens that are trained on, all epochs together."""
    train_hours: float = Field(default=168.0, gt=0)
    """Hours that the training may take at most: a week."""
    sequence_length: int = Field(default=2048, ge=1)
    """Tokens of a training sequence; at most the model's context."""
    batch_size: int = Field(default=32, ge=1)
    """Sequences in an optimizer step; rounded up to a multiple of the GPUs."""
    rank: int = Field(default=16, ge=1)
    """Of LoRA."""
    reserve: float = Field(default=0.08, ge=0, lt=1)
    """Share of the memory that is left for the allocator and the driver."""
    bandwidth_share: float = Field(default=0.6, gt=0, le=1)
    """Share of the memory's bandwidth that decoding reaches. An assumption: `catena bench` measures it."""
    compute_share: float = Field(default=0.4, gt=0, le=1)
    """Share of the peak that reading prompts and training reach. An assumption: `catena bench` measures it."""
    hop: float = Field(default=1e-5, ge=0)
    """Seconds that one exchange between GPUs takes however little is sent. An assumption."""
    chunk: int = Field(default=2048, ge=1)
    """Tokens of prompts that the engine takes into one step."""


def parse_seconds(text: str) -> float:
    """Read `200ms`, `1.5s` or `2` (seconds); raises `UsageError`."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)\s*(ms|s|)", text.strip())
    if match is None or not float(match[1]):
        raise UsageError(f"{text!r} is no time", hint="For example: --latency 200ms, or 1.5s")
    return float(match[1]) / (1000 if match[2] == "ms" else 1)


def parse_gpu(text: str) -> tuple[str, int]:
    """Read `a100` or `a100:2`; raises `UsageError`."""
    name, sign, count = text.strip().lower().partition(":")
    if not name or (sign and not re.fullmatch(r"[1-9]\d{0,4}", count)) or int(count or 1) > MOST_GPUS:
        raise UsageError(f"{text!r} is no GPU and number", hint=f"For example: --gpu a100:2; at most {MOST_GPUS:,}")
    return name, int(count or 1)


def parse_budget(text: str) -> tuple[float, str]:
    """Read `2000`, `1500/month` or `4/hour`: an amount, and `training`, `month` or `hour`. Raises `UsageError`."""
    match = re.fullmatch(r"(\d{1,12}(?:\.\d+)?)(?:\s*/\s*(month|hour))?", text.strip())
    if match is None or not float(match[1]):
        raise UsageError(f"{text!r} is no budget", hint="For example: --budget 2000, 1500/month or 4/hour")
    return float(match[1]), match[2] or "training"
