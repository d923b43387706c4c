"""`POST /v1/responses`: OpenAI's newer form of a chat, without what it stores."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from catena.core.generate import Completion, Delta, Request
from catena.serve.chat_wire import logprobs_body, template_tools
from catena.serve.choice import Choice
from catena.serve.endpoint import Endpoint, Reply, submitted
from catena.serve.models import Target
from catena.serve.responses_wire import Output, ResponseRequest
from catena.serve.tools import ToolCall
from catena.serve.wire import WireError


class Responses(Endpoint[ResponseRequest]):
    """The responses endpoint."""

    route = "responses"
    body = ResponseRequest

    async def answer(self, request: ResponseRequest, target: Target, reply: Reply) -> None:
        """Answer an input."""
        request.check()
        if request.usable_tools and not target.codec.takes_tools:
            raise WireError(f"the chat template of {target.name!r} takes no tools", param="tools")
        functions = template_tools(request.usable_tools)
        head: dict[str, Any] = {
            "id": f"resp_{secrets.token_hex(16)}",
            "object": "response",
            "created_at": int(time.time()),
            "model": target.name,
        }
        asked = Request(
            head["id"],
            request.messages,
            request.sampling(self.config, target),
            adapter=target.adapter,
            tools=functions,
        )
        written = _Writer(request, head, Choice(target, bool(functions)), reply)
        async with submitted([asked], target.generator, reply) as deltas:
            await written.follow(deltas)


class _Writer:
    """Follows one answer: sends its events, or the whole at its end."""

    def __init__(self, request: ResponseRequest, head: dict[str, Any], choice: Choice, reply: Reply) -> None:
        self._request, self._head, self._choice, self._reply = request, head, choice, reply
        self._output = Output()
        self._number = 0

    async def follow(self, deltas: AsyncIterator[tuple[int, Delta]]) -> None:
        """Read the answer to its end."""
        await self._tell({"type": "response.created", "response": self._whole("in_progress")})
        await self._tell({"type": "response.in_progress", "response": self._whole("in_progress")})
        async for _, delta in deltas:
            for piece in self._choice.push(delta):
                if isinstance(piece.content, ToolCall):
                    events = self._output.call(piece.content)
                else:
                    events = self._output.text(piece.content, self._logprobs(piece.logprobs))
                for event in events:
                    await self._tell(event)
            if self._choice.completion is not None:
                break
        await self._end()

    async def _end(self) -> None:
        assert self._choice.completion is not None
        cut = self._choice.completion.finish_reason == "length"
        if not self._output.items:  # an empty answer is an answer too
            for event in self._output.text("", []):
                await self._tell(event)
        if self._choice.rest and self._request.logprobs:  # of tokens at the end that have no text
            for event in self._output.rest(self._logprobs(self._choice.rest)):
                await self._tell(event)
        status = "incomplete" if cut else "completed"
        for event in self._output.close("incomplete" if cut else "completed"):
            await self._tell(event)
        whole = self._whole(status, self._choice.completion)
        if not self._request.stream:
            await self._reply.json(whole)
            return
        await self._tell({"type": f"response.{status}", "response": whole})
        await self._reply.end(b"")

    async def _tell(self, event: dict[str, Any]) -> None:
        if self._request.stream:
            await self._reply.event({**event, "sequence_number": self._number}, event["type"])
            self._number += 1

    def _logprobs(self, entries: Any) -> list[dict[str, Any]]:
        if not self._request.logprobs:
            return []
        told: list[dict[str, Any]] = logprobs_body(entries, self._choice.target)["content"]
        return told

    def _whole(self, status: str, completion: Completion | None = None) -> dict[str, Any]:
        return {
            **self._head,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": list(self._output.items) if completion else [],
            "usage": None if completion is None else _usage(completion),
            **self._request.echoed(),
        }


def _usage(completion: Completion) -> dict[str, Any]:
    answered = completion.generated
    return {
        "input_tokens": completion.prompt_tokens,
        "input_tokens_details": {"cached_tokens": completion.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": answered,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": completion.prompt_tokens + answered,
    }
