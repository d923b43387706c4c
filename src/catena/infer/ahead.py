"""One step ahead on a GPU: the next step is launched before the tokens of the last one are read.

    GPU    | step 1          | step 2          | step 3          |
    host     launch 2, then wait for 1 and tell it; launch 3, then wait for 2 and tell it; ...

Which tokens step 2 begins with is known on the GPU alone; everything else about it (positions, slots, blocks, draws) is
known to the host, so that text, streams and accounts cost the GPU no time. Who turns out to have ended at step 1 has a
row in step 2 that is thrown away: what it wrote lies behind everything that was computed of that sequence, in a block
that no name was given to, and before anything that is launched later. Only recorded steps of single tokens fly ahead,
where no one's logits depend on a token that the host does not know yet (penalties, grammar) or are to be reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence as Many
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catena.infer.graphs import GraphStep
from catena.infer.runner import Output, arrange, is_decode
from catena.infer.sampler import Choice, adjusts, moved, sampled
from catena.infer.scheduler import Chunk, Scheduler

Landed = tuple[list[Chunk], Output, list[list[Choice]]]


@dataclass(frozen=True, slots=True)
class Flight:
    """A step that was launched, and whose tokens nobody has read."""

    row: Many[Chunk]
    tokens: Tensor
    """`[rows]`, on the device; -1 where the logits were no numbers."""
    read: Callable[[], list[int]]
    """Waits for the tokens and returns them."""


class Ahead:
    """Keeps at most one step in flight."""

    def __init__(self, runner: Any, *, wanted: bool = True) -> None:
        self._runner, self._wanted = runner, wanted
        self.flight: Flight | None = None
        self.count = 0
        """Steps that were launched while the one before was still to be read."""

    @property
    def _graphs(self) -> GraphStep | None:
        return getattr(self._runner, "graphs", None) if self._wanted else None

    def launch(self, chunks: Many[Chunk]) -> bool:
        """Launch a step whose tokens are read later; False where it is none that may be."""
        row = arrange(chunks)
        if self._graphs is None or self._runner.adapters.used or not all(map(_may, row)) or not self._takes(row):
            return False
        self.flight = self._launched(row, None)
        return self.flight is not None

    def land(self, scheduler: Scheduler) -> Landed | None:
        """Launch what follows the step in flight, where it may, and return that step; None where none flies."""
        flight = self.flight
        if flight is None:
            return None
        self.flight = self._follow(flight, scheduler)
        found = zip(flight.row, flight.read(), strict=True)
        running = {one.id for one in scheduler.running}  # not who left since it was launched
        alive = [(chunk, token) for chunk, token in found if chunk.sequence.id in running]
        row = [chunk for chunk, _ in alive]
        return row, Output(tuple(row), flight.tokens[:0], ()), [[Choice(token)] for _, token in alive]

    def _follow(self, flight: Flight, scheduler: Scheduler) -> Flight | None:
        running = {one.id for one in scheduler.running}
        places = [at for at, chunk in enumerate(flight.row) if chunk.sequence.id in running]
        if len(places) < len(running) or self._runner.adapters.used:
            return None
        if scheduler.waiting and len(running) < scheduler.max_running:
            return None  # somebody may be let in
        places = [at for at in places if flight.row[at].end + 1 < flight.row[at].sequence.limit]
        row = [Chunk(flight.row[at].sequence, flight.row[at].end, 1) for at in places]
        if not row or not self._takes(row):
            return None
        if not all(scheduler.pool.grow(chunk.sequence.blocks, chunk.stop) for chunk in row):
            return None  # the scheduler will push somebody out
        self.count += 1
        return self._launched(row, flight.tokens[moved(places, flight.tokens.device, torch.long)])

    def _takes(self, row: Many[Chunk]) -> bool:
        return self._graphs is not None and self._graphs.takes(len(row))

    @torch.inference_mode()
    def _launched(self, row: Many[Chunk], tokens: Tensor | None) -> Flight | None:
        """Launch a row; `tokens` are what it begins with, where the host does not know them."""
        assert self._graphs is not None
        logits = self._graphs(row, tokens)
        if logits is None:
            return None
        at = 0 if tokens is None else 1  # the draw before it is taken off when its step is read
        for chunk in row:
            draws = chunk.sequence.draws
            draws += [chunk.sequence.random.random() for _ in range(at + 1 - len(draws))]
        chosen = sampled(logits, [chunk.sequence.params for chunk in row], [chunk.sequence.draws[at] for chunk in row])
        return Flight(row, chosen, _reader(chosen))


def _may(chunk: Chunk) -> bool:
    """Whether a chunk is one known token behind a past, and its logits are nobody's business but the sampler's."""
    sequence = chunk.sequence
    prompt = sequence.wants_prompt and chunk.start < sequence.prompt_length
    plain = not adjusts(sequence) and sequence.params.logprobs is None and not prompt
    return plain and is_decode(chunk) and chunk.complete and not chunk.draft


def _reader(tokens: Tensor) -> Callable[[], list[int]]:
    """Begin to copy tokens to the host, before anything that is launched later; returns what waits for them."""
    if not tokens.is_cuda:
        return tokens.tolist
    host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
    host.copy_(tokens, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def read() -> list[int]:
        copied.synchronize()
        found: list[int] = host.tolist()
        return found

    return read
