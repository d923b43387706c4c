"""`POST /tokenize` and `POST /detokenize`, as vLLM has them: what a model reads, and what its tokens say."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from catena.core.generate import Message
from catena.serve.chat_wire import Tool, WireMessage, template_tools
from catena.serve.completions import name_of
from catena.serve.endpoint import Endpoint, Reply
from catena.serve.models import Target
from catena.serve.sampling import TokenId
from catena.serve.wire import Body, WireError


class TokenizeRequest(Body):
    """The body of `POST /tokenize`: text, or a conversation for the chat template."""

    prompt: Annotated[str, Field(min_length=1)] | None = None
    messages: Annotated[list[WireMessage], Field(min_length=1)] | None = None
    tools: list[Tool] = Field(default_factory=list, max_length=128)
    return_token_strs: bool = False


class Tokenize(Endpoint[TokenizeRequest]):
    """Text to tokens."""

    route = "tokenize"
    body = TokenizeRequest

    async def answer(self, request: TokenizeRequest, target: Target, reply: Reply) -> None:
        """Tell the tokens of a text."""
        if (request.prompt is None) == (request.messages is None):
            raise WireError("either prompt or messages is required", param="prompt")
        if request.tools and (request.messages is None or not target.codec.takes_tools):
            raise WireError("tools cannot be shown to this model, or without messages", param="tools")
        messages: list[Message] = [one.message() for one in request.messages or ()]
        prompt: str | list[Message] = request.prompt or messages
        tools = template_tools([tool.function for tool in request.tools])
        ids = await self.run(lambda: target.codec.tokens(prompt, tools))
        names = [name_of(piece) for piece in target.codec.pieces(ids)] if request.return_token_strs else None
        await reply.json(
            {"tokens": ids, "count": len(ids), "max_model_len": target.context, "token_strs": names},
        )


class DetokenizeRequest(Body):
    """The body of `POST /detokenize`."""

    tokens: list[TokenId]


class Detokenize(Endpoint[DetokenizeRequest]):
    """Tokens to text."""

    route = "detokenize"
    body = DetokenizeRequest

    async def answer(self, request: DetokenizeRequest, target: Target, reply: Reply) -> None:
        """Tell the text of tokens."""
        await reply.json({"prompt": await self.run(lambda: target.codec.text(request.tokens))})
