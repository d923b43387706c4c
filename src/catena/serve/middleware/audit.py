"""What is asked and answered, written down: the request as it came, the answer as it left, what was decided between.

Nothing of an answer leaves before its request's record is on the disk, and its end not before its own record is (where
`durable`): the writing goes on while the model works, so that it hardly shows. Requests that nobody may read (health,
metrics) are left out; refused ones are in.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from catena.core.errors import CatenaError
from catena.govern.audit.log import Log, made
from catena.govern.config import AuditConfig
from catena.serve import metrics
from catena.serve.errors import answer_to
from catena.serve.middleware.exchange import Exchange, exchange_of
from catena.serve.rules import Rules
from catena.serve.wire import too_deep

ANONYMOUS = "anonymous"
"""Subject of what is asked where nobody is asked who they are."""
SOON_S = 0.005
"""So long the record of a request may wait for others, while the model works."""
SMALL = 16_384
"""Bytes up to which a body's record is made at once, and not by the log's thread."""
SECRET = "not kept: it may hold a secret"
LEFT_OUT = frozenset({"public", "metrics"})


class Audit:
    """ASGI middleware, the outermost of governance."""

    def __init__(self, app: ASGIApp, log: Log, config: AuditConfig, rules: Rules | None = None) -> None:
        self._app, self._log, self._config = app, log, config
        self._rules = rules or Rules()
        self._news: _News | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and write down what came of it."""
        action = self._rules.action(scope["method"], scope["path"]) if scope["type"] == "http" else "public"
        if action in LEFT_OUT:
            if action == "metrics":
                exchange_of(scope).metrics += metrics.render_status("audit", self._log.status())
            await self._app(scope, receive, send)
            return
        if self._news is None or self._news.loop is not asyncio.get_running_loop():
            self._news = _News()
        trail = _Trail(self._log, self._config, self._news, (scope, receive, send))
        try:
            await self._app(scope, trail.receive, trail.send)
        finally:
            trail.leave()


class _Trail:
    """One request's way into the log."""

    def __init__(self, log: Log, config: AuditConfig, news: _News, call: tuple[Scope, Receive, Send]) -> None:
        self._log, self._config, self._news = log, config, news
        self._scope, self._receive, self._send = call
        self._exchange = exchange_of(self._scope)
        self._began = time.perf_counter()
        self._asked, self._answered = _Kept(config.max_bytes), _Kept(config.max_bytes)
        self._written: asyncio.Future[CatenaError | None] | None = None
        self._start: Message | None = None
        self._started = self._ended = self._refused = False
        self._status, self._events = 0, False
        self._model = ""
        """Known once the request is written down, which is always before its answer is."""

    async def receive(self) -> Message:
        """Pass a piece of the body on; with the last one the request is written down."""
        message = await self._receive()
        if message["type"] == "http.request" and self._written is None:
            self._asked.add(message.get("body", b""))
            if not message.get("more_body", False):
                self._written = self._write(self._request(), len(self._asked), soon=True)
                self._news.later(self._log)
        return message

    async def send(self, message: Message) -> None:
        """Pass a piece of the answer on when what has to be written before is written."""
        if self._refused or self._ended:
            return
        if message["type"] == "http.response.start":
            self._start, self._status = message, message["status"]
            kinds = [value for name, value in message["headers"] if name.lower() == b"content-type"]
            self._events = bool(kinds) and kinds[0].startswith(b"text/event-stream")
            return
        self._answered.add(message.get("body", b""))
        problem = await (self._wait(self._written) if message.get("more_body", False) else self._finish())
        if problem is not None:
            await self._refuse(problem)
            return
        if not self._started and self._start is not None:
            self._started = True
            await self._send(self._start)
        await self._send(message)

    def leave(self) -> None:
        """Write down an answer that did not come to its end."""
        if self._ended or (self._refused and self._status == 0):
            return
        self._ended = True
        try:
            self._write(self._answer(cut=True), len(self._answered))
        except CatenaError:
            pass  # the log has said so, and who asked is gone

    async def _finish(self) -> CatenaError | None:
        """Write down the answer, not only after the request is on the disk: so one commit may take both."""
        self._ended = True
        try:
            written = self._write(self._answer(cut=False), len(self._answered))
        except CatenaError as error:
            return error
        problem = await self._wait(self._written)
        return problem or (await self._wait(written) if self._config.durable else None)

    async def _wait(self, written: asyncio.Future[CatenaError | None] | None) -> CatenaError | None:
        if written is None:
            return None
        if not written.done():
            self._log.flush()
        return await asyncio.shield(written)

    async def _refuse(self, problem: CatenaError) -> None:
        """Answer 503; an answer that is on its way already is cut instead: its end never comes."""
        self._refused = True
        if not self._started:
            await answer_to(problem)(self._scope, self._receive, self._send)

    def _write(
        self, entry: Callable[[], Mapping[str, Any]], size: int, *, soon: bool = False
    ) -> asyncio.Future[CatenaError | None]:
        written: asyncio.Future[CatenaError | None] = asyncio.get_running_loop().create_future()
        subject = self._exchange.principal.subject if self._exchange.principal is not None else ANONYMOUS
        self._log.write(subject, made(entry) if size <= SMALL else entry, partial(self._news.tell, written), soon=soon)
        return written

    def _about(self, kind: str) -> dict[str, Any]:
        exchange, client = self._exchange, self._scope.get("client")
        who = exchange.principal
        return {
            "kind": kind,
            "id": exchange.id,
            "subject": who.subject if who is not None else ANONYMOUS,
            "key": who.key if who is not None else "",
            "role": who.role if who is not None else "",
            "client": client[0] if client else "",
            "method": self._scope["method"],
            "path": self._scope["path"],
        }

    def _request(self) -> Callable[[], Mapping[str, Any]]:
        about, kept = self._about("request"), self._asked

        def entry() -> Mapping[str, Any]:
            parsed = _parsed(kept.data)
            model = parsed.get("model") if isinstance(parsed, dict) else None
            self._model = model if isinstance(model, str) else ""
            return {**about, "model": self._model, **kept.told(parsed)}

        return entry

    def _answer(self, *, cut: bool) -> Callable[[], Mapping[str, Any]]:
        exchange: Exchange = self._exchange
        about = {
            **self._about("answer"),
            "action": exchange.action,
            "status": self._status,
            "decisions": exchange.decisions,
            "ms": round((time.perf_counter() - self._began) * 1000, 1),
            "cut": cut,
        }
        kept, events = self._answered, self._events
        if exchange.secret:
            return lambda: {**about, "body": SECRET, "bytes": len(kept)}

        def entry() -> Mapping[str, Any]:
            return {**about, "model": self._model, **kept.told(said(kept.data) if events else _parsed(kept.data))}

        return entry


class _News:
    """Brings word from the log's thread to those who wait in the event loop: of a whole commit at once."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._told: deque[tuple[asyncio.Future[CatenaError | None], CatenaError | None]] = deque()
        self._coming = self._timed = False

    def tell(self, written: asyncio.Future[CatenaError | None], problem: CatenaError | None) -> None:
        """Say what became of a record; from any thread."""
        self._told.append((written, problem))
        if self._coming:
            return
        self._coming = True
        try:
            self.loop.call_soon_threadsafe(self._settle)
        except RuntimeError:
            pass  # the loop ended with the server: nobody waits

    def later(self, log: Log) -> None:
        """Let what waits in a log be written in a moment, if nothing is in more of a hurry."""
        if not self._timed:
            self._timed = True
            self.loop.call_later(SOON_S, self._flush, log)

    def _flush(self, log: Log) -> None:
        self._timed = False
        log.flush()

    def _settle(self) -> None:
        self._coming = False  # first: what is told from here on comes by another call
        while self._told:
            written, problem = self._told.popleft()
            if not written.done():
                written.set_result(problem)


class _Kept:
    """The beginning of a body, and the SHA-256 of all of it where it is longer."""

    def __init__(self, limit: int) -> None:
        self._limit, self._pieces, self._size = limit, list[bytes](), 0
        self._digest = hashlib.sha256()

    def add(self, piece: bytes) -> None:
        """Take a piece."""
        if piece:
            room = self._limit - self._size
            if room > 0:
                self._pieces.append(piece[:room])
            self._size += len(piece)
            self._digest.update(piece)

    def __len__(self) -> int:
        return self._size

    @property
    def data(self) -> bytes:
        """What was kept."""
        return b"".join(self._pieces)

    def told(self, parsed: Any) -> dict[str, Any]:
        """Return what the record says of it: JSON as such, other text as text."""
        body = parsed if parsed is not None else self.data.decode("utf-8", "replace")
        longer = {"sha256": self._digest.hexdigest()} if self._size > self._limit else {}
        return {"body": body, "bytes": self._size, **longer}


def _parsed(data: bytes) -> Any:
    try:
        value = orjson.loads(data) if data else ""
    except orjson.JSONDecodeError:
        return None
    return None if too_deep(data, value) else value  # as text: what is deep cannot be written as JSON again


def said(data: bytes) -> dict[str, Any]:
    """Return what a stream of events said: the text of each choice, joined; beside it what it thought, refused and the
    like, under the names that the events give it; and what else came."""
    texts: dict[str, list[str]] = {}
    beside: dict[str, dict[str, list[str]]] = {}
    ends: dict[str, Any] = {}
    others: list[Any] = []
    about: dict[str, Any] = {}
    for line in data.split(b"\n"):
        if not line.startswith(b"data:"):
            continue
        body = _parsed(line[5:])
        if not isinstance(body, dict):
            continue
        if not about:  # which answer of which weights: the first event says it
            about = {name: body[name] for name in ("id", "system_fingerprint") if isinstance(body.get(name), str)}
        known = False
        for choice in body.get("choices") or ():
            known = True
            index = str(choice.get("index", 0))
            texts.setdefault(index, [])
            for name, value in ({"text": choice.get("text")} | (choice.get("delta") or {})).items():
                if isinstance(value, str) and name in ("text", "content"):
                    texts.setdefault(index, []).append(value)
                elif isinstance(value, str) and name != "role":
                    beside.setdefault(index, {}).setdefault(name, []).append(value)
                elif value and name != "role":
                    others.append(value if name == "tool_calls" else {name: value})
            if choice.get("finish_reason"):
                ends[index] = choice["finish_reason"]
        if isinstance(body.get("delta"), str):
            known = True
            index, name = str(body.get("output_index", 0)), str(body.get("type", "")).removesuffix(".delta")
            own = texts if name == "response.output_text" else beside.setdefault(index, {})
            own.setdefault(index if own is texts else name, []).append(body["delta"])
        if "error" in body or not known:
            others.append(body)
    thought = {index: {name: "".join(one) for name, one in named.items()} for index, named in beside.items()}
    return {
        **about,
        "text": {index: "".join(pieces) for index, pieces in texts.items()},
        **({"beside": thought} if thought else {}),
        "ends": ends,
        "events": others,
    }
