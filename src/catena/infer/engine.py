"""The native engine: requests in, answers out, many at once. Read `step` first.

A request's life: `prompt` makes a sequence of it; it lies in the inbox until the next step; the `scheduler` lets it
run; `runner` and `sampler` give it a token a step; `text` turns tokens into what may be shown; at its end it leaves.

Two ways to drive it. `generate` and `score` step in the caller's own thread, so that the same requests make the same
batches and thus the same bits. `submit` starts a background thread that steps as long as there is work. Both may be
used at once: one lock guards the step.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from catena.core.config import Config, parse
from catena.core.errors import CatenaError, EnvironmentProblem, UsageError
from catena.core.generate import Completion, Delta, FinishReason, Request
from catena.infer.blocks import BlockPool
from catena.infer.prompt import Prompter
from catena.infer.runner import Output, Runner
from catena.infer.sampler import INVALID, sample
from catena.infer.scheduler import Chunk, Scheduler, Sequence
from catena.infer.text import TextStream

logger = logging.getLogger(__name__)

OnDelta = Callable[[Delta], None]


class EngineConfig(Config):
    """How much the engine takes on at once."""

    max_running: int = Field(default=64, ge=1)
    """Most sequences in one step."""
    max_waiting: int = Field(default=256, ge=1)
    """Most submitted requests in the queue; the next is refused at once."""
    token_budget: int = Field(default=2048, ge=1)
    """Most tokens in one step; longer prompts are cut into chunks."""
    block_size: int = Field(default=32, ge=1)
    """Tokens of one block of the key-value cache."""
    cache_bytes: int = Field(default=1 << 30, ge=1)
    """Memory for keys and values. Where it holds less than the model's context, the context is cut to it."""
    score_bytes: int = Field(default=128 << 20, ge=1)
    """Memory for the logits of prompts that are scored."""


@dataclass(eq=False, slots=True)
class _Ticket:
    """A sequence with the one who waits for it."""

    sequence: Sequence
    on_delta: OnDelta
    text: TextStream | None
    """None where only the whole answer is wanted and no stop string: it is decoded once, at the end."""
    submitted: bool


@dataclass(slots=True)
class _Counters:
    requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cancelled: int = 0
    failed: int = 0
    steps: int = 0
    seconds: float = 0.0
    tickets: dict[str, _Ticket] = field(default_factory=dict)


class Engine:
    """A `Generator` and a `StreamingGenerator` over one model in memory."""

    def __init__(self, model: Any, tokenizer: Any, config: EngineConfig | None = None) -> None:
        self.config = config = config or EngineConfig()
        self.tokenizer = tokenizer
        self.runner = Runner(model)
        text_config = model.config.get_text_config()
        rows = model.get_input_embeddings().weight.shape[0]
        blocks, context = _size(config, int(text_config.max_position_embeddings), self.runner.layout.bytes_per_token)
        self.runner.allocate(blocks, config.block_size)
        self.scheduler = Scheduler(
            BlockPool(blocks, config.block_size),
            max_running=config.max_running,
            token_budget=config.token_budget,
            score_budget=max(1, config.score_bytes // (4 * rows)),
        )
        self.prompter = Prompter(tokenizer, context, rows)
        self.ends = _end_tokens(model, tokenizer)
        self._counters = _Counters()
        self._stepping = threading.Lock()
        self._wake = threading.Condition()  # guards what follows
        self._inbox: deque[_Ticket] = deque()
        self._tickets: dict[str, _Ticket] = {}
        self._cancelled: set[str] = set()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._failure: BaseException | None = None

    # -- one step ----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Bring every running sequence one token further, and let waiting ones in."""
        started = time.perf_counter()
        self._admit()
        chunks = self.scheduler.schedule()
        if chunks:
            output = self.runner.run(chunks)
            tokens = sample(output.logits, *_sampling(output.sampled))
            self._collect(chunks, output, tokens)
        self._counters.steps += 1
        self._counters.seconds += time.perf_counter() - started

    def _admit(self) -> None:
        """Take over what came in since the last step: new requests, and those that nobody wants any more."""
        with self._wake:
            arrived = list(self._inbox)
            self._inbox.clear()
            cancelled, self._cancelled = self._cancelled, set()
        for ticket in arrived:
            self.scheduler.add(ticket.sequence)
        for sequence in self.scheduler.remove(cancelled):
            self._counters.cancelled += 1
            self._leave(sequence, "cancelled")

    def _collect(self, chunks: list[Chunk], output: Output, tokens: list[int]) -> None:
        """Append the new tokens, hand out text, and see off the finished."""
        for chunk in chunks:
            self.scheduler.advance(chunk)
        for chunk, logprobs in output.scored:
            chunk.sequence.logprobs += logprobs
            if chunk.complete:
                self.scheduler.finish(chunk.sequence)
                self._leave(chunk.sequence, "stop")
        for chunk, token in zip(output.sampled, tokens, strict=True):
            reason = self._append(chunk.sequence, token)
            if reason is not None:
                self.scheduler.finish(chunk.sequence)
                self._leave(chunk.sequence, reason)

    def _append(self, sequence: Sequence, token: int) -> FinishReason | None:
        """Give a sequence its next token; return why it is finished, or None."""
        if token == INVALID:
            self._counters.failed += 1
            logger.error("request %s: the model's logits are no numbers", sequence.id)
            return "error"
        sequence.tokens.append(token)
        self._counters.generated_tokens += 1
        ticket = self._tickets[sequence.id]
        if token in self.ends:
            return "stop"
        if ticket.text is not None:
            text = ticket.text.push(token)
            if text and ticket.submitted:
                self._tell(ticket, Delta(text))
            if ticket.text.stopped:
                return "stop"
        return "length" if len(sequence.tokens) >= sequence.limit else None

    def _leave(self, sequence: Sequence, reason: FinishReason) -> None:
        """Tell the one who waits that it is over."""
        with self._wake:
            ticket = self._tickets.pop(sequence.id)
        ids = tuple(sequence.generated)
        if ticket.text is None:
            rest, text = "", self._decode(ids)
        else:
            rest = ticket.text.finish()
            text = ticket.text.text
        completion = Completion(
            request_id=sequence.id,
            text=text,
            token_ids=ids,
            finish_reason="stop" if ticket.text is not None and ticket.text.stopped else reason,
            prompt_tokens=sequence.prompt_length,
            logprobs=tuple(sequence.logprobs),
        )
        self._tell(ticket, Delta(rest, completion))

    def _tell(self, ticket: _Ticket, delta: Delta) -> None:
        try:
            ticket.on_delta(delta)
        except Exception:
            # Whoever listens (a connection that is gone, a closed event loop) must not take the others down.
            logger.warning("request %s: its listener failed; it is cancelled", ticket.sequence.id, exc_info=True)
            self.cancel(ticket.sequence.id)

    def _decode(self, ids: Iterable[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
