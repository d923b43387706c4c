"""The fields of a request that say how to choose tokens, the same on all routes that generate."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import BeforeValidator, Field, model_validator

from catena.core.generate import Grammar, SamplingParams
from catena.serve.config import ServeConfig
from catena.serve.models import Target
from catena.serve.wire import Body, Part, WireError

MAX_STOPS = 4
MOST_LOGPROBS = 20

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
StopText = Annotated[str, Field(min_length=1)]


def _by_token(value: Any) -> Any:
    """Read the keys of a JSON object as token ids, where they all are."""
    if isinstance(value, dict) and all(isinstance(key, str) and key.isdecimal() for key in value):
        return {int(key): bias for key, bias in value.items()}
    return value


Bias = Annotated[dict[int, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_by_token)]


class StreamOptions(Part):
    """How to stream."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class StructuredOutputs(Part):
    """What an answer must look like, where `response_format` has no word for it: one of these. Not OpenAI's; vLLM's."""

    json_: dict[str, Any] | None = Field(default=None, alias="json")
    regex: Annotated[str, Field(min_length=1)] | None = None
    choice: Annotated[list[StopText], Field(min_length=1)] | None = None
    json_object: Literal[True] | None = None

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        if len(self.model_fields_set) != 1:
            raise ValueError("exactly one of json, regex, choice, json_object is wanted")
        return self

    def grammar(self) -> Grammar:
        """Return it as the engine takes it."""
        if self.regex is not None:
            return Grammar("regex", self.regex)
        if self.choice is not None:
            return Grammar("choice", orjson.dumps(self.choice).decode())
        if self.json_ is not None:
            return Grammar("json_schema", orjson.dumps(self.json_).decode())
        return Grammar("json")


class Sampled(Body):
    """A request whose answer is generated."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=0)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    """Not OpenAI's, but every open engine's; 0 is off."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Likewise."""
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=10)
    """Likewise; 1 is off."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: Bias = Field(default_factory=dict)
    seed: Seed | None = None
    stop: StopText | list[StopText] = Field(default_factory=list)
    stop_token_ids: list[TokenId] = Field(default_factory=list)
    """Not OpenAI's; vLLM's."""
    ignore_eos: bool = False
    """Likewise: go on after the model's end token."""
    structured_outputs: StructuredOutputs | None = None
    deadline_s: Annotated[float, Field(gt=0, le=86400)] | None = None
    """Not OpenAI's: seconds after which nobody wants the answer any more; it is stopped then, and told as 408."""
    n: int = Field(default=1, ge=1)
    # Hints for whoever runs the service; they never change an answer.
    user: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the count of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def check(self, config: ServeConfig) -> None:
        """Raise `WireError` for what is wrong between fields, or more than the server gives."""
        if self.stream_options is not None and not self.stream:
            raise WireError("stream_options is only allowed with stream", param="stream_options")
        if self.n > config.max_choices:
            raise WireError(f"n must be at most {config.max_choices}", param="n", code="invalid_value")
        if len(self.stops) > MAX_STOPS:
            raise WireError(f"stop must have at most {MAX_STOPS} texts", param="stop", code="invalid_value")

    def params(self, config: ServeConfig, target: Target, index: int = 0, **more: Any) -> SamplingParams:
        """Return the parameters of choice `index`; `more` are fields of `SamplingParams` that the route decides."""
        given = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            # Choices with one seed would all be the same answer.
            "seed": None if self.seed is None else self.seed + index,
            "grammar": self.structured_outputs.grammar() if self.structured_outputs else None,
        }
        defaults = {
            "max_tokens": min(config.max_tokens, target.context or config.max_tokens),
            "temperature": config.temperature,
        }
        values = defaults | {name: value for name, value in given.items() if value is not None} | more
        return SamplingParams(
            logit_bias=self.logit_bias,
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_end=self.ignore_eos,
            **{"stop": self.stops, **values},
        )
