"""The scheduler: which tokens of which sequences go through the model in the next step. Plain Python, no tensor.

    waiting --admit--> running --finish--> (gone)
       ^                  |
       +---- preempt -----+      blocks ran out: forget the cache, compute it again later

One step has a budget of tokens. Running sequences come first, so that a long prompt never holds up those who already
stream; a prompt that does not fit into what is left is cut into chunks (chunked prefill). A prompt whose beginning
lies in the pool already starts behind it (prefix cache). Guessed tokens (`draft`) ride along behind the last known
one; how many of them were right is known after the step.
"""

from __future__ import annotations

import random
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from catena.core.generate import SamplingParams, TokenLogprob
from catena.infer.blocks import BlockPool, Name, names_of


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
    priority: int = 0
    adapter: str = ""
    deadline: float | None = None
    """On the monotonic clock."""
    matcher: Any = None
    """What its text must look like (`catena.infer.grammar`); says which tokens may come next."""
    computed: int = 0
    """Number of leading tokens whose keys and values are in the cache."""
    cached: int = 0
    """How many of them were found there when it was first let in."""
    blocks: list[int] = field(default_factory=list)
    names: list[Name] = field(default_factory=list)
    """Of its full blocks, as far as they were needed."""
    draft: list[int] = field(default_factory=list)
    """Guesses of the tokens to come."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of the answer's tokens."""
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    random: random.Random = field(default_factory=random.Random)
    """Draws of its own, so that an answer with a seed does not depend on who else is in the batch."""
    draws: list[float] = field(default_factory=list)
    """Drawn and not used yet."""
    arrival: int = 0
    """Place in the order of arrivals; the scheduler gives it."""

    @property
    def generated(self) -> list[int]:
        """The tokens of the answer so far."""
        return self.tokens[self.prompt_length :]

    @property
    def wants_prompt(self) -> bool:
        """Whether the log-probabilities of the prompt's tokens are wanted, so that all of it must be computed."""
        return self.score or self.params.prompt_logprobs is not None

    @property
    def only_read(self) -> bool:
        """Whether nothing is generated: the log-probabilities of the prompt are all that is wanted."""
        return self.wants_prompt and self.limit == self.prompt_length

    @property
    def turn(self) -> tuple[int, int]:
        """Sorts those who wait: higher priority first, then first come."""
        return (-self.priority, self.arrival)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A span of one sequence's tokens to run in this step."""

    sequence: Sequence
    start: int
    count: int
    draft: tuple[int, ...] = ()
    """Guesses that run behind it; only where the chunk is complete."""

    @property
    def end(self) -> int:
        """Position after the last known token."""
        return self.start + self.count

    @property
    def stop(self) -> int:
        """Position after the last token that runs, guesses included."""
        return self.end + len(self.draft)

    @property
    def complete(self) -> bool:
        """True where the chunk reaches the last known token, so that the next one can be chosen."""
        return self.end == len(self.sequence.tokens)

    @property
    def ids(self) -> list[int]:
        """The tokens to run."""
        return [*self.sequence.tokens[self.start : self.end], *self.draft]


class Scheduler:
    """By priority, then first come, within three bounds: sequences at once, tokens in a step, blocks in the pool."""

    def __init__(
        self, pool: BlockPool, *, max_running: int, token_budget: int, score_budget: int, prefix_cache: bool = True
    ) -> None:
        self.pool = pool
        self.max_running = max_running
        self.token_budget = max(token_budget, max_running)
        self.score_budget = score_budget
        """Most tokens of one step that need a full row of logits each; bounds the memory of scoring."""
        self.prefix_cache = prefix_cache
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.reused = 0
        """Tokens that were found in the pool and not computed again."""
        self.arrivals = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; it must fit into an empty pool."""
        assert sequence.limit <= self.pool.tokens
        self.arrivals += 1
        sequence.arrival = self.arrivals
        insort(self.waiting, sequence, key=lambda one: one.turn)

    def remove(self, ids: Iterable[str]) -> list[Sequence]:
        """Take sequences out wherever they are, free their blocks, and return those that were found."""
        wanted = set(ids)
        found = [sequence for sequence in [*self.running, *self.waiting] if sequence.id in wanted]
        for sequence in found:
            self.pool.release(sequence.blocks)
        self.running = [sequence for sequence in self.running if sequence.id not in wanted]
        self.waiting = [sequence for sequence in self.waiting if sequence.id not in wanted]
        return found

    def overdue(self, now: float) -> list[str]:
        """Return the ids of those whose deadline has passed."""
        everyone = [*self.running, *self.waiting]
        return [one.id for one in everyone if one.deadline is not None and one.deadline <= now]

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
            self._reuse(sequence)
            chunk = self._chunk(sequence, budget, score_budget)
            # The whole prompt must fit, not only this chunk: two half-admitted ones could wait for each other's blocks.
            if self._waits(chunk, chunks):
                self._restart(sequence)
                break
            if not chunk.count or not self.pool.grow(sequence.blocks, len(sequence.tokens)):
                self._restart(sequence)
                break
            self.reused += sequence.computed
            if not sequence.cached:
                sequence.cached = min(sequence.computed, sequence.prompt_length)
            self.running.append(self.waiting.pop(0))
            chunks.append(chunk)
            budget, score_budget = self._spend(chunk, budget, score_budget)
        return chunks

    def advance(self, chunk: Chunk, accepted: int = 0) -> None:
        """Note that a chunk went through the model, and how many of its guesses were right."""
        sequence = chunk.sequence
        sequence.computed = chunk.end + accepted
        size = self.pool.block_size
        filled = range(chunk.start // size, sequence.computed // size)
        if self.prefix_cache and filled:
            known = sequence.tokens[: sequence.computed]
            sequence.names += names_of(known, size, sequence.names, sequence.adapter.encode())
            for place in filled:
                self.pool.name(sequence.blocks[place], sequence.names[place])

    def finish(self, sequence: Sequence) -> None:
        """Take a finished sequence out and free its blocks."""
        self.running.remove(sequence)
        self.pool.release(sequence.blocks)

    def _reuse(self, sequence: Sequence) -> None:
        """Let a sequence start behind what the pool holds of its tokens; the last one is computed in any case."""
        if not self.prefix_cache:
            return
        size = self.pool.block_size
        usable = sequence.tokens[:-1]
        if sequence.wants_prompt:  # the token before the first that is told foretells it, and must be computed
            usable = usable[: sequence.params.prompt_logprobs_from - 1]
        sequence.names += names_of(usable, size, sequence.names, sequence.adapter.encode())
        sequence.computed = size * self.pool.match(sequence.blocks, sequence.names[: len(usable) // size])

    def _waits(self, chunk: Chunk, others: list[Chunk]) -> bool:
        """Tell whether a prompt that is only read had better wait for the next step, to go through it in one piece.

        Cut in two, its second half would read the first one's keys and values again, under a mask. It waits for others
        that are only read, and for nobody who streams: these would take a place in every step.
        """
        sequence = chunk.sequence
        rest = len(sequence.tokens) - sequence.computed
        whole = rest <= min(self.token_budget, self.score_budget)
        read = all(one.sequence.only_read for one in others)
        return bool(others) and sequence.only_read and whole and chunk.count < rest and read

    def _restart(self, sequence: Sequence) -> None:
        """Take back all that a sequence has in the pool."""
        self.pool.release(sequence.blocks)
        sequence.computed = 0
        sequence.draft = []
        sequence.prompt_logprobs.clear()

    def _chunk(self, sequence: Sequence, budget: int, score_budget: int) -> Chunk:
        wants = sequence.wants_prompt and sequence.computed < sequence.prompt_length
        allowed = min(budget, score_budget) if wants else budget
        count = min(len(sequence.tokens) - sequence.computed, allowed)
        complete = sequence.computed + count == len(sequence.tokens)
        # A guess is worth its place only where there is room for it, and for the token behind it, in the answer.
        room = min(allowed - count, sequence.limit - len(sequence.tokens) - 1)
        draft = tuple(sequence.draft[:room]) if complete and room > 0 else ()
        return Chunk(sequence, sequence.computed, count, draft)

    def _spend(self, chunk: Chunk, budget: int, score_budget: int) -> tuple[int, int]:
        size = chunk.stop - chunk.start
        return budget - size, score_budget - (size if chunk.sequence.wants_prompt else len(chunk.draft))

    def _make_room(self, chunk: Chunk) -> bool:
        """Give the chunk its blocks, pushing out who is least urgent where needed; False if that was its own."""
        while not self.pool.grow(chunk.sequence.blocks, chunk.stop):
            last = max(self.running, key=lambda sequence: sequence.turn)
            self.running.remove(last)
            self._restart(last)
            insort(self.waiting, last, key=lambda one: one.turn)
            self.preemptions += 1
            if last is chunk.sequence:
                return False
        return True
