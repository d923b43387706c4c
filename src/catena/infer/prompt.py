"""From a request to a sequence: render messages, tokenize, check the numbers. Every refusal names them.

The first station of a request, in the caller's thread: a bad request never reaches the engine.
"""

from __future__ import annotations

import copy
import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence as Tokens
from typing import Any

from catena.core.errors import UsageError
from catena.core.generate import Message, Request, SamplingParams
from catena.infer.scheduler import Sequence
from catena.models.chat import encode_prompt

MOST_LOGPROBS = 20
"""Likeliest tokens that one place may report: OpenAI's bound."""


class Prompter:
    """Makes sequences of a model's requests. Safe for several threads."""

    def __init__(
        self, tokenizer: Any, context: int, vocabulary: int, adapter: Callable[[str], str] = lambda name: name
    ) -> None:
        # A copy: to encode, transformers sets flags of the tokenizer, while the engine's thread decodes with it.
        self._tokenizer = copy.deepcopy(tokenizer)
        self._lock = threading.Lock()
        self.context = context
        self.vocabulary = vocabulary
        """Rows of the embedding; a token id must be below."""
        self._adapter = adapter
        """Name of an adapter to the key of the one that has it now."""

    def sequence(self, request: Request, *, score: bool = False) -> Sequence:
        """Tokenize and check; raises `UsageError` for what the model cannot answer."""
        if not score:
            check_params(request.params, self.context, self.vocabulary)
        tokens = self.tokens(request.prompt)
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
            random=random.Random(seed) if seed is not None else random.Random(),
        )

    def tokens(self, prompt: str | Tokens[Message] | Tokens[int]) -> list[int]:
        """Return the token ids of text, of a conversation (by the model's chat template), or of ids given as such."""
        if not prompt:
            raise UsageError("the prompt is empty")
        _refuse_half_characters([prompt] if isinstance(prompt, str) else prompt)
        if isinstance(prompt, str):
            with self._lock:
                tokens = list(self._tokenizer(prompt)["input_ids"])
        elif all(isinstance(part, Message) for part in prompt):
            with self._lock:
                tokens = encode_prompt(self._tokenizer, [part for part in prompt if isinstance(part, Message)])
        else:
            tokens = [part for part in prompt if isinstance(part, int) and 0 <= part < self.vocabulary]
            if len(tokens) != len(prompt):
                raise UsageError(f"a prompt of token ids holds something that is no id from 0 to {self.vocabulary - 1}")
        if not tokens:
            raise UsageError("the prompt has no tokens")
        return tokens


def _refuse_half_characters(parts: Iterable[str | Message | int]) -> None:
    for part in parts:
        text = part.content if isinstance(part, Message) else part
        try:
            if isinstance(text, str):
                text.encode()
        except UnicodeEncodeError as error:
            raise UsageError("the prompt has half a character (a lone surrogate), which is no text") from error


def check_params(params: SamplingParams, context: int, vocabulary: int) -> None:
    """Raise `UsageError` for a value out of range."""
    if params.max_tokens < 1:
        raise UsageError(f"max_tokens must be at least 1, not {params.max_tokens}")
    if params.max_tokens > context:
        raise UsageError(f"max_tokens is {params.max_tokens}; the context is {context} tokens, prompt included")
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
    for name in ("logprobs", "prompt_logprobs"):
        value = getattr(params, name)
        if value is not None and not 0 <= value <= MOST_LOGPROBS:
            raise UsageError(f"{name} must be from 0 to {MOST_LOGPROBS}, not {value}")
