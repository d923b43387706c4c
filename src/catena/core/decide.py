"""Typed decisions: the probability of each allowed answer, read off a generator instead of parsed from what it writes.

A question is a prompt and the answers that it allows. Each answer is scored as the whole reply: the log-probabilities
of its tokens, with the end after it, added up. Softmax over the allowed answers gives their probabilities. Nothing is
generated, and nothing is sampled: the same question has the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from catena.core.errors import UsageError
from catena.core.generate import Codec, Completion, Generator, Message, Request, SamplingParams


def answer_requests(
    codec: Codec, prompt: str | Sequence[Message], answers: Sequence[str], *, id: str = "", adapter: str = ""
) -> tuple[list[Request], int]:
    """Return a request that scores each answer, and the number of tokens that stand before all of them.

    Raises `UsageError` for fewer than two answers, an empty one, or two with the same text.
    """
    if len(answers) < 2:
        raise UsageError("a decision needs at least two answers")
    if len(set(answers)) != len(answers):
        raise UsageError("the answers of a decision must differ in their text")
    before = codec.tokens(prompt)
    end = [] if codec.end is None else [codec.end]
    params = SamplingParams(max_tokens=0, prompt_logprobs=0, prompt_logprobs_from=len(before))
    requests = []
    for number, answer in enumerate(answers):
        tokens = codec.continuation(answer)
        if not tokens:
            raise UsageError("an answer of a decision is empty")
        requests.append(Request(f"{id}-{number}", [*before, *tokens, *end], params, adapter=adapter))
    return requests, len(before)


def probabilities(completions: Sequence[Completion]) -> list[float]:
    """Return the probability of each answer from the scored requests, in their order; they add up to 1."""
    sums = [math.fsum(one.logprob for one in completion.prompt_logprobs) for completion in completions]
    best = max(sums)
    weights = [math.exp(one - best) for one in sums]
    total = math.fsum(weights)
    return [one / total for one in weights]


def decide(
    generator: Generator, codec: Codec, prompt: str | Sequence[Message], answers: Sequence[str], *, adapter: str = ""
) -> dict[str, float]:
    """Return the probability of each answer to a prompt."""
    requests, _ = answer_requests(codec, prompt, answers, adapter=adapter)
    found = {one.request_id: one for one in generator.generate(requests)}
    return dict(zip(answers, probabilities([found[one.id] for one in requests]), strict=True))
