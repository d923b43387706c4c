"""What the gateway knows of a request: model, prompt, size, and whether its answer can be repeated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from catena.serve.endpoint import decode
from catena.serve.wire import WireError

ROUTES = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/embeddings": "embeddings",
    "/v1/classify": "classify",
    "/v1/decisions": "decisions",
    "/tokenize": "tokenize",
    "/detokenize": "detokenize",
}
WRITING = frozenset({"chat", "completions", "responses"})
"""Routes whose answers are written token by token; the others always answer the same."""
USUAL_TOKENS = 128
BYTES_PER_TOKEN = 3
"""Between English (4 to 5) and Chinese (3): an estimate that is settled by the answer's own count."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for a model."""

    path: str
    route: str
    model: str
    body: bytes
    fields: Mapping[str, Any]
    text: bytes
    """The prompt, as far as beginnings of prompts are compared."""
    stream: bool
    user: str
    """Who asks, where the request says it."""

    @property
    def prompt_tokens(self) -> int:
        """Return roughly how long the prompt is."""
        return len(self.text) // BYTES_PER_TOKEN + 1

    @property
    def answer_tokens(self) -> int:
        """Return at most how long the answer will be, or what is usual where the request does not say it."""
        if self.route not in WRITING:
            return 0
        for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
            if isinstance(value := self.fields.get(name), int) and value >= 0:
                many = self.fields.get("n")
                return value * many if isinstance(many, int) and many > 0 else value
        return USUAL_TOKENS

    @property
    def cost(self) -> float:
        """Return the work that it makes: a token that is written costs what several cost that are read."""
        return self.prompt_tokens / 8 + self.answer_tokens

    @property
    def repeatable(self) -> bool:
        """Whether the same request has the same answer: greedy, with a seed, or nothing is drawn at all."""
        if self.route not in WRITING:
            return True
        if self.fields.get("store") or self.fields.get("background") or self.fields.get("previous_response_id"):
            return False
        return self.fields.get("temperature") == 0 or isinstance(self.fields.get("seed"), int)

    def for_model(self, served: str) -> bytes:
        """Return the body as a replica wants it, where the model has another name there."""
        if served == self.model:
            return self.body
        return orjson.dumps({**self.fields, "model": served})

    def renamed(self, model: str) -> Ask:
        """Return the same question to another model."""
        return replace(self, model=model, fields={**self.fields, "model": model}, body=self.for_model(model))


def read_ask(path: str, body: bytes, parsed: Any = None) -> Ask:
    """Read a body, as far as the gateway needs it; the replica checks the rest. Raises `WireError`.

    `parsed` is the body as JSON where somebody has read it before.
    """
    fields = decode(body) if parsed is None else parsed
    if not isinstance(fields, dict):
        raise WireError("the body must be a JSON object")
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise WireError("model is required", param="model", code="missing_required_parameter")
    user = fields.get("user")
    return Ask(
        path=path,
        route=ROUTES[path],
        model=model,
        body=body,
        fields=fields,
        text=_text(fields),
        stream=fields.get("stream") is True,
        user=user if isinstance(user, str) else "",
    )


def _text(fields: Mapping[str, Any]) -> bytes:
    for name in ("messages", "prompt", "input", "text"):
        value = fields.get(name)
        if isinstance(value, str):
            return value.encode("utf-8", "surrogatepass")
        if isinstance(value, list | dict):
            return orjson.dumps(value)
    return b""
