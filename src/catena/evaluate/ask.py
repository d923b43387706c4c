"""Asking: prompts to answers and log-likelihoods, through a cache of what this model has answered before.

    prompts -> (not in the cache) -> Generator -> cache -> answers in the order of the prompts

Each answer is written down as it comes, so that a run that was killed goes on, and another task or a larger limit asks
only what is new. Everything that is not known yet goes to the generator at once: it makes the batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator as ClosingGenerator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from catena.core.digest import digest_of
from catena.core.errors import DataError, RemoteError, UsageError
from catena.core.events import Events
from catena.core.generate import Codec, Completion, Generator, HasCodec, Message, Request, SamplingParams

Prompt = str | tuple[Message, ...]
WAVE = 256
"""Questions whose first choices are read together before their second ones: these find the question in the cache."""
FLUSH_EVERY = 16
LEAST_PRIMED, LEAST_SHARED = 8, 64
"""From so many requests and so many tokens in common on, a beginning is read by itself first."""


class Written(NamedTuple):
    """A written answer."""

    text: str
    finish_reason: str
    tokens: int


class Likelihood(NamedTuple):
    """Of a text that goes on after another."""

    logprob: float
    """Natural, the sum over its tokens."""
    tokens: int
    greedy: bool = False
    """Whether each of its tokens was the likeliest, where that was asked."""


class Answers:
    """What a model has answered, by the digest of what was asked: a file of JSON lines, only ever appended to."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, list[Any]] = {}
        self._waiting: list[bytes] = []
        self.found = 0
        """Answers that were known already."""
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                key, value = orjson.loads(line)
            except (orjson.JSONDecodeError, ValueError, TypeError):
                continue  # a line that a kill cut short
            self._known[key] = value
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            self._waiting.append(b"\n")

    def get(self, key: str) -> list[Any] | None:
        """Return an answer, if it is known."""
        value = self._known.get(key)
        self.found += value is not None
        return value

    def put(self, key: str, value: Sequence[Any]) -> None:
        """Keep an answer."""
        self._known[key] = list(value)
        self._waiting.append(orjson.dumps([key, list(value)]) + b"\n")
        if len(self._waiting) >= FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Write down what was kept, in one write."""
        if self._path is not None and self._waiting:
            with self._path.open("ab") as stream:
                stream.write(b"".join(self._waiting))
        self._waiting.clear()


@dataclass
class Asker:
    """A model, asked through its cache."""

    generator: Generator
    answers: Answers
    events: Events
    context: int = 0
    """Longest sequence of the model, in tokens; 0 where it is not known."""
    start: Sequence[int] = ()
    """The token in front of a text that nothing stands before."""
    primes: bool = False
    """Read a beginning that all prompts share by itself first: every one of them then finds it in the cache."""
    asked: int = 0
    """Requests that went to the generator."""
    cut: int = 0
    """Prompts whose beginning was left out, because they were longer than the context."""

    @property
    def codec(self) -> Codec:
        """How the model reads text; raises `UsageError` for a generator that does not tell."""
        if not isinstance(self.generator, HasCodec) or self.generator.codec is None:
            raise UsageError(
                "log-likelihoods need the model's tokenizer, which this generator does not have",
                hint="Use the native engine, or give it the folder of the tokenizer.",
            )
        return self.generator.codec

    def close(self) -> None:
        """Write down what is known, and close the generator."""
        self.answers.flush()
        self.generator.close()

    # -- written answers ---------------------------------------------------------------------------------------------

    def write(self, prompts: Sequence[tuple[Prompt, SamplingParams]], label: str) -> list[Written]:
        """Return the answer to each prompt."""
        keys = [digest_of(["write", _plain(prompt), _asdict(params)])[:32] for prompt, params in prompts]
        requests = {
            key: Request(key, *self._fitting(prompt, params))
            for key, (prompt, params) in zip(keys, prompts, strict=True)
            if self.answers.get(key) is None
        }
        for completion in self._ask(requests, label):
            refuse_failed(completion)
            self.answers.put(
                completion.request_id, Written(completion.text, completion.finish_reason, completion.generated)
            )
        return [Written(*self._known(key)) for key in keys]

    def _fitting(self, prompt: Prompt, params: SamplingParams) -> tuple[Any, SamplingParams]:
        """Leave room for the answer: the prompt loses its beginning where it is too long, the answer a half at most."""
        if not self.context or not isinstance(self.generator, HasCodec) or self.generator.codec is None:
            return prompt, params
        tokens = self.generator.codec.tokens(prompt)
        room = self.context - min(params.max_tokens, self.context // 2)
        asked: Any = prompt
        if len(tokens) > room:
            self.cut += 1
            asked = tokens = tokens[-room:]
        most = min(params.max_tokens, self.context - len(tokens))
        return asked, params if most == params.max_tokens else replace(params, max_tokens=most)

    # -- log-likelihoods ---------------------------------------------------------------------------------------------

    def likelihoods(
        self, pairs: Sequence[Sequence[tuple[Prompt, str]]], label: str, *, greedy: bool = False
    ) -> list[list[Likelihood]]:
        """Return, for each question, the log-likelihood of each of its (prompt, continuation).

        `greedy` asks as well whether each continuation is what the model would have written.
        """
        asked = [self._question(choices) for choices in pairs]
        how = ["greedy"] if greedy else []
        keys = [[digest_of(["tokens", ids, first, *how])[:32] for ids, first in choices] for choices in asked]
        flat = {
            key: ids_first
            for start in range(0, len(asked), WAVE)
            for at in range(max(map(len, asked[start : start + WAVE]), default=0))
            for key, ids_first in [
                (keys[number][at], asked[number][at])
                for number in range(start, min(start + WAVE, len(asked)))
                if at < len(asked[number])
            ]
        }
        self._score(flat, label, greedy=greedy)
        return [[Likelihood(*self._known(key)) for key in row] for row in keys]

    def windows(self, texts: Sequence[Sequence[tuple[list[int], int]]], label: str) -> list[list[Likelihood]]:
        """Return, for each text, the log-likelihood of each of its windows (tokens, first that counts)."""
        keys = [[digest_of(["tokens", ids, first])[:32] for ids, first in windows] for windows in texts]
        every = {
            key: one for row, windows in zip(keys, texts, strict=True) for key, one in zip(row, windows, strict=True)
        }
        self._score(every, label)
        return [[Likelihood(*self._known(key)) for key in row] for row in keys]

    def _question(self, choices: Sequence[tuple[Prompt, str]]) -> list[tuple[list[int], int]]:
        """Return the tokens of each (prompt, continuation) and where what counts begins.

        A tokenizer may join the end of a prompt and the beginning of a continuation: what counts then begins in front
        of that, for every continuation of the prompt alike. Too long ones lose their beginning. Raises `DataError` for
        a continuation without tokens: nothing is likelier than nothing.
        """
        pairs = [self._pair(prompt, text) for prompt, text in choices]
        least: dict[Prompt, int] = {}
        for (prompt, _), (_, first) in zip(choices, pairs, strict=True):
            least[prompt] = min(first, least.get(prompt, first))
        found = []
        for (prompt, text), (tokens, _) in zip(choices, pairs, strict=True):
            before = self.start if least[prompt] == 0 else ()
            ids, first = [*before, *tokens], max(least[prompt] + len(before), 1)
            if len(ids) <= first:
                raise DataError(f"the choice {text!r} has no tokens: its likelihood says nothing")
            if self.context and len(ids) > self.context:
                self.cut += 1
                first = max(first - (len(ids) - self.context), 1)
                ids = ids[-self.context :]
            found.append((ids, first))
        return found

    def _pair(self, prompt: Prompt, text: str) -> tuple[list[int], int]:
        """Return the tokens of both, and how many of them are the prompt's alone."""
        codec = self.codec
        if isinstance(prompt, str):
            stripped = prompt.rstrip()
            moved = prompt[len(stripped) :]  # spaces belong to the word behind them, as tokenizers see it
            if stripped:
                before, whole = codec.tokens(stripped), codec.tokens(stripped + moved + text)
                return whole, shared(before, whole)
            return codec.continuation(moved + text), 0
        before = codec.tokens(prompt)
        return [*before, *codec.continuation(text)], len(before)

    def _score(self, wanted: dict[str, tuple[list[int], int]], label: str, *, greedy: bool = False) -> None:
        requests = {}
        for key, (ids, first) in wanted.items():
            if self.answers.get(key) is not None:
                continue
            params = SamplingParams(max_tokens=0, prompt_logprobs=int(greedy), prompt_logprobs_from=first)
            requests[key] = Request(key, ids, params)
        for completion in self._ask(requests, label):
            refuse_failed(completion)
            told = completion.prompt_logprobs
            total = sum(one.logprob for one in told)
            if not isfinite(total):
                raise DataError("the model's log-probabilities are no finite numbers", hint="Its weights may hold NaN.")
            likeliest = greedy and all(one.top and one.top[0][0] == one.token_id for one in told)
            self.answers.put(completion.request_id, Likelihood(total, len(told), likeliest))

    # -- both --------------------------------------------------------------------------------------------------------

    def _ask(self, requests: dict[str, Request], label: str) -> Iterator[Completion]:
        progress = self.events.progress(label, len(requests), "requests")
        self.asked += len(requests)
        if self.primes and len(requests) > LEAST_PRIMED:
            self._prime([request.prompt for request in itertools.islice(requests.values(), 2)])
        answered: Iterable[Completion] = self.generator.generate(requests.values()) if requests else ()
        try:
            with closing(_stream(answered)) as stream:
                for completion in stream:
                    yield completion
                    progress.advance()
        finally:
            self.answers.flush()
        progress.finish()

    def _prime(self, prompts: Sequence[Any]) -> None:
        """Let the engine read what the first two prompts have in common, where that is long."""
        tokens = [self.codec.tokens(prompt) for prompt in prompts]
        common = shared(*tokens)
        if common >= LEAST_SHARED:
            params = SamplingParams(max_tokens=0, prompt_logprobs=0, prompt_logprobs_from=common - 1)
            for _ in self.generator.generate([Request("beginning", tokens[0][:common], params)]):
                pass

    def _known(self, key: str) -> list[Any]:
        value = self.answers._known.get(key)
        if value is None:
            raise RemoteError("a request was not answered", hint="Run it again: what was answered is kept.")
        return value


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def cut_windows(count: int, window: int, before: int) -> list[tuple[int, int, int]]:
    """Cut `count` tokens into (start, first that counts, end), each counted once: the last one reaches back to be full.

    `before` tokens (0 or 1) stand in front of the first; numbers are places in the text with them. As
    lm-evaluation-harness cuts them, with one token less: a model is shown `window` tokens and no more.
    """
    total = count + before
    cuts = []
    done = 1
    while done < total:
        end = min(done + window - 1, total)
        cuts.append((max(end - window, 0), done, end))
        done = end
    return cuts


def _stream(answered: Iterable[Completion]) -> ClosingGenerator[Completion, None, None]:
    yield from answered


def refuse_failed(completion: Completion) -> None:
    """Raise for an answer that is none: it must not be scored, nor kept."""
    if completion.finish_reason in ("error", "cancelled", "deadline"):
        why = completion.error or RemoteError(f"a request ended with the reason {completion.finish_reason!r}")
        raise why


def _plain(prompt: Prompt) -> Any:
    return prompt if isinstance(prompt, str) else [[one.role, one.content] for one in prompt]


def _asdict(params: SamplingParams) -> dict[str, Any]:
    return {key: value for key, value in asdict(params).items() if value is not None and key != "logit_bias"}
