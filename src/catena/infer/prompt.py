"""From a request to a sequence: render messages, tokenize, check the numbers. Every refusal names them.

The first station of a request, in the caller's thread: a bad request never reaches the engine.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any

from catena.core.errors import UsageError
from catena.core.generate import Request, SamplingParams
from catena.infer.codec import ModelCodec
from catena.infer.grammar import Grammars
from catena.infer.scheduler import Sequence

MOST_LOGPROBS = 20
"""Likeliest tokens that one place may report: OpenAI's bound."""


class Prompter:
    """Makes sequences of a model's requests. Safe for several threads."""

    def __init__(
        self, tokenizer: Any, context: int, codec: ModelCodec, adapter: Callable[[str], str] = lambda name: name
    ) -> None:
        self.context = context
        self.codec = codec
        self._grammars = Grammars(tokenizer, codec.vocabulary, codec.ends)
        self._adapter = adapter
        """Name of an adapter to the key of the one that has it now."""

    def sequence(self, request: Request, *, score: bool = False) -> Sequence:
        """Tokenize and check; raises `UsageError` for what the model cannot answer."""
        score = score or request.params.max_tokens == 0
        if not score:
            check_length(request.params, self.context)
        check_params(request.params, self.codec.vocabulary)
        tokens = self.codec.tokens(request.prompt, request.tools)
        room = self.context if score else self.context - 1
        if len(tokens) > room:
            kept = "" if score else " and must leave room for at least one token of the answer"
            raise UsageError(
                f"the prompt has {len(tokens)} tokens; the context is {self.context} tokens{kept}",
                hint="Shorten the prompt, or drop the oldest messages.",
            )
        seed = request.params.seed
        return Sequence(
            id=request.id,
            tokens=tokens,
            prompt_length=len(tokens),
            params=request.params,
            limit=len(tokens) if score else min(len(tokens) + request.params.max_tokens, self.context),
            score=score,
            priority=request.priority,
            adapter=self._adapter(request.adapter),
            deadline=None if request.deadline is None else time.monotonic() + request.deadline,
            matcher=self._grammars.matcher(request.params.grammar) if request.params.grammar and not score else None,
            random=random.Random(seed) if seed is not None else random.Random(),
        )


def check_length(params: SamplingParams, context: int) -> None:
    """Raise `UsageError` for an answer that is shorter than one token or longer than the context."""
    if params.max_tokens < 1:
        raise UsageError(f"max_tokens must be at least 1 (0: only read the prompt), not {params.max_tokens}")
    if params.max_tokens > context:
        raise UsageError(f"max_tokens is {params.max_tokens}; the context is {context} tokens, prompt included")


def check_params(params: SamplingParams, vocabulary: int) -> None:
    """Raise `UsageError` for a value out of range."""
    if not math.isfinite(params.temperature) or params.temperature < 0:
        raise UsageError(f"temperature must be 0 or more, not {params.temperature}")
    if not 0 < params.top_p <= 1:
        raise UsageError(f"top_p must be above 0 and at most 1, not {params.top_p}")
    if params.top_k < 0:
        raise UsageError(f"top_k must be 0 (off) or more, not {params.top_k}")
    if not 0 <= params.min_p <= 1:
        raise UsageError(f"min_p must be from 0 to 1, not {params.min_p}")
    for name in ("presence_penalty", "frequency_penalty"):
        value = getattr(params, name)
        if not -2 <= value <= 2:
            raise UsageError(f"{name} must be from -2 to 2, not {value}")
    if not 0 < params.repetition_penalty < math.inf:
        raise UsageError(f"repetition_penalty must be above 0, not {params.repetition_penalty}")
    for token, bias in params.logit_bias.items():
        if not 0 <= token < vocabulary:
            raise UsageError(f"logit_bias names the token {token}; there are those from 0 to {vocabulary - 1}")
        if not math.isfinite(bias) or not -100 <= bias <= 100:
            raise UsageError(f"logit_bias of the token {token} must be from -100 to 100, not {bias}")
    if params.prompt_logprobs_from < 1:
        raise UsageError(f"prompt_logprobs_from must be at least 1, not {params.prompt_logprobs_from}")
    for name in ("logprobs", "prompt_logprobs"):
        value = getattr(params, name)
        if value is not None and not 0 <= value <= MOST_LOGPROBS:
            raise UsageError(f"{name} must be from 0 to {MOST_LOGPROBS}, not {value}")
