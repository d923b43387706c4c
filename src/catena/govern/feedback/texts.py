"""Bodies of requests and answers, as the audit keeps them, to plain messages and a text. No I/O.

Only what is text all through is taken: pictures, tools and several choices are named as the problem instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

NOT_TEXT, MANY, TOO_LARGE = "not_text", "many_choices", "too_large"
ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}


class Unusable(Exception):
    """A body from which no text can be learnt; its message is the reason."""


def question(path: str, body: Any) -> tuple[tuple[str, str], ...]:
    """Return (role, text) of a request; raises `Unusable`."""
    if not isinstance(body, Mapping):
        raise Unusable(TOO_LARGE if isinstance(body, str) and body else NOT_TEXT)
    if body.get("tools"):
        raise Unusable(NOT_TEXT)
    if (body.get("n") or 1) != 1:
        raise Unusable(MANY)
    if path.endswith("/chat/completions"):
        return tuple(_messages(body.get("messages")))
    if path.endswith("/responses"):
        before = [("system", body["instructions"])] if isinstance(body.get("instructions"), str) else []
        given = body.get("input")
        if body.get("previous_response_id"):
            raise Unusable(NOT_TEXT)
        return (*before, *([("user", given)] if isinstance(given, str) else _messages(given)))
    prompt = body.get("prompt")
    if not isinstance(prompt, str):
        raise Unusable(MANY if isinstance(prompt, list) and len(prompt) > 1 else NOT_TEXT)
    return (("user", prompt),)


def _messages(given: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(given, list) or not given:
        raise Unusable(NOT_TEXT)
    for message in given:
        role = ROLES.get(str(message.get("role")) if isinstance(message, Mapping) else "")
        if role is None or message.get("tool_calls"):
            raise Unusable(NOT_TEXT)
        yield role, _content(message.get("content"))


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Unusable(NOT_TEXT)
    pieces = []
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            raise Unusable(NOT_TEXT)
        pieces.append(part["text"])
    return "".join(pieces)


def answered(body: Any) -> tuple[str, str]:
    """Return an answer's text and why it ended; raises `Unusable`."""
    if not isinstance(body, Mapping):
        raise Unusable(TOO_LARGE if isinstance(body, str) and body else NOT_TEXT)
    if isinstance(body.get("text"), Mapping):  # a stream, put together
        texts, ends = body["text"], body.get("ends") or {}
        if len(texts) > 1:
            raise Unusable(MANY)
        if any(isinstance(one, list) for one in body.get("events") or ()):
            raise Unusable(NOT_TEXT)
        return "".join(texts.values()), str(next(iter(ends.values()), ""))
    if isinstance(body.get("choices"), list):
        if len(body["choices"]) != 1:
            raise Unusable(MANY)
        choice = body["choices"][0]
        place = choice.get("message") or choice
        text = place.get("content") if "content" in place else place.get("text")
        if place.get("tool_calls") or not isinstance(text, str):
            raise Unusable(NOT_TEXT)
        return text, str(choice.get("finish_reason") or "")
    if isinstance(body.get("output"), list):
        return _items(body["output"]), str(body.get("status") or "")
    raise Unusable(NOT_TEXT)


def _items(items: list[Any]) -> str:
    pieces = []
    for item in items:
        if item.get("type") == "function_call":
            raise Unusable(NOT_TEXT)
        if item.get("type") == "message":
            pieces.append(_content(item.get("content")))
    return "".join(pieces)


def fingerprint(body: Any) -> str:
    """Return what an answer says of the weights that made it, or nothing."""
    told = body.get("system_fingerprint") if isinstance(body, Mapping) else None
    return told if isinstance(told, str) else ""
