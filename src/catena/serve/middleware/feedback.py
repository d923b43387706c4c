"""What users say of answers: `/v1/feedback`, answered here, and a note of who got which answer.

POST /v1/feedback        a thumb, and maybe a correction, from who got the answer (action `feedback`)
GET  /v1/feedback        what was said, in the order of the last change, for who may see data (action `data`)
GET  /v1/feedback/{id}

It stands behind audit and keys: every call is in the audit, and nobody rates an answer that another one got.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from catena.core.errors import CatenaError
from catena.govern.feedback.book import Book, Entry, Said
from catena.govern.moderation.moderator import Moderator
from catena.serve.config import ServeConfig
from catena.serve.endpoint import Gone, decode, read_body, require_json
from catena.serve.errors import answer_to, refuse
from catena.serve.middleware.answers import note
from catena.serve.middleware.audit import ANONYMOUS
from catena.serve.middleware.exchange import Exchange, exchange_of
from catena.serve.rules import Rules
from catena.serve.wire import WireError

PATH = "/v1/feedback"
ANSWERED = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
NAME = re.compile(rb'"id":\s*"([A-Za-z0-9._:/+=-]{1,128})"')
MODEL = re.compile(rb'"model":\s*"([^"\\]{1,256})"')
LOOKED_AT = 512
"""Bytes at the beginning of an answer in which its id stands."""
MOST_SHOWN = 1000


class FeedbackBody(BaseModel):
    """The body of `POST /v1/feedback`; exactly one of the two ids."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    request_id: str | None = Field(default=None, min_length=1, max_length=128)
    """The answer's `x-request-id`."""
    response_id: str | None = Field(default=None, min_length=1, max_length=128)
    """The answer's `id`."""
    rating: Literal["up", "down"]
    correction: str | None = Field(default=None, max_length=100_000)
    """What the answer should have been."""
    comment: str | None = Field(default=None, max_length=10_000)
    """For people to read; never learnt from."""
    consent: bool
    """Whether question, answer and correction may be learnt from."""


class Feedback:
    """ASGI middleware."""

    ROUTES: ClassVar[Mapping[str, tuple[str, ...]]] = {PATH: ("GET", "POST"), f"{PATH}/{{id}}": ("GET",)}

    def __init__(
        self,
        app: ASGIApp,
        book: Book,
        config: ServeConfig,
        moderator: Moderator | None = None,
        rules: Rules | None = None,
    ) -> None:
        self._app, self._book, self._config, self._moderator = app, book, config, moderator
        self._rules = rules or Rules()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is about feedback; pass on everything else, and note answers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if path in ANSWERED and scope["method"] == "POST":
            noting = _Noting(self._book, exchange_of(scope), receive, send)
            await self._app(scope, noting.receive, noting.send)
            return
        if path != PATH and not path.startswith(f"{PATH}/"):
            await self._app(scope, receive, send)
            return
        try:
            response = await self._answer(scope, receive)
        except Gone:
            return
        except CatenaError as error:
            response = answer_to(error)
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        method, path = scope["method"], scope["path"]
        if self._rules.action(method, path) is None:
            known = path == PATH or "/" not in path.removeprefix(f"{PATH}/")
            if not known:
                return refuse(404, f"there is no {path} here", code="unknown_url")
            return refuse(405, f"{method} is not allowed for {path}", code="method_not_allowed")
        if method == "POST":
            return await self._rate(scope, receive)
        if path == PATH:
            return await self._list(scope)
        entry = await asyncio.to_thread(self._book.entry, path.removeprefix(f"{PATH}/"))
        return JSONResponse(shown(entry, words=True))

    async def _rate(self, scope: Scope, receive: Receive) -> Response:
        exchange = exchange_of(scope)
        body = _checked(await self._read(scope, receive))
        correction = self._reviewed(exchange, body.correction or "")
        comment = self._reviewed(exchange, body.comment or "")
        said = Said(body.rating, body.consent, correction, comment)
        name = body.request_id or body.response_id or ""
        entry, changed = await asyncio.to_thread(self._book.rate, _subject(exchange), name, said)
        exchange.decisions.append(
            {
                "by": "feedback",
                "decision": "kept" if changed else "unchanged",
                "request": entry.trace,
                "revision": entry.revision,
            }
        )
        if changed and entry.revision == 1:
            for listener in self._book.listeners:
                listener(entry.request, entry.rating == "up")
        return JSONResponse(shown(entry), 201 if changed and entry.revision == 1 else 200)

    async def _read(self, scope: Scope, receive: Receive) -> Any:
        require_json(scope)
        try:
            async with asyncio.timeout(self._config.body_timeout_s):
                return decode(await read_body(scope, receive, self._config.max_body_bytes))
        except TimeoutError as error:
            message = f"the body did not arrive within {self._config.body_timeout_s:g} s"
            raise WireError(message, code="request_timeout", status=408) from error

    def _reviewed(self, exchange: Exchange, text: str) -> str:
        """Return a user's text as moderation lets it pass; raises `WireError` where it is blocked."""
        if self._moderator is None or not text:
            return text
        outcome = self._moderator.review(text)
        note(exchange, "feedback", [outcome])
        if outcome.blocked:
            raise WireError("the feedback was refused by moderation", code="content_filter")
        return outcome.text

    async def _list(self, scope: Scope) -> Response:
        asked = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True))
        unknown = sorted(set(asked) - {"after", "limit", "model", "rating"})
        if unknown:
            raise WireError(f"unknown parameter: {unknown[0]}", param=unknown[0], code="unknown_parameter")
        after, limit = _number(asked, "after", 0, 2**53), _number(asked, "limit", 100, MOST_SHOWN)
        model, rating = asked.get("model", ""), asked.get("rating", "")
        found = await asyncio.to_thread(self._book.entries, since=after, model=model, rating=rating, limit=limit)
        last = found[-1].number if found else after
        data = [shown(one, words=True) for one in found]
        return JSONResponse({"object": "list", "data": data, "last": last, "has_more": len(found) == limit > 0})


class _Noting:
    """An answer on its way: when it begins, it is noted whose it is and what it is called."""

    def __init__(self, book: Book, exchange: Exchange, receive: Receive, send: Send) -> None:
        self._book, self._exchange, self._receive, self._send = book, exchange, receive, send
        self._name, self._model, self._good, self._noted = "", "", False, False

    async def receive(self) -> Message:
        """Pass a piece of the request on; in the first one that has it, the model is found."""
        message = await self._receive()
        if not self._model and message.get("body") and (found := MODEL.search(message["body"])):
            self._model = found[1].decode("utf-8", "replace")
        return message

    async def send(self, message: Message) -> None:
        """Pass a message on."""
        if message["type"] == "http.response.start":
            self._good = message["status"] == 200
            for name, value in message["headers"]:
                if name.lower() == b"x-request-id":
                    self._name = value.decode("latin-1")
            if self._good and not self._name:
                self._name = self._exchange.id
                headers = [*message["headers"], (b"x-request-id", self._name.encode())]
                message = {**message, "headers": headers}
        elif self._good and not self._noted and message.get("body"):
            self._noted = True
            found, exchange = NAME.search(message["body"][:LOOKED_AT]), self._exchange
            names = (self._name, found[1].decode() if found else "")
            self._book.note(_subject(exchange), exchange.id, names, exchange.model or self._model)
        await self._send(message)


def _subject(exchange: Exchange) -> str:
    return exchange.principal.subject if exchange.principal is not None else ANONYMOUS


def _checked(body: Any) -> FeedbackBody:
    if not isinstance(body, dict):
        raise WireError("the body must be a JSON object")
    try:
        found = FeedbackBody.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise WireError(f"{name} is required", param=name, code="missing_required_parameter") from error
        if first["type"] == "extra_forbidden":
            raise WireError(f"unknown parameter: {name}", param=name, code="unknown_parameter") from error
        code = "invalid_type" if first["type"].endswith("_type") else "invalid_value"
        raise WireError(f"{name}: {first['msg'][:1].lower()}{first['msg'][1:]}", param=name, code=code) from error
    if (found.request_id is None) == (found.response_id is None):
        raise WireError("exactly one of request_id and response_id is required", param="request_id")
    return found


def _number(asked: dict[str, str], name: str, default: int, most: int) -> int:
    text = asked.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not int(text[:20]) <= most:
        raise WireError(f"{name} must be a number from 0 to {most}", param=name, code="invalid_value")
    return int(text)


def shown(entry: Entry, *, words: bool = False) -> dict[str, Any]:
    """Return a feedback as clients see it; with `words` also whose it is and what was written."""
    told: dict[str, Any] = {
        "id": entry.id,
        "object": "feedback",
        "request_id": entry.request,
        "model": entry.model,
        "rating": entry.rating,
        "consent": entry.consent,
        "corrected": entry.corrected,
        "created": entry.created // 1_000_000,
        "revision": entry.revision,
    }
    if words:
        told |= {
            "number": entry.number,
            "trace": entry.trace,
            "subject": entry.subject,
            "correction": entry.correction,
            "comment": entry.comment,
            "changed": datetime.fromtimestamp(entry.changed / 1e6, UTC).isoformat(timespec="seconds"),
            "erased": entry.erased,
        }
    return told


def books(middleware: Sequence[Any]) -> list[Book]:
    """Return the books among middlewares: who wants to hear of ratings, or count them, finds them here."""
    return [kind.kwargs["book"] for kind in middleware if kind.cls is Feedback]
