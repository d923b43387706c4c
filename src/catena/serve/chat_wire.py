"""The chat schema: requests are checked, answers are built. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import Field, StringConstraints

from catena.core.generate import Completion, Grammar, Message, TokenLogprob
from catena.serve import tools
from catena.serve.config import ServeConfig
from catena.serve.models import Target
from catena.serve.sampling import MOST_LOGPROBS, Sampled
from catena.serve.wire import Part, WireError, usage

FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
Metadata = Annotated[dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field()]
Empty = Annotated[list[Any], Field(max_length=0)]


class TextPart(Part):
    """A piece of a message's content; only text is taken."""

    type: Literal["text"]
    text: str


Content = str | list[TextPart]


def text_of(content: str | Sequence[TextPart]) -> str:
    """Return content as one text."""
    return content if isinstance(content, str) else "".join(part.text for part in content)


class PlainMessage(Part):
    """What someone says to the model; `developer` is OpenAI's newer word for `system`."""

    role: Literal["system", "developer", "user"]
    content: Content
    name: None = None

    def message(self) -> Message:
        """Return it in Catena's own form."""
        return Message("system" if self.role == "developer" else self.role, text_of(self.content))


class CalledFunction(Part):
    """A function's name with its arguments as JSON text."""

    name: FunctionName
    arguments: str


class CallPart(Part):
    """A call that the model made."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Part):
    """What the model said, as it was given out."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: list[CallPart] = Field(default_factory=list)
    annotations: Empty = Field(default_factory=list)
    # What an answer may carry elsewhere, and never does here.
    refusal: None = None
    audio: None = None
    function_call: None = None
    name: None = None

    def message(self) -> Message:
        """Return it in Catena's own form; chat templates want the arguments as values."""
        if self.content is None and not self.tool_calls:
            raise WireError("content is required in a message of the assistant without tool_calls", param="messages")
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": _values(call)}}
            for call in self.tool_calls
        ]
        return Message("assistant", text_of(self.content or ""), {"tool_calls": calls} if calls else {})


def _values(call: CallPart) -> Any:
    try:
        values = orjson.loads(call.function.arguments)
    except orjson.JSONDecodeError:
        values = None
    if not isinstance(values, dict):
        raise WireError("the arguments of a tool call must be a JSON object", param="messages", code="invalid_value")
    return values


class ToolMessage(Part):
    """What a tool answered."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str

    def message(self) -> Message:
        """Return it in Catena's own form."""
        return Message("tool", text_of(self.content), {"tool_call_id": self.tool_call_id})


WireMessage = Annotated[PlainMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Part):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    strict: bool = False
    """Arguments must fulfil the schema, whatever the model would say."""


class Tool(Part):
    """A tool; only functions are taken."""

    type: Literal["function"]
    function: Function


class NamedFunction(Part):
    """A function by its name."""

    name: FunctionName


class NamedChoice(Part):
    """The function that must be called."""

    type: Literal["function"]
    function: NamedFunction


class SchemaFormat(Part):
    """A schema with its name. It is always enforced, `strict` or not."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool = False


class TextFormat(Part):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Part):
    """Some JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Part):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: SchemaFormat


ResponseFormat = Annotated[TextFormat | ObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class ChatRequest(Sampled):
    """The body of `POST /v1/chat/completions`."""

    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "audio": (),
        "function_call": ("none",),
        "functions": ([],),
        "modalities": (["text"],),
        "moderation": (),
        "prediction": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": ("in_memory",),
        "reasoning_effort": ("none",),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    messages: list[WireMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """OpenAI's newer word for `max_tokens`; it wins."""
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: list[Tool] = Field(default_factory=list, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool = True
    metadata: Metadata = Field(default_factory=dict, max_length=16)
    """Notes of the caller about the answer; nothing is stored here, so they have no effect."""
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    def check(self, config: ServeConfig) -> None:
        """Raise `WireError` for what is wrong between fields."""
        super().check(config)
        if self.top_logprobs is not None and not self.logprobs:
            raise WireError("top_logprobs is only allowed with logprobs", param="top_logprobs")
        if isinstance(self.tool_choice, NamedChoice) or self.tool_choice in ("auto", "required"):
            choose_tools(self.functions, self.choice)
        forms = [self.form is not None, self.structured_outputs is not None, bool(self.usable_tools)]
        if sum(forms) > 1:
            raise WireError(
                "only one of response_format, structured_outputs and tools can decide the form of an answer",
                param="response_format" if forms[0] else "structured_outputs",
                code="unsupported_combination",
            )

    @property
    def functions(self) -> list[Function]:
        """The functions of all tools."""
        return [tool.function for tool in self.tools]

    @property
    def choice(self) -> str:
        """`none`, `auto`, `required`, or `=` with the name of the function that must be called."""
        if isinstance(self.tool_choice, NamedChoice):
            return f"={self.tool_choice.function.name}"
        return self.tool_choice or "auto"

    @property
    def usable_tools(self) -> list[Function]:
        """The functions that the model may call."""
        return [] if self.choice == "none" else self.functions

    @property
    def form(self) -> Grammar | None:
        """The form that `response_format` asks for."""
        return format_grammar(self.response_format)

    def sampling(self, config: ServeConfig, target: Target, index: int) -> Any:
        """Return the parameters of choice `index`."""
        more: dict[str, Any] = {"logprobs": self.top_logprobs or 0} if self.logprobs else {}
        if self.max_completion_tokens is not None:
            more["max_tokens"] = self.max_completion_tokens
        form = self.form or tool_grammar(self.usable_tools, self.choice, many=self.parallel_tool_calls)
        if form is not None:
            more["grammar"] = form
        elif self.usable_tools and not self.parallel_tool_calls:
            more["stop"] = (*self.stops, tools.END)
        return self.params(config, target, index, **more)


def format_grammar(form: TextFormat | ObjectFormat | JsonSchemaFormat | None) -> Grammar | None:
    """Return what `response_format` asks for as a grammar."""
    if form is None or isinstance(form, TextFormat):
        return None
    if isinstance(form, ObjectFormat):
        return Grammar("json")
    return Grammar("json_schema", orjson.dumps(form.json_schema.schema_).decode())


def choose_tools(functions: Sequence[Function], choice: str) -> list[Function]:
    """Return the functions that a forced choice leaves; raises `WireError` where there is none."""
    if not functions:
        raise WireError("tool_choice is only allowed with tools", param="tool_choice")
    left = [one for one in functions if not choice.startswith("=") or one.name == choice[1:]]
    if not left:
        raise WireError(f"tool_choice names {choice[1:]!r}, which is none of the tools", param="tool_choice")
    return left


def tool_grammar(functions: Sequence[Function], choice: str, *, many: bool) -> Grammar | None:
    """Return the form of an answer that must call a tool, or whose calls must fulfil a schema; None for any text."""
    forced = choice == "required" or choice.startswith("=")
    if not functions or not (forced or any(one.strict for one in functions)):
        return None
    left = choose_tools(functions, choice) if forced else functions
    facts = {
        "tools": [{"name": one.name, "parameters": one.parameters} for one in left],
        "many": many and not choice.startswith("="),
        "free": not forced,
        "begin": tools.BEGIN,
        "end": tools.END,
    }
    return Grammar("tools", orjson.dumps(facts).decode())


def template_tools(functions: Sequence[Function]) -> tuple[dict[str, Any], ...]:
    """Return functions as chat templates take them."""
    return tuple(
        {"type": "function", "function": one.model_dump(exclude_none=True, exclude={"strict"})} for one in functions
    )


def logprobs_body(entries: Sequence[TokenLogprob], target: Target) -> dict[str, Any]:
    """Return log-probabilities in the chat's form."""
    ids = [id for entry in entries for id in (entry.token_id, *(one for one, _ in entry.top))]
    pieces = dict(zip(ids, target.codec.pieces(ids), strict=True))

    def told(id: int, logprob: float) -> dict[str, Any]:
        piece = pieces[id]
        return {"token": piece.decode(errors="replace"), "logprob": finite(logprob), "bytes": list(piece)}

    content = [
        {**told(one.token_id, one.logprob), "top_logprobs": [told(*other) for other in one.top]} for one in entries
    ]
    return {"content": content, "refusal": None}


def finite(logprob: float) -> float:
    """Return a log-probability that JSON can hold."""
    return max(logprob, -9999.0)


class Answer:
    """Builds the JSON of one answer, whole or in chunks, with everything that they share."""

    def __init__(self, id: str, created: int, target: Target) -> None:
        self.id = id
        self._common = {
            "id": id,
            "created": created,
            "model": target.name,
            "system_fingerprint": target.fingerprint or None,
        }

    def whole(self, choices: Sequence[dict[str, Any]], completions: list[Completion]) -> dict[str, Any]:
        """Return a `chat.completion`."""
        counted = usage(completions, len(completions))
        return {**self._common, "object": "chat.completion", "choices": list(choices), "usage": counted}

    def chunk(
        self, index: int, delta: dict[str, Any], finish_reason: str | None = None, logprobs: Any = None
    ) -> dict[str, Any]:
        """Return a `chat.completion.chunk` of one choice."""
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._common, "object": "chat.completion.chunk", "choices": [choice]}

    def usage_chunk(self, completions: list[Completion]) -> dict[str, Any]:
        """Return the last chunk that `stream_options.include_usage` asks for: no choice, the usage of all."""
        counted = usage(completions, len(completions))
        return {**self._common, "object": "chat.completion.chunk", "choices": [], "usage": counted}


def call_body(call: tools.ToolCall) -> dict[str, Any]:
    """Return a call in the chat's form."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def message_body(text: str, calls: Sequence[tools.ToolCall]) -> dict[str, Any]:
    """Return the message of a choice."""
    body: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
    return body | ({"tool_calls": [call_body(call) for call in calls]} if calls else {})
