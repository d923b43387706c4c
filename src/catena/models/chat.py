"""Chat format: conversations to token ids. Training asks which ids to learn from, the engine for a prompt.

With Catena's own template (`tokenizer.CHAT_TEMPLATE`) a conversation is

    <|user|> question <|end|> <|assistant|> answer <|end|>
                                            ^^^^^^^^^^^^^^ learnt from

put together from ids, all texts in one call: equal to `apply_chat_template`, but a control token that someone spells
out in a message stays text. Any other tokenizer's template is rendered as it is, and what each assistant turn adds is
found by rendering the conversation up to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from jinja2 import TemplateError

from catena.core.errors import DataError, UsageError
from catena.core.generate import Message
from catena.models.tokenizer import CHAT_TEMPLATE, END, encode_texts

Turn = Message | Mapping[str, str]
ROLES = ("system", "user", "assistant")
TOOLS = re.compile(r"\btools\b")


class Encoded(NamedTuple):
    """A conversation in tokens."""

    ids: list[int]
    mask: list[bool]
    """True where a token is to be learnt: assistant content and the end token after it."""

    @property
    def learnt(self) -> int:
        """How many tokens are learnt from."""
        return sum(self.mask)


def encode_conversations(tokenizer: Any, conversations: Sequence[Sequence[Turn]]) -> list[Encoded]:
    """Return ids and loss mask of each conversation. Raises `DataError` for an unknown role."""
    turns = [[_pair(turn) for turn in conversation] for conversation in conversations]
    if tokenizer.chat_template != CHAT_TEMPLATE:
        return [_by_rendering(tokenizer, conversation) for conversation in turns]
    contents = iter(encode_texts(tokenizer, [content for conversation in turns for _, content in conversation]))
    end = tokenizer.convert_tokens_to_ids(END)
    marks = {role: tokenizer.convert_tokens_to_ids(f"<|{role}|>") for role in ROLES}
    encoded = []
    for conversation in turns:
        ids: list[int] = []
        mask: list[bool] = []
        for role, _ in conversation:
            content = next(contents)
            ids += [marks[role], *content, end]
            mask += [False] + [role == "assistant"] * (len(content) + 1)
        encoded.append(Encoded(ids, mask))
    return encoded


def encode_prompt(tokenizer: Any, messages: Sequence[Turn], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
    """Return the ids of a conversation that the assistant is to go on with, and may call `tools` in.

    Raises `UsageError` for no messages, an unknown role, or a tokenizer without a chat template, or whose template
    takes no tools.
    """
    if not messages:
        raise UsageError("a conversation needs at least one message")
    if tokenizer.chat_template is None:
        raise UsageError("this model's tokenizer has no chat template", hint="Give the prompt as text instead.")
    with_tools = tools or any(isinstance(turn, Message) and (turn.extra or turn.role == "tool") for turn in messages)
    if with_tools and not takes_tools(tokenizer):
        raise UsageError("tools cannot be used: this model's chat template takes none", hint="Serve a model that does.")
    if with_tools:
        return _render_with_tools(tokenizer, messages, tools)
    turns = [_pair(turn) for turn in messages]
    if tokenizer.chat_template != CHAT_TEMPLATE:
        with _refusals():
            return _render(tokenizer, turns, prompt=True)
    [encoded] = encode_conversations(tokenizer, [messages])
    return [*encoded.ids, tokenizer.convert_tokens_to_ids("<|assistant|>")]


def takes_tools(tokenizer: Any) -> bool:
    """Tell whether a tokenizer's chat template asks for tools."""
    template = tokenizer.chat_template
    return "tool_use" in template if isinstance(template, dict) else bool(TOOLS.search(template or ""))


def _render_with_tools(tokenizer: Any, messages: Sequence[Turn], tools: Sequence[Mapping[str, Any]]) -> list[int]:
    turns = [
        {"role": turn.role, "content": turn.content, **turn.extra} if isinstance(turn, Message) else dict(turn)
        for turn in messages
    ]
    with _refusals():
        ids: list[int] = tokenizer.apply_chat_template(
            turns, tools=[dict(tool) for tool in tools] or None, add_generation_prompt=True, return_dict=False
        )
    return ids


@contextmanager
def _refusals() -> Iterator[None]:
    """Tell what a template says about a conversation that it does not take."""
    try:
        yield
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        raise UsageError(f"this model's chat template refuses the conversation: {error}") from error


def _pair(turn: Turn) -> tuple[str, str]:
    role, content = (turn.role, turn.content) if isinstance(turn, Message) else (turn["role"], turn["content"])
    if role not in ROLES:
        raise DataError(f"the role {role!r} is unknown", hint=f"Roles are {', '.join(ROLES)}.")
    return role, content


def _render(tokenizer: Any, turns: Sequence[tuple[str, str]], *, prompt: bool) -> list[int]:
    messages = [{"role": role, "content": content} for role, content in turns]
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
    return ids


def _by_rendering(tokenizer: Any, turns: Sequence[tuple[str, str]]) -> Encoded:
    if tokenizer.chat_template is None:
        raise DataError("this model's tokenizer has no chat template", hint="Train on one that has, or add one to it.")
    ids = _render(tokenizer, turns, prompt=False)
    mask = [False] * len(ids)
    for index, (role, _) in enumerate(turns):
        if role != "assistant":
            continue
        before = _render(tokenizer, turns[:index], prompt=True)
        after = _render(tokenizer, turns[: index + 1], prompt=False)
        if ids[: len(after)] != after or after[: len(before)] != before:
            raise DataError(
                "the chat template renders earlier turns differently once later ones follow",
                hint="Its assistant tokens cannot be told apart; use one-turn conversations.",
            )
        mask[len(before) : len(after)] = [True] * (len(after) - len(before))
    return Encoded(ids, mask)
