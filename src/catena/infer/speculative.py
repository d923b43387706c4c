"""Speculation: guess the next tokens cheaply, and let the model check several of them in one step.

A guess is right where it equals the token that the engine chooses at that place, by the same logits and the same draw
as without guessing. So an answer never depends on the guesses, greedy or sampled; only the number of steps does. (For
a guess that is certain of itself this accepts as often as the rejection rule of arXiv 2211.17192.)
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any, Protocol

from catena.core.errors import UsageError
from catena.infer.capacity import EngineConfig
from catena.infer.sampler import adjusts
from catena.infer.scheduler import Chunk, Scheduler, Sequence
from catena.infer.unpaged import runner_for

LONGEST, SHORTEST = 4, 2
"""Tokens at the end of a text that are looked up in what came before."""


class Drafter(Protocol):
    """Guesses for sequences that decode."""

    def propose(self, sequences: Many[Sequence], scheduler: Scheduler) -> None:
        """Set `draft` of each sequence."""
        ...

    def follow(self, chunks: Many[Chunk]) -> None:
        """See the chunks that the model just ran."""
        ...

    def drop(self, sequence_id: str) -> None:
        """Forget a sequence that left."""
        ...


class NgramDrafter:
    """What followed the last time the text ended like this (prompt lookup): good where answers quote the prompt."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._seen: dict[str, tuple[dict[tuple[int, ...], int], int]] = {}
        """Sequence to (n-gram to the position after its latest but last occurrence, tokens read)."""

    def propose(self, sequences: Many[Sequence], scheduler: Scheduler) -> None:
        """Look up the end of each text in the text before it."""
        for sequence in sequences:
            sequence.draft = self._lookup(sequence.id, sequence.tokens)

    def _lookup(self, key: str, tokens: list[int]) -> list[int]:
        index, read = self._seen.get(key, ({}, 0))
        # Up to the last token but one: the end itself must not be found as its own earlier occurrence.
        for end in range(max(read, SHORTEST), len(tokens)):
            for size in range(SHORTEST, min(LONGEST, end) + 1):
                index[tuple(tokens[end - size : end])] = end
        self._seen[key] = (index, len(tokens))
        for size in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
            found = index.get(tuple(tokens[-size:]))
            if found is not None:
                return tokens[found : found + self.count]
        return []

    def follow(self, chunks: Many[Chunk]) -> None:
        """Nothing is computed here."""

    def drop(self, sequence_id: str) -> None:
        """Forget its n-grams."""
        self._seen.pop(sequence_id, None)


class ModelDrafter:
    """A small model of the same vocabulary guesses greedily. Its keys and values lie in blocks of the same numbers."""

    def __init__(self, runner: Any, count: int) -> None:
        self.runner, self.count = runner, count

    def propose(self, sequences: Many[Sequence], scheduler: Scheduler) -> None:
        """Guess token after token, for all sequences together."""
        for sequence in sequences:
            sequence.draft = []
        ready = [
            sequence
            for sequence in sequences
            if scheduler.pool.grow(sequence.blocks, len(sequence.tokens) + self.count)
        ]
        for _ in range(self.count if ready else 0):
            # What was guessed before runs again: so few tokens cost a small model nothing, and keep the cache simple.
            chunks = [Chunk(one, len(one.tokens) - 1, 1, tuple(one.draft)) for one in ready]
            output = self.runner.run(chunks)
            best = output.logits.argmax(dim=-1).tolist()
            at = -1
            for chunk in output.sampled:
                at += 1 + len(chunk.draft)
                chunk.sequence.draft.append(best[at])

    def follow(self, chunks: Many[Chunk]) -> None:
        """Compute its own keys and values of what the model ran."""
        self.runner.run(chunks)

    def drop(self, sequence_id: str) -> None:
        """Nothing is kept by sequence: blocks are the scheduler's."""


def open_drafter(config: EngineConfig, runner: Any, draft: Any, blocks: int) -> Drafter | None:
    """Return the drafter that the config asks for, or None where there is none, or the model cannot take a guess back.

    Raises `UsageError` for a draft without a draft model, or with one of another vocabulary or that cannot be paged.
    """
    if config.speculation == "none" or not runner.paged:
        return None
    if config.speculation == "ngram":
        return NgramDrafter(config.draft_tokens)
    if draft is None:
        raise UsageError("speculation with a draft needs a model to draft with", hint="Give draft_model.")
    own, other = (model.get_input_embeddings().weight.shape[0] for model in (runner.model, draft))
    if own != other:
        raise UsageError(f"the draft model has {other} tokens, the model {own}: they must share a tokenizer")
    guesser = runner_for(draft)
    if not guesser.paged:
        raise UsageError(f"a {type(draft).__name__} cannot draft: its cache cannot be paged")
    guesser.allocate(blocks, config.block_size)
    return ModelDrafter(guesser, config.draft_tokens)


def guessable(sequence: Sequence) -> bool:
    """Whether a sequence decodes, and its logits do not depend on what is guessed."""
    return not sequence.score and len(sequence.tokens) - sequence.computed == 1 and not adjusts(sequence)
