"""Generators: anything that answers prompts. The protocols that evaluation, serving and chat share.

The native engine is one of them; so is any OpenAI URL. They are found by name (`GENERATORS`), never imported by a
sibling domain.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from catena.core.errors import CatenaError
from catena.core.registry import Registry

FinishReason = Literal["stop", "length", "cancelled", "error", "deadline"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What else a chat template may ask for: `tool_calls`, `tool_call_id`, `name`."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens. Temperature 0 is greedy."""

    max_tokens: int = 128
    """0 generates nothing: the prompt is read, and its log-probabilities are told (`prompt_logprobs`)."""
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    """Tokens less likely than this share of the likeliest are left out (arXiv 2407.01082)."""
    presence_penalty: float = 0.0
    """Taken off the logit of each token that the answer already has (OpenAI's definition)."""
    frequency_penalty: float = 0.0
    """Taken off as often as the answer already has the token."""
    repetition_penalty: float = 1.0
    """Divides positive logits, multiplies negative ones, of tokens in prompt and answer (arXiv 1909.05858)."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id to what is added to its logit."""
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_end: bool = False
    """Go on after the model's end token, to `max_tokens`."""
    logprobs: int | None = None
    """Report the log-probability of each token of the answer, and of so many of the likeliest; None: no report."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""
    prompt_logprobs_from: int = 1
    """The first token of the prompt that is told; what stands before it may come from the prefix cache."""
    grammar: Grammar | None = None
    """What the answer's text must look like."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """A constraint on the text of an answer."""

    kind: Literal["json_schema", "json", "regex", "choice", "tools"]
    value: str = ""
    """The schema as JSON text; the regular expression; the choices as a JSON list; nothing for `json`. For `tools`
    a JSON object: `tools` (each with `name` and `parameters`, a schema), `many` (more than one call), `free` (text
    before, between and after calls, or no call at all), `begin` and `end` (what stands around a call)."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt: messages (the model's chat template is applied), or text, or token ids."""

    id: str
    prompt: str | Sequence[Message] | Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    deadline: float | None = None
    """Seconds from its arrival after which nobody wants the answer any more; it ends with the reason `deadline`."""
    adapter: str = ""
    """Name of the loaded adapter (LoRA) to answer with; empty: the model itself."""
    priority: int = 0
    """Higher is served first; equals in the order of their arrival."""
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    """Functions that the model may call, in OpenAI's form; for a prompt of messages, rendered by the template."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with its natural log-probability, and the likeliest tokens at its place, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to one request."""

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    logprobs: tuple[float, ...] = ()
    """`score` fills it: natural log-probability of every prompt token after the first."""
    token_logprobs: tuple[TokenLogprob, ...] = ()
    """Of the answer's tokens, where `params.logprobs` asks for it."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """Of the prompt's tokens from `params.prompt_logprobs_from` on, where `params.prompt_logprobs` asks for it."""
    cached_tokens: int = 0
    """Tokens of the prompt whose keys and values were taken from the prefix cache."""
    completion_tokens: int | None = None
    """How many tokens the answer has, where `token_ids` does not hold them all: another engine counts them only."""
    error: CatenaError | None = field(default=None, compare=False)
    """Why, where the reason is `error`, as far as it is known."""

    @property
    def generated(self) -> int:
        """Tokens of the answer."""
        return len(self.token_ids) if self.completion_tokens is None else self.completion_tokens


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed answer; the last one carries `completion`."""

    text: str
    completion: Completion | None = None
    token_ids: tuple[int, ...] = ()
    """The tokens since the last delta."""
    token_logprobs: tuple[TokenLogprob, ...] = ()


class Generator(Protocol):
    """Answers many requests at once, in any order; each completion carries its request's id."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield a completion for each request, as they finish."""
        ...

    def score(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield, for each request, the log-probabilities of its own tokens; nothing is generated."""
        ...

    def close(self) -> None:
        """Free what it holds (memory, threads, child processes)."""
        ...


@runtime_checkable
class StreamingGenerator(Protocol):
    """A generator that a server can put in front of people: it streams and cancels."""

    def submit(self, request: Request, on_delta: Callable[[Delta], None]) -> None:
        """Take a request; `on_delta` is called from the engine's thread. Raises `UsageError` for a bad request."""
        ...

    def cancel(self, request_id: str) -> None:
        """Stop a request; its last delta says `cancelled`. Unknown ids are ignored."""
        ...

    def stats(self) -> Mapping[str, float]:
        """Return counters: running, waiting, tokens, seconds."""
        ...

    def close(self) -> None:
        """End the engine's thread."""
        ...


class Codec(Protocol):
    """Text to tokens and back, as a model sees them."""

    ends: Collection[int]
    """Tokens that end an answer."""
    end: int | None
    """The one of them that a conversation has."""

    @property
    def takes_tools(self) -> bool:
        """Whether its chat template shows tools to the model."""
        ...

    def tokens(
        self, prompt: str | Sequence[Message] | Sequence[int], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """Return the token ids of a prompt, as the model would read it. Raises `UsageError`."""
        ...

    def continuation(self, text: str) -> list[int]:
        """Return the token ids of a text that goes on after something: no token in front of it, no end."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, control tokens left out. Raises `UsageError` for an id that is none."""
        ...

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """Return what each token stands for in UTF-8; a token may be a part of a character."""
        ...


@runtime_checkable
class HasCodec(Protocol):
    """A generator that tells how it reads text."""

    codec: Codec


@runtime_checkable
class HasAdapters(Protocol):
    """A generator that answers with adapters beside its model."""

    @property
    def adapters(self) -> Sequence[str]:
        """Names that `Request.adapter` may say."""
        ...


@dataclass(frozen=True, slots=True)
class Embedding:
    """A text as a vector."""

    vector: tuple[float, ...]
    tokens: int


@runtime_checkable
class Embedder(Protocol):
    """A model that turns texts into vectors."""

    def embed(self, prompts: Sequence[str | Sequence[int]]) -> list[Embedding]:
        """Return the vector of each text. Raises `UsageError` for one that is empty or longer than the context."""
        ...


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text's label, and the probability of every label."""

    probabilities: Mapping[str, float]
    tokens: int

    @property
    def label(self) -> str:
        """The likeliest; of equals, the first."""
        return max(self.probabilities, key=lambda label: self.probabilities[label])


@runtime_checkable
class Labeller(Protocol):
    """A model that says which label a text has."""

    def classify(self, texts: Sequence[str]) -> list[Labelled]:
        """Return the labels of each text. Raises `UsageError` for one that is empty or longer than the context."""
        ...


class Scorer(Protocol):
    """Compares an answer with the reference; 1.0 is right, 0.0 is wrong."""

    def __call__(self, answer: str, reference: str, metadata: Mapping[str, Any]) -> float:
        """Return the score."""
        ...


# name -> "module:function"; the function takes (model folder or URL, **options) and returns a Generator.
GENERATORS = Registry(
    "generator",
    {
        "auto": "catena.infer.fitting:open_fitting",
        "native": "catena.infer.engine:open_engine",
        "seq2seq": "catena.infer.seq2seq:open_seq2seq",
        "embed": "catena.infer.embed:open_embedder",
        "classify": "catena.infer.labels:open_labeller",
        # other engines, over HTTP
        "openai": "catena.infer.backends.engines:open_url",
        "vllm": "catena.infer.backends.engines:open_vllm",
        "sglang": "catena.infer.backends.engines:open_sglang",
        "lmdeploy": "catena.infer.backends.engines:open_lmdeploy",
        "llama.cpp": "catena.infer.backends.engines:open_llama_cpp",
        "openvino": "catena.infer.backends.engines:open_openvino",
    },
)
# name -> "module:function"; the function takes (model folder, **options) and returns what it measured, as JSON.
BENCHES = Registry("benchmark", {"native": "catena.infer.bench:bench_folder"})
SCORERS = Registry(
    "scorer",
    {
        "exact": "catena.evaluate.scorers:exact",
        "contains": "catena.evaluate.scorers:contains",
    },
)
