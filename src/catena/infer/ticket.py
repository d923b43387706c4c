"""What the engine keeps for each request besides its sequence: who waits for it, and what was told so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from catena.core.generate import Completion, Delta, FinishReason
from catena.infer.scheduler import Sequence
from catena.infer.text import TextStream

OnDelta = Callable[[Delta], None]


@dataclass(eq=False, slots=True)
class Ticket:
    """A sequence with the one who waits for it."""

    sequence: Sequence
    request_id: str
    """What the caller calls it. The sequence's own id is unique in the engine."""
    on_delta: OnDelta
    text: TextStream | None
    """None where only the whole answer is wanted and no stop string: it is decoded once, at the end."""
    submitted: bool
    told: int = 0
    """Tokens of the answer that deltas gave out."""

    def delta(self, text: str, completion: Completion | None = None) -> Delta:
        """Return new text with the tokens since the last delta."""
        generated = self.sequence.generated
        new, entries = generated[self.told :], self.sequence.logprobs[self.told :]
        self.told = len(generated)
        return Delta(text, completion, tuple(new), tuple(entries))

    def last(self, rest: str, text: str, reason: FinishReason) -> Delta:
        """Return the last delta, with the whole answer."""
        sequence = self.sequence
        completion = Completion(
            request_id=self.request_id,
            text=text,
            token_ids=tuple(sequence.generated),
            finish_reason="stop" if self.text is not None and self.text.stopped else reason,
            prompt_tokens=sequence.prompt_length,
            logprobs=tuple(entry.logprob for entry in sequence.prompt_logprobs) if sequence.score else (),
            token_logprobs=tuple(sequence.logprobs),
            prompt_logprobs=tuple(sequence.prompt_logprobs),
            cached_tokens=sequence.cached,
        )
        return self.delta(rest, completion)


@dataclass(slots=True)
class Counters:
    """What the engine has done since it was opened."""

    requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cancelled: int = 0
    late: int = 0
    """Requests whose deadline passed."""
    failed: int = 0
    guessed: int = 0
    """Tokens that were guessed (speculation)."""
    guessed_right: int = 0
    steps: int = 0
    seconds: float = 0.0

    def stats(self) -> dict[str, float]:
        """Return them by the names of metrics."""
        return {f"{name}_total": value for name, value in asdict(self).items()}
