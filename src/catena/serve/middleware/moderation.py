"""What may be asked and answered: all texts of a request are looked through, and those of an answer before they leave.

A blocked prompt is refused (400, `content_filter`); a blocked answer ends where the blocked span begins, with the
finish reason `content_filter`. What would let text past is refused by name: prompts as token ids, log-probabilities
(they tell the tokens). Who was blocked for what stands in the exchange, for the audit.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from catena.core.errors import CatenaError, RemoteError
from catena.govern.moderation.moderator import Moderator
from catena.govern.moderation.stream import Outcome
from catena.serve.config import ServeConfig
from catena.serve.endpoint import Gone
from catena.serve.errors import answer_to
from catena.serve.middleware.answers import Answers, ChoiceAnswers, note
from catena.serve.middleware.exchange import Exchange, exchange_of, read_json, replace_json
from catena.serve.middleware.responses import ResponseAnswers
from catena.serve.rules import Rules
from catena.serve.wire import WireError

ANSWERS: Mapping[str, type[Answers]] = {
    "/v1/chat/completions": ChoiceAnswers,
    "/v1/completions": ChoiceAnswers,
    "/v1/responses": ResponseAnswers,
}
NAMES = frozenset({"model", "role", "type", "id", "tool_call_id", "call_id", "object", "encoding_format"})
"""Keys whose values are words of the protocol: the endpoint takes no others."""
TAGS = re.compile("[^\U000e0020-\U000e007e]+")
UNTAGGED = {0xE0000 + code: code for code in range(0x20, 0x7F)}
LONG = 20_000
"""Characters from which on a request is looked through in a thread."""
NEEDS_TEXT = "this server looks through prompts, so {} must be text and not token ids"
NOT_SEEN = "the model's answer is of a kind that is not looked through, so it is not given"
NO_LOGPROBS = "log-probabilities are not given while answers are moderated: they would tell the tokens"


class Moderation:
    """ASGI middleware, the innermost of governance."""

    def __init__(self, app: ASGIApp, moderator: Moderator, config: ServeConfig, rules: Rules | None = None) -> None:
        self._app, self._moderator, self._config = app, moderator, config
        self._rules = rules or Rules()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on when its texts may be asked, and its answer as far as it may be heard."""
        if scope["type"] != "http" or self._rules.action(scope["method"], scope["path"]) != "infer":
            await self._app(scope, receive, send)
            return
        exchange, settings = exchange_of(scope), self._moderator.config
        try:
            receive = await read_json(scope, receive, self._config)
            if isinstance(exchange.parsed, dict):
                _refuse_unseen(exchange.parsed, answers=settings.answers and scope["path"] in ANSWERS)
                if settings.prompts:
                    await self._prompts(exchange, scope)
        except Gone:
            return
        except CatenaError as error:
            await answer_to(error)(scope, receive, send)
            return
        kind = ANSWERS.get(scope["path"])
        if kind is None or not settings.answers:
            await self._app(scope, receive, send)
            return
        outgoing = _Outgoing(kind(self._moderator, exchange), receive, send)
        await self._app(scope, outgoing.receive, outgoing.send)

    async def _prompts(self, exchange: Exchange, scope: Scope) -> None:
        """Look through a request; raises `WireError` where it is blocked, and puts the masked one in its place."""
        review = _Review(self._moderator)
        long = exchange.body is not None and len(exchange.body) > LONG
        body = await asyncio.to_thread(review.walk, exchange.parsed) if long else review.walk(exchange.parsed)
        note(exchange, "prompt", review.outcomes)
        if review.blocked:
            message = f"the request was refused by moderation ({', '.join(sorted(review.blocked))})"
            raise WireError(message, code="content_filter")
        if review.changed:
            replace_json(exchange, body)
            length = b"%d" % len(exchange.body or b"")
            scope["headers"] = [
                (name, length if name == b"content-length" else value) for name, value in scope["headers"]
            ]


def _refuse_unseen(body: Mapping[str, Any], *, answers: bool) -> None:
    for name in ("prompt", "input"):
        if _has_numbers(body.get(name)):
            raise WireError(NEEDS_TEXT.format(name), param=name, code="content_filter")
    if answers:
        included = body.get("include")
        wanted = [name for name in ("logprobs", "top_logprobs") if body.get(name)]
        wanted += ["include"] if isinstance(included, list) and any("logprobs" in str(one) for one in included) else []
        if wanted or body.get("logprobs") == 0:  # completions take 0 for the chosen token alone
            if body.get("logprobs") is False and not wanted:
                return
            raise WireError(NO_LOGPROBS, param=(wanted or ["logprobs"])[0], code="unsupported_parameter")


def _has_numbers(value: Any) -> bool:
    if isinstance(value, list):
        return any(_has_numbers(one) for one in value)
    return isinstance(value, int) and not isinstance(value, bool)


class _Review:
    """A walk through a request."""

    def __init__(self, moderator: Moderator) -> None:
        self._moderator = moderator
        self.outcomes: list[Outcome] = []
        self.blocked: set[str] = set()
        self.changed = False

    def walk(self, value: Any, key: str = "") -> Any:
        """Return a value with every text in it as it may be asked."""
        if isinstance(value, str):
            return value if key in NAMES else self._text(value)
        if isinstance(value, list):
            self._together(value)
            return [self.walk(one, key) for one in value]
        if isinstance(value, dict):
            for name in value:
                if not self._moderator.harmless(str(name)):
                    self._text(str(name), quietly=True)
            return {name: self.walk(one, name) for name, one in value.items()}
        return value

    def _text(self, text: str, *, quietly: bool = False) -> str:
        if hidden := TAGS.sub("", text):
            self._hidden(hidden)
        outcome = self._moderator.review(text)
        if not outcome.decisions:
            return text
        if quietly and not outcome.blocked:
            return text  # a key is not masked: it would be another key
        self.outcomes.append(outcome)
        if outcome.blocked:
            self.blocked |= {one.finding.kind for one in outcome.decisions if one.action == "block"}
        elif outcome.text != text:
            self.changed = True
        return outcome.text

    def _hidden(self, text: str) -> None:
        """Look through what is written in tag characters, which people do not see and models read."""
        outcome = self._moderator.review(text.translate(UNTAGGED))
        if outcome.decisions:
            self.outcomes.append(outcome)
            self.blocked |= {one.finding.kind for one in outcome.decisions if one.action != "flag"}

    def _together(self, parts: list[Any]) -> None:
        """Block what only shows when the parts of one message are put together, as the model reads them."""
        texts = list(_part_texts(parts))
        if len(texts) < 2:
            return
        alone = [len(self._moderator.review(text).decisions) for text in texts]
        whole = self._moderator.review("".join(texts))
        if len(whole.decisions) > sum(alone) or (whole.blocked and not any(alone)):
            self.outcomes.append(whole)
            self.blocked |= {one.finding.kind for one in whole.decisions if one.action != "flag"}


def _part_texts(parts: list[Any]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, dict) and isinstance(part.get("text"), str) and "type" in part:
            yield part["text"]


class _Outgoing:
    """The sending side: what the routes send goes through `answers`, whole or as events."""

    def __init__(self, answers: Answers, receive: Receive, send: Send) -> None:
        self._answers, self._receive, self._send = answers, receive, send
        self._start: Message | None = None
        self._kind = ""
        self._held = b""
        self._cut = False
        self._listening: asyncio.Future[None] | None = None

    async def receive(self) -> Message:
        """Pass on what comes in; when the answer was cut, say that the client is gone, so that the model stops."""
        gone: Message = {"type": "http.disconnect"}
        if self._cut:
            return gone
        came = asyncio.ensure_future(self._receive())
        woken = self._listening = asyncio.get_running_loop().create_future()
        came.add_done_callback(lambda _: self._wake(woken))
        try:
            await woken
            return came.result() if came.done() and not self._cut else gone
        finally:
            came.cancel()

    def _stop(self) -> None:
        """Note that nothing more leaves, and wake who listens."""
        self._cut = True
        self._wake(self._listening)

    def _wake(self, listening: asyncio.Future[None] | None) -> None:
        if listening is not None and not listening.done():
            listening.set_result(None)

    async def send(self, message: Message) -> None:
        """Pass on what may leave."""
        if self._cut:
            return
        if message["type"] == "http.response.start":
            await self._begin(message)
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if self._kind == "events":
            await self._events(body, more)
        elif self._kind == "json":
            self._held += body
            if not more:
                await self._whole()
        else:
            await self._send(message)

    async def _begin(self, message: Message) -> None:
        kinds = [value.partition(b";")[0] for name, value in message["headers"] if name.lower() == b"content-type"]
        kind = (kinds or [b""])[0].strip().lower()
        if message["status"] >= 400:
            self._kind = "error"
        elif kind == b"text/event-stream":
            self._kind = "events"
        elif kind.endswith((b"/json", b"+json")):
            self._kind, self._start = "json", message  # its length may change
            return
        else:
            await self._refuse()
            return
        await self._send(message)

    async def _refuse(self) -> None:
        """Answer in place of what cannot be looked through."""
        self._stop()
        await answer_to(RemoteError(NOT_SEEN))({"type": "http"}, self._receive, self._send)

    async def _whole(self) -> None:
        assert self._start is not None
        try:
            parsed = orjson.loads(self._held)
        except orjson.JSONDecodeError:
            parsed = None
        if not isinstance(parsed, dict):
            await self._refuse()
            return
        body = orjson.dumps(self._answers.whole(parsed))
        headers = [
            (name, b"%d" % len(body) if name.lower() == b"content-length" else value)
            for name, value in self._start["headers"]
        ]
        await self._send({**self._start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _events(self, body: bytes, more: bool) -> None:
        data = self._held + body
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        out, self._held = self._answers.passed(data)
        if not more and self._held.strip():
            out += self._answers.event(self._held)
        if self._answers.cut:
            out += self._answers.end()
            more = False
        if out or not more:
            await self._send({"type": "http.response.body", "body": out, "more_body": more})
        if self._answers.cut:
            # Only now: who is told that the client has gone may end this very task.
            self._stop()
