"""The scheduler: which tokens of which sequences go through the model in the next step. Plain Python, no tensor.

    waiting --admit--> running --finish--> (gone)
       ^                  |
       +---- preempt -----+      blocks ran out: forget the cache, compute it again later

One step has a budget of tokens. Running sequences come first, so that a long prompt never holds up those who already
stream; a prompt that does not fit into what is left is cut into chunks (chunked prefill).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from catena.core.generate import SamplingParams
from catena.infer.blocks import BlockPool


@dataclass(eq=False, slots=True)
class Sequence:
    """One request on its way: its tokens, how many of them the cache holds, and the blocks that hold them."""

    id: str
    tokens: list[int]
    """The prompt, then what was generated."""
    prompt_length: int
    params: SamplingParams
    limit: int
    """Longest that `tokens` may get: the prompt with `max_tokens`, cut at the context."""
    score: bool = False
    """Wanted are the log-probabilities of the prompt; nothing is generated."""
    computed: int = 0
    """Number of leading tokens whose keys and values are in the cache."""
    blocks: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    random: random.Random = field(default_factory=random.Random)
    """Draws of its own, so that an answer with a seed does not depend on who else is in the batch."""

    @property
    def generated(self) -> list[int]:
        """The tokens of the answer so far."""
        return self.tokens[self.prompt_length :]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A span of one sequence's tokens to run in this step."""

    sequence: Sequence
    start: int
    count: int

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + self.count

    @property
    def complete(self) -> bool:
        """True where the chunk reaches the last known token, so that the next one can be chosen."""
        return self.end == len(self.sequence.tokens)


class Scheduler:
    """First come, first served, within three bounds: sequences at once, tokens in a step, blocks in the pool."""

    def __init__(self, pool: BlockPool, *, max_running: int, token_budget: int, score_budget: int) -> None:
        self.pool = pool
        self.max_running = max_running
        self.token_budget = max(token_budget, max_running)
        self.score_budget = score_budget
        """Most tokens of one step that need a full row of logits each; bounds the memory of scoring."""
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; it must fit into an empty pool."""
        assert sequence.limit <= self.pool.tokens
        self.waiting.append(sequence)

    def remove(self, ids: Iterable[str]) -> list[Sequence]:
        """Take sequences out wherever they are, free their blocks, and return those that were found."""
        wanted = set(ids)
        found = [sequence for sequence in [*self.running, *self.waiting] if sequence.id in wanted]
        for sequence in found:
            self.pool.release(sequence.blocks)
        self.running = [sequence for sequence in self.running if sequence.id not in wanted]
        self.waiting = deque(sequence for sequence in self.waiting if sequence.id not in wanted)
        return found

    def schedule(self) -> list[Chunk]:
        """Choose the next step's chunks and give them blocks; empty only when there is nothing to do."""
        chunks: list[Chunk] = []
        budget, score_budget = self.token_budget, self.score_budget
        preemptions = self.preemptions
        # One token to decode before any rest of a prompt: who streams already goes on streaming.
        for sequence in sorted(self.running, key=lambda sequence: len(sequence.tokens) - sequence.computed > 1):
            if sequence in self.running:  # an earlier one may have pushed it out
                chunk = self._chunk(sequence, budget, score_budget)
                if chunk.count and self._make_room(chunk):
                    chunks.append(chunk)
                    budget, score_budget = self._spend(chunk, budget, score_budget)
        if self.preemptions > preemptions:
            return [chunk for chunk in chunks if chunk.sequence in self.running]
        while self.waiting and budget > 0 and len(self.running) < self.max_running:
            sequence = self.waiting[0]
            chunk = self._chunk(sequence, budget, score_budget)
            # The whole prompt must fit, not only this chunk: two half-admitted ones could wait for each other's blocks.
            if not chunk.count or not self.pool.grow(sequence.blocks, len(sequence.tokens)):
                break
            self.running.append(self.waiting.popleft())
            chunks.append(chunk)
            budget, score_budget = self._spend(chunk, budget, score_budget)
        return chunks

    def advance(self, chunk: Chunk) -> None:
        """Note that a chunk went through the model."""
        chunk.sequence.computed = chunk.end

    def finish(self, sequence: Sequence) -> None:
        """Take a finished sequence out and free its blocks."""
        self.running.remove(sequence)
        self.pool.release(sequence.blocks)

    def _chunk(self, sequence: Sequence, budget: int, score_budget: int) -> Chunk:
        allowed = min(budget, score_budget) if sequence.score else budget
        return Chunk(sequence, sequence.computed, min(len(sequence.tokens) - sequence.computed, allowed))

    def _spend(self, chunk: Chunk, budget: int, score_budget: int) -> tuple[int, int]:
        return budget - chunk.count, score_budget - (chunk.count if chunk.sequence.score else 0)

    def _make_room(self, chunk: Chunk) -> bool:
        """Give the chunk its blocks, pushing out the youngest sequences where needed; False if it was the youngest."""
        while not self.pool.grow(chunk.sequence.blocks, chunk.end):
            youngest = self.running.pop()
            self.pool.release(youngest.blocks)
            youngest.computed = 0
            youngest.logprobs.clear()
            self.waiting.appendleft(youngest)
            self.preemptions += 1
            if youngest is chunk.sequence:
                return False
        return True
