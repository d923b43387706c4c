"""`POST /v1/completions`: text goes on, of many prompts at once. What lm-evaluation-harness scores with.

With `echo` and `logprobs` an answer tells the log-probability of every token of its prompt, and with `max_tokens` 0
nothing else. Values are told as they were computed, so that the likeliest token is found by equality.
"""

from __future__ import annotations

import codecs
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Discriminator, Field, Tag

from catena.core.generate import Completion, Delta, Request, TokenLogprob
from catena.serve.chat_wire import finite
from catena.serve.config import ServeConfig
from catena.serve.endpoint import Endpoint, Reply, good, submitted
from catena.serve.models import Target
from catena.serve.sampling import MOST_LOGPROBS, Sampled, TokenId
from catena.serve.wire import WireError, usage

Tokens = Annotated[list[TokenId], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]


def _kind(value: Any) -> str:
    """Say which of the forms of a prompt a value means to be, so that its mistakes are told in terms of that one."""
    first = value[0] if isinstance(value, list) and value else None
    if not isinstance(value, list):
        return "text"
    return "tokens" if isinstance(first, int) else "rows" if isinstance(first, list) else "texts"


Prompts = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[Tokens, Tag("tokens")]
    | Annotated[list[Text], Field(min_length=1), Tag("texts")]
    | Annotated[list[Tokens], Field(min_length=1), Tag("rows")],
    Discriminator(_kind),
]
"""One prompt or many, as text or as token ids."""


def listed(prompts: str | list[int] | list[str] | list[list[int]]) -> list[str | list[int]]:
    """Return all prompts of a request."""
    if isinstance(prompts, str):
        return [prompts]
    numbers = [one for one in prompts if isinstance(one, int)]
    return [numbers] if numbers else [one for one in prompts if not isinstance(one, int)]


DEFAULT_TOKENS = 16
"""OpenAI's default of `max_tokens` on this route."""


class CompletionRequest(Sampled):
    """The body of `POST /v1/completions`."""

    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {"suffix": ("",)}

    prompt: Prompts
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    best_of: int | None = Field(default=None, ge=1)
    """Only the value of `n`: no more are made than are given."""

    def check(self, config: ServeConfig) -> None:
        """Raise `WireError` for what is wrong between fields."""
        super().check(config)
        if self.best_of is not None and self.best_of != self.n:
            raise WireError("best_of other than n is not supported", param="best_of", code="unsupported_parameter")
        if self.stream and self.echo and self.logprobs is not None:
            raise WireError("logprobs with echo cannot be streamed", param="stream", code="unsupported_combination")
        if self.max_tokens == 0 and not self.echo:
            raise WireError("max_tokens 0 is only allowed with echo", param="max_tokens", code="invalid_value")
        if len(self.prompts) > config.max_prompts:
            raise WireError(f"prompt must have at most {config.max_prompts} prompts", param="prompt")

    @property
    def prompts(self) -> list[str | list[int]]:
        """All prompts."""
        return listed(self.prompt)


class Completions(Endpoint[CompletionRequest]):
    """The completions endpoint."""

    route = "completions"
    body = CompletionRequest

    async def answer(self, request: CompletionRequest, target: Target, reply: Reply) -> None:
        """Go on with each prompt."""
        request.check(self.config)
        prompts = request.prompts
        scored = request.echo and request.logprobs is not None
        if scored:  # the tokens are told one by one
            prompts = await self.run(lambda: [target.codec.tokens(prompt) for prompt in request.prompts])
        answer = _Answer(request, target, [int(one[0]) for one in prompts] if scored else [])
        more: dict[str, Any] = {"max_tokens": DEFAULT_TOKENS} if request.max_tokens is None else {}
        if request.logprobs is not None:
            more["logprobs"] = request.logprobs
            more |= {"prompt_logprobs": request.logprobs} if scored else {}
        requests = [
            Request(
                f"{answer.id}-{number}-{index}",
                prompt,
                request.params(self.config, target, index, **more),
                deadline=request.deadline_s,
                adapter=target.adapter,
            )
            for number, prompt in enumerate(prompts)
            for index in range(request.n)
        ]
        async with submitted(requests, target.generator, reply) as deltas:
            if request.stream:
                await _stream(answer, len(requests), deltas, reply)
            else:
                await reply.json(answer.whole(await _all(len(requests), deltas)))


async def _all(count: int, deltas: AsyncIterator[tuple[int, Delta]]) -> list[Completion]:
    done: dict[int, Completion] = {}
    async for index, delta in deltas:
        if delta.completion is not None:
            done[index] = good(delta.completion)
            if len(done) == count:
                break
    return [done[index] for index in range(count)]


async def _stream(answer: _Answer, count: int, deltas: AsyncIterator[tuple[int, Delta]], reply: Reply) -> None:
    """Send events as deltas come."""
    done: dict[int, Completion] = {}
    places = [answer.place(index) for index in range(count)]
    if answer.request.echo:
        for index in range(count):
            await reply.event(answer.chunk(index, answer.prompt_text(index)))
    async for index, delta in deltas:
        told = None
        if answer.request.logprobs is not None and delta.token_logprobs:
            told = logprobs_body(delta.token_logprobs, answer.target, delta.text, places[index])
            places[index] += len(delta.text)
        if delta.text or told:
            await reply.event(answer.chunk(index, delta.text, told))
        if delta.completion is not None:
            done[index] = good(delta.completion)
            await reply.event(answer.chunk(index, "", None, delta.completion.finish_reason))
            if len(done) == count:
                break
    if answer.request.with_usage:
        counted = usage([done[index] for index in range(count)], answer.request.n)
        await reply.event({**answer.common, "choices": [], "usage": counted})
    await reply.end()


class _Answer:
    """Builds the JSON of an answer, whole or in chunks."""

    def __init__(self, request: CompletionRequest, target: Target, firsts: Sequence[int]) -> None:
        self.request, self.target = request, target
        self._firsts = firsts
        """The first token of each prompt, where prompts are scored: nothing foretells it."""
        self.id = f"cmpl-{secrets.token_hex(12)}"
        self.common = {
            "id": self.id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": target.name,
            "system_fingerprint": target.fingerprint or None,
        }

    def prompt_text(self, index: int) -> str:
        """Return the prompt of a choice as text."""
        prompt = self.request.prompts[index // self.request.n]
        return prompt if isinstance(prompt, str) else self.target.codec.text(prompt)

    def place(self, index: int) -> int:
        """Return at which character of its text a choice's answer begins."""
        return len(self.prompt_text(index)) if self.request.echo else 0

    def whole(self, completions: list[Completion]) -> dict[str, Any]:
        """Return a `text_completion`."""
        choices = [self._choice(index, completion) for index, completion in enumerate(completions)]
        return {**self.common, "choices": choices, "usage": usage(completions, self.request.n)}

    def chunk(self, index: int, text: str, logprobs: Any = None, finish_reason: str | None = None) -> dict[str, Any]:
        """Return one event of a choice."""
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self.common, "choices": [choice], **({"usage": None} if self.request.with_usage else {})}

    def _choice(self, index: int, completion: Completion) -> dict[str, Any]:
        echo = self.request.echo
        told = None
        if self.request.logprobs is not None:
            # The end token is told as well: clients count on one entry for each token.
            if echo:
                told = self._with_prompt(index, completion)
            else:
                told = logprobs_body(completion.token_logprobs, self.target, completion.text)
        return {
            "index": index,
            "text": (self.prompt_text(index) if echo else "") + completion.text,
            "logprobs": told,
            # Where nothing was to be made, its length is what ended it.
            "finish_reason": "length" if self.request.max_tokens == 0 else completion.finish_reason,
        }

    def _with_prompt(self, index: int, completion: Completion) -> dict[str, Any]:
        unknown = TokenLogprob(self._firsts[index // self.request.n], float("nan"))
        entries = [unknown, *completion.prompt_logprobs, *completion.token_logprobs]
        told = logprobs_body(entries, self.target, self.prompt_text(index))
        told["token_logprobs"][0] = told["top_logprobs"][0] = None
        return told


def logprobs_body(entries: Sequence[TokenLogprob], target: Target, text: str, place: int = 0) -> dict[str, Any]:
    """Return log-probabilities in this route's form; `place` is the character where their `text` begins."""
    ids = [id for entry in entries for id in (entry.token_id, *(one for one, _ in entry.top))]
    names = dict(zip(ids, map(name_of, target.codec.pieces(ids)), strict=True))
    own = target.codec.pieces([entry.token_id for entry in entries])
    if own and own[0].startswith(b" ") and not text.startswith(" "):
        own[0] = own[0][1:]  # the space that many tokenizers put before a text, and take off again
    return {
        "tokens": [names[entry.token_id] for entry in entries],
        "token_logprobs": [finite(entry.logprob) for entry in entries],
        "top_logprobs": [_top(entry, names) for entry in entries],
        "text_offset": offsets(own, place),
    }


def _top(entry: TokenLogprob, names: Mapping[int, str]) -> dict[str, float]:
    """Return the likeliest tokens by name, and the one that stands there; of two with one name, the likelier."""
    told: dict[str, float] = {}
    for id, logprob in (*entry.top, (entry.token_id, entry.logprob)):
        told.setdefault(names[id], finite(logprob))
    return told


def name_of(piece: bytes) -> str:
    """Return a token as text; one that is half a character as its bytes, as OpenAI writes them."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def offsets(pieces: Sequence[bytes], place: int = 0) -> list[int]:
    """Return at which character each piece begins; one in the middle of a character, at that character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    found: list[int] = []
    for piece in pieces:
        found.append(place)
        place += len(decoder.decode(piece))
    return found
