"""The responses schema: requests are checked, output items and events are built. No I/O.

Text in and out, and functions. Nothing is stored, so what goes on from a stored response is refused by name.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from catena.core.generate import Grammar, Message, SamplingParams
from catena.serve import tools
from catena.serve.chat_wire import (
    AssistantMessage,
    CalledFunction,
    CallPart,
    Empty,
    Function,
    FunctionName,
    JsonSchemaFormat,
    Metadata,
    ObjectFormat,
    SchemaFormat,
    TextFormat,
    choose_tools,
    format_grammar,
    tool_grammar,
)
from catena.serve.config import ServeConfig
from catena.serve.models import Target
from catena.serve.sampling import MOST_LOGPROBS, StreamOptions
from catena.serve.wire import Body, Part, WireError

LOGPROBS = "message.output_text.logprobs"
Status = Literal["in_progress", "completed", "incomplete"]


class InputText(Part):
    """A piece of text of the caller."""

    type: Literal["input_text"]
    text: str


class OutputText(Part):
    """A piece of text of the model, as it was given out."""

    type: Literal["output_text"]
    text: str
    annotations: Empty = Field(default_factory=list)
    logprobs: list[Any] = Field(default_factory=list)


class MessageItem(Part):
    """A message; an answer may be sent back as it came."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputText | OutputText]
    id: str | None = None
    status: Status | None = None
    phase: None = None

    def message(self) -> Message:
        """Return it in Catena's own form."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class CallItem(Part):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: FunctionName
    arguments: str
    id: str | None = None
    status: Status | None = None
    async_: None = Field(default=None, alias="async")
    caller: None = None
    namespace: None = None

    def message(self) -> Message:
        """Return it in Catena's own form."""
        function = CalledFunction(name=self.name, arguments=self.arguments)
        call = CallPart(id=self.call_id, type="function", function=function)
        return AssistantMessage(role="assistant", tool_calls=[call]).message()


class CallOutputItem(Part):
    """What a function answered."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputText]
    id: str | None = None
    status: Status | None = None

    def message(self) -> Message:
        """Return it in Catena's own form."""
        text = self.output if isinstance(self.output, str) else "".join(part.text for part in self.output)
        return Message("tool", text, {"tool_call_id": self.call_id})


def _typed(value: Any) -> Any:
    """Name the type of a message that does not say it."""
    if isinstance(value, list):
        return [{"type": "message", **one} if isinstance(one, dict) and "type" not in one else one for one in value]
    return value


Item = Annotated[MessageItem | CallItem | CallOutputItem, Field(discriminator="type")]
Items = Annotated[list[Item], Field(min_length=1)]


class FunctionTool(Function):
    """A function that the model may call."""

    type: Literal["function"]


class NamedChoice(Part):
    """The function that must be called."""

    type: Literal["function"]
    name: FunctionName


class FlatSchemaFormat(SchemaFormat):
    """JSON of a schema."""

    type: Literal["json_schema"]


class TextOptions(Part):
    """What the text must look like."""

    format: Annotated[TextFormat | ObjectFormat | FlatSchemaFormat, Field(discriminator="type")] = TextFormat(
        type="text"
    )
    verbosity: Literal["medium"] = "medium"

    @property
    def grammar(self) -> Grammar | None:
        """The form as the engine takes it."""
        if isinstance(self.format, FlatSchemaFormat):
            return format_grammar(JsonSchemaFormat(type="json_schema", json_schema=self.format))
        return format_grammar(self.format)


class ResponseRequest(Body):
    """The body of `POST /v1/responses`."""

    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "access_programs": (),
        "background": (False,),
        "background_options": (),
        "context_management": (),
        "conversation": (),
        "image": (),
        "max_tool_calls": (),
        "moderation": (),
        "previous_response_id": (),
        "prompt": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": ("in_memory",),
        "reasoning": ({}, {"effort": "none"}),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "truncation": ("disabled",),
    }

    input: Annotated[Annotated[str, Field(min_length=1)] | Items, BeforeValidator(_typed)]
    instructions: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    include: list[Literal["message.output_text.logprobs"]] = Field(default_factory=list)
    text: TextOptions = TextOptions()
    tools: list[FunctionTool] = Field(default_factory=list, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedChoice = "auto"
    parallel_tool_calls: bool = True
    metadata: Metadata = Field(default_factory=dict, max_length=16)
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    def check(self) -> None:
        """Raise `WireError` for what is wrong between fields."""
        if isinstance(self.tool_choice, NamedChoice) or self.tool_choice == "required":
            choose_tools(self.tools, self.choice)
        if self.text.grammar is not None and self.usable_tools:
            message = "text.format and tools cannot both decide the form of an answer"
            raise WireError(message, param="text.format", code="unsupported_combination")

    @property
    def choice(self) -> str:
        """`none`, `auto`, `required`, or `=` with the name of the function that must be called."""
        return f"={self.tool_choice.name}" if isinstance(self.tool_choice, NamedChoice) else self.tool_choice

    @property
    def usable_tools(self) -> Sequence[Function]:
        """The functions that the model may call."""
        return [] if self.choice == "none" else self.tools

    @property
    def logprobs(self) -> bool:
        """Whether log-probabilities are wanted."""
        return LOGPROBS in self.include or self.top_logprobs is not None

    @property
    def messages(self) -> list[Message]:
        """The input as a conversation."""
        first = [Message("system", self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            return [*first, Message("user", self.input)]
        return [*first, *(item.message() for item in self.input)]

    def sampling(self, config: ServeConfig, target: Target) -> SamplingParams:
        """Return the parameters of the answer."""
        form = self.text.grammar or tool_grammar(self.usable_tools, self.choice, many=self.parallel_tool_calls)
        one_call = self.usable_tools and form is None and not self.parallel_tool_calls
        return SamplingParams(
            max_tokens=self.max_output_tokens or min(config.max_tokens, target.context or config.max_tokens),
            temperature=config.temperature if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            logprobs=self.top_logprobs or 0 if self.logprobs else None,
            stop=(tools.END,) if one_call else (),
            grammar=form,
        )

    def echoed(self) -> dict[str, Any]:
        """Return the fields that an answer repeats."""
        told = self.model_dump(by_alias=True, include={"instructions", "max_output_tokens", "metadata", "user"})
        return told | {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_logprobs": self.top_logprobs or 0,
            "parallel_tool_calls": self.parallel_tool_calls,
            "tools": [tool.model_dump() for tool in self.tools],
            "tool_choice": self.tool_choice if isinstance(self.tool_choice, str) else self.tool_choice.model_dump(),
            "text": self.text.model_dump(by_alias=True),
            "truncation": "disabled",
            "previous_response_id": None,
            "store": False,
            "background": False,
            "service_tier": "default",
        }


class Output:
    """The items of an answer as they grow, and the events that tell of it."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._open = False

    def text(self, text: str, logprobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add a piece of text; return the events of it."""
        events = []
        if not self._open:
            self._open = True
            part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            item = {"type": "message", "id": _id("msg"), "status": "in_progress", "role": "assistant"}
            self.items.append({**item, "content": [part]})
            events.append(self._event("response.output_item.added", item={**item, "content": []}))
            events.append(self._part("response.content_part.added", part={**part}))
        part = self.items[-1]["content"][0]
        part["text"] += text
        part["logprobs"] = part["logprobs"] + logprobs
        return [*events, self._part("response.output_text.delta", delta=text, logprobs=logprobs)]

    def rest(self, logprobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add log-probabilities that come without text; return the events of it. None where no text is open."""
        return self.text("", logprobs) if self._open else []

    def call(self, call: tools.ToolCall) -> list[dict[str, Any]]:
        """Add a call; return the events of it, and of the text that ends with it."""
        events = self.close("completed")
        item = {"type": "function_call", "id": _id("fc"), "call_id": call.id, "name": call.name}
        self.items.append({**item, "arguments": call.arguments, "status": "completed"})
        started = {**item, "arguments": "", "status": "in_progress"}
        events.append(self._event("response.output_item.added", item=started))
        where = {"item_id": item["id"]}
        events.append(self._event("response.function_call_arguments.delta", **where, delta=call.arguments))
        events.append(
            self._event("response.function_call_arguments.done", **where, name=call.name, arguments=call.arguments)
        )
        return [*events, self._event("response.output_item.done", item=self.items[-1])]

    def close(self, status: Status) -> list[dict[str, Any]]:
        """End the text that is open; return the events of it."""
        if not self._open:
            return []
        self._open = False
        item = self.items[-1]
        item["status"] = status
        part = item["content"][0]
        return [
            self._part("response.output_text.done", text=part["text"], logprobs=part["logprobs"]),
            self._part("response.content_part.done", part=part),
            self._event("response.output_item.done", item=item),
        ]

    def _event(self, kind: str, **values: Any) -> dict[str, Any]:
        return {"type": kind, "output_index": len(self.items) - 1, **values}

    def _part(self, kind: str, **values: Any) -> dict[str, Any]:
        return self._event(kind, item_id=self.items[-1]["id"], content_index=0, **values)


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(16)}"
