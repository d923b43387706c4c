"""A generator that says what it is told to, and shows what it was asked: for what a random model never says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from catena.core.generate import Completion, Delta, Request
from catena.infer.codec import ModelCodec

HERMES = (
    "{%- if tools %}<|system|>{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|end|>{% endif -%}"
    "{%- for message in messages -%}<|{{ 'user' if message.role == 'tool' else message.role }}|>{{ message.content }}"
    "{%- for call in message.tool_calls or [] -%}"
    '<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>'
    "{%- endfor -%}<|end|>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
"""A chat template that takes tools, as those of Hermes and Qwen do."""


class Scripted:
    """Answers every request with `text`, a few characters at a time, up to a stop string."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.codec = ModelCodec(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
        self.text = text
        self.asked: list[Request] = []

    def submit(self, request: Request, on_delta: Callable[[Delta], None]) -> None:
        """Answer from a thread, as an engine does."""
        self.asked.append(request)
        prompt = len(self.codec.tokens(request.prompt, request.tools))
        text = self.text
        for stop in request.params.stop:
            text = text.partition(stop)[0]

        def answer() -> None:
            for at in range(0, len(text), 3):
                on_delta(Delta(text[at : at + 3]))
            on_delta(Delta("", Completion(request.id, text, tuple(range(len(text))), "stop", prompt)))

        threading.Thread(target=answer).start()

    def cancel(self, request_id: str) -> None:
        """Nothing to stop."""

    def stats(self) -> Mapping[str, float]:
        """Nothing to tell."""
        return {}

    def close(self) -> None:
        """Nothing to end."""
