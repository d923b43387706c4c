"""`POST /v1/chat/completions`."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from catena.core.generate import Completion, Delta, Request
from catena.serve.chat_wire import (
    Answer,
    ChatRequest,
    call_body,
    logprobs_body,
    message_body,
    template_tools,
)
from catena.serve.choice import Choice, Piece, without_end
from catena.serve.endpoint import Endpoint, Reply, submitted
from catena.serve.models import Target
from catena.serve.tools import ToolCall
from catena.serve.wire import WireError


class Chat(Endpoint[ChatRequest]):
    """The chat endpoint."""

    route = "chat"
    body = ChatRequest

    async def answer(self, request: ChatRequest, target: Target, reply: Reply) -> None:
        """Answer a conversation."""
        request.check(self.config)
        answer = Answer(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), target)
        if request.usable_tools and not target.codec.takes_tools:
            raise WireError(f"the chat template of {target.name!r} takes no tools", param="tools")
        messages = [message.message() for message in request.messages]
        functions = template_tools(request.usable_tools)
        requests = [
            Request(
                f"{answer.id}-{index}",
                messages,
                request.sampling(self.config, target, index),
                deadline=request.deadline_s,
                adapter=target.adapter,
                tools=functions,
            )
            for index in range(request.n)
        ]
        choices = [Choice(target, bool(functions)) for _ in requests]
        async with submitted(requests, target.generator, reply) as deltas:
            if request.stream:
                await _stream(request, answer, choices, deltas, reply)
            else:
                completions = await _all(choices, deltas)
                bodies = [_body(index, choice, request, target) for index, choice in enumerate(choices)]
                await reply.json(answer.whole(bodies, completions))


async def _all(choices: list[Choice], deltas: AsyncIterator[tuple[int, Delta]]) -> list[Completion]:
    """Wait until every choice is complete."""
    async for index, delta in deltas:
        choices[index].push(delta)
        if all(choice.completion for choice in choices):
            break
    return [choice.completion for choice in choices if choice.completion]


def _body(index: int, choice: Choice, request: ChatRequest, target: Target) -> dict[str, Any]:
    assert choice.completion is not None
    entries = without_end(choice.completion.token_logprobs, target) if request.logprobs else ()
    return {
        "index": index,
        "message": message_body(choice.text, choice.calls),
        "logprobs": logprobs_body(entries, target) if request.logprobs else None,
        "finish_reason": choice.finish_reason,
    }


async def _stream(
    request: ChatRequest,
    answer: Answer,
    choices: list[Choice],
    deltas: AsyncIterator[tuple[int, Delta]],
    reply: Reply,
) -> None:
    """Send events as deltas come."""
    extra = {"usage": None} if request.with_usage else {}
    for index in range(len(choices)):
        await reply.event({**answer.chunk(index, {"role": "assistant", "content": ""}), **extra})
    async for index, delta in deltas:
        choice = choices[index]
        for piece in choice.push(delta):
            told = logprobs_body(piece.logprobs, choice.target) if request.logprobs else None
            await reply.event({**answer.chunk(index, _delta(piece, choice), logprobs=told), **extra})
        if choice.completion is not None:
            rest = logprobs_body(choice.rest, choice.target) if request.logprobs and choice.rest else None
            await reply.event({**answer.chunk(index, {}, choice.finish_reason, rest), **extra})
            if all(choice.completion for choice in choices):
                break
    if request.with_usage:
        await reply.event(answer.usage_chunk([choice.completion for choice in choices if choice.completion]))
    await reply.end()


def _delta(piece: Piece, choice: Choice) -> dict[str, Any]:
    if isinstance(piece.content, ToolCall):
        return {"tool_calls": [{"index": choice.calls.index(piece.content), **call_body(piece.content)}]}
    return {"content": piece.content}
