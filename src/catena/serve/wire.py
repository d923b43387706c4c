"""The OpenAI schema, as far as it is spoken here: requests are checked, answers are built. No I/O.

Every field of the chat schema either works or is refused by name, so that nobody believes that something was done which
was not. `null` counts as absent, as it does at OpenAI.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from catena.core.errors import UsageError, did_you_mean
from catena.core.generate import Completion, Message

MAX_STOPS = 4

# Known to the schema, not to us: the values that ask for nothing, so that clients which send defaults are not refused.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "logprobs": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": ("in_memory",),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none",),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# Of an answer that a client sends back as part of the next question: present, and empty.
NEUTRAL_IN_MESSAGE = ("name", "refusal", "audio", "annotations", "function_call", "tool_calls", "tool_call_id")


class WireError(UsageError):
    """A request that is refused, with the field's name and OpenAI's code for it."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code = param, code
        self.http_status = status


class TextPart(BaseModel):
    """A piece of a message's content; only text is taken."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class WireMessage(BaseModel):
    """One message of a request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def message(self) -> Message:
        """Return it in Catena's own form; `developer` is OpenAI's newer word for `system`."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class StreamOptions(BaseModel):
    """How to stream."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _by_token(value: Any) -> Any:
    """Read the keys of a JSON object as token ids, where they all are."""
    if isinstance(value, dict) and all(isinstance(key, str) and key.isdecimal() for key in value):
        return {int(key): bias for key, bias in value.items()}
    return value


class ChatRequest(BaseModel):
    """The body of `POST /v1/chat/completions`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str
    messages: list[WireMessage] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    """Not OpenAI's, but every open engine's; 0 is off."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Likewise."""
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    """Likewise; 1 is off."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: Annotated[dict[int, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_by_token)] = Field(
        default_factory=dict
    )
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_listed)] = Field(
        default_factory=list, max_length=MAX_STOPS
    )
    n: int = Field(default=1, ge=1)
    # Hints for whoever runs the service; they never change an answer.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


def parse_chat(body: Any) -> ChatRequest:
    """Check a decoded body; raises `WireError` for the first mistake, with the field's path."""
    if not isinstance(body, dict):
        raise WireError("the body must be a JSON object")
    given = {key: value for key, value in body.items() if value is not None}
    for key, value in list(given.items()):
        if key in NEUTRAL:
            _refuse_unless_neutral(key, value)
            del given[key]
    given["messages"] = _without_nulls(given.get("messages"))
    try:
        request = ChatRequest.model_validate(given)
    except ValidationError as error:
        raise _mistake(_first(error.errors(include_url=False))) from error
    if request.stream_options is not None and not request.stream:
        raise WireError("stream_options is only allowed with stream", param="stream_options")
    return request


def _refuse_unless_neutral(key: str, value: Any) -> None:
    # `1 == True` in Python, and `0 == False`: the types must agree as well, but 0 and 0.0 are one number in JSON.
    for neutral in NEUTRAL[key]:
        if value == neutral and isinstance(value, bool) == isinstance(neutral, bool):
            return
    raise WireError(f"{key} is not supported by this server", param=key, code="unsupported_parameter")


def _without_nulls(messages: Any) -> Any:
    """Drop a message's absent parts: `null`, and empty lists where an answer may carry things that we never send."""
    if not isinstance(messages, list):
        return messages
    return [
        {
            key: value
            for key, value in message.items()
            if not (key in NEUTRAL_IN_MESSAGE and (value is None or value == []))
        }
        if isinstance(message, dict)
        else message
        for message in messages
    ]


def _first(entries: list[Any]) -> Any:
    """Choose the mistake to tell: the first; where a field may be of several types, that of the type tried hardest."""
    same_field = [entry for entry in entries if entry["loc"][:3] == entries[0]["loc"][:3]]
    return max(same_field, key=lambda entry: len(entry["loc"]))


def _mistake(entry: Any) -> WireError:
    path = [str(part) for part in entry["loc"] if part not in ("str", "list[TextPart]", "[key]")]
    name = ".".join(path)
    if entry["type"] == "extra_forbidden":
        known = [*ChatRequest.model_fields, *NEUTRAL] if len(path) == 1 else []
        hint = did_you_mean(path[-1], known) if known else ""
        told = f" {hint}" if hint.startswith("Did") else ""
        return WireError(f"unknown parameter: {name}.{told}", param=name, code="unknown_parameter")
    if entry["type"] == "missing" or (path == ["messages"] and entry["input"] is None):
        return WireError(f"{name} is required", param=name, code="missing_required_parameter")
    code = "invalid_type" if entry["type"].endswith("_type") else "invalid_value"
    return WireError(f"{name}: {_lower_first(entry['msg'])}", param=name, code=code)


def _lower_first(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


class Answer:
    """Builds the JSON of one answer, whole or in chunks, with everything that they share."""

    def __init__(self, id: str, created: int, model: str, fingerprint: str) -> None:
        self.id = id
        self._common = {"id": id, "created": created, "model": model, "system_fingerprint": fingerprint or None}

    def whole(self, completions: list[Completion]) -> dict[str, Any]:
        """Return a `chat.completion` with one choice for each completion."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": completion.text, "refusal": None},
                "logprobs": None,
                "finish_reason": completion.finish_reason,
            }
            for index, completion in enumerate(completions)
        ]
        return {**self._common, "object": "chat.completion", "choices": choices, "usage": usage(completions)}

    def chunk(self, index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        """Return a `chat.completion.chunk` of one choice."""
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._common, "object": "chat.completion.chunk", "choices": [choice]}

    def usage_chunk(self, completions: list[Completion]) -> dict[str, Any]:
        """Return the last chunk that `stream_options.include_usage` asks for: no choice, the usage of all."""
        return {**self._common, "object": "chat.completion.chunk", "choices": [], "usage": usage(completions)}


def usage(completions: list[Completion]) -> dict[str, Any]:
    """Count tokens: the prompt once, with what of it was in the prefix cache, and the answers of all choices."""
    prompt = completions[0].prompt_tokens if completions else 0
    cached = completions[0].cached_tokens if completions else 0
    answered = sum(len(completion.token_ids) for completion in completions)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answered,
        "total_tokens": prompt + answered,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def error_body(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return an error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def model_body(name: str, created: int) -> dict[str, Any]:
    """Return one entry of the list of models."""
    return {"id": name, "object": "model", "created": created, "owned_by": "catena"}
