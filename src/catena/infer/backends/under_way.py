"""What is kept of an engine that is asked, and of each request under way. No I/O."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from catena.core.generate import Delta, SamplingParams
from catena.infer.backends.process import EngineProcess
from catena.infer.codec import ModelCodec

logger = logging.getLogger(__name__)
OnDelta = Callable[[Delta], None]
SCORING = SamplingParams(max_tokens=0, prompt_logprobs=0)
"""How a prompt is asked for that is only scored."""


@dataclass(slots=True)
class Counters:
    """What was done since it was opened."""

    requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cancelled: int = 0
    late: int = 0
    failed: int = 0

    def stats(self) -> dict[str, float]:
        """Return them by the names of metrics."""
        return {f"{name}_total": value for name, value in asdict(self).items()}


@dataclass(eq=False, slots=True)
class Ticket:
    """A request under way. A task that is cancelled before its first step would tell nobody of its end: hence both."""

    task: asyncio.Task[Any] | None = None
    cancelled: bool = False

    def stop(self) -> None:
        """Called in the loop's thread."""
        if self.task is not None:
            self.task.cancel()


@dataclass(frozen=True, slots=True)
class Place:
    """Where an engine answers."""

    url: str
    """Calls go to paths under it."""
    key: str = ""
    process: EngineProcess | None = None
    """The child, where it was started here."""
    alive_url: str = ""
    """What answers 200 while a child lives."""
    clean: Callable[[], None] = field(default=lambda: None)
    """Called when the generator is closed."""


def tell(on_delta: OnDelta, delta: Delta, id: str) -> bool:
    """Hand out a delta; False where the one who listens failed (a connection that is gone, a closed event loop)."""
    try:
        on_delta(delta)
    except Exception:
        logger.warning("request %s: its listener failed; it is cancelled", id, exc_info=True)
        return False
    return True


def drops_space(codec: ModelCodec) -> bool:
    """Tell whether a tokenizer puts a space before every text and takes it off again."""
    ids = codec.continuation("a")
    return b"".join(codec.pieces(ids)).startswith(b" ") and not codec.text(ids).startswith(" ")
