"""Answers in OpenAI's forms, moderated: whole bodies, and events whose texts grow piece by piece.

Each growing text (a choice's content, a call's arguments) is a `Stream` of its own; an event carries what of it may
leave by now, and is left out where that is nothing. What is not understood does not leave.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from catena.govern.moderation.moderator import Moderator
from catena.govern.moderation.stream import Outcome, Stream
from catena.serve.middleware.exchange import Exchange
from catena.serve.middleware.runs import Run, form_of
from catena.serve.stream import DONE, event as framed

FILTERED = "content_filter"
LEGACY = -1
"""The number under which a `function_call` grows: it is the one call of its choice."""
TEXTS = ("content", "refusal", "reasoning_content", "reasoning", "text")
PROTOCOL = frozenset(
    {"type", "id", "item_id", "call_id", "role", "object", "status", "finish_reason", "encrypted_content"}
)
"""Keys whose values a model does not write."""


def note(exchange: Exchange, where: str, outcomes: Iterable[Outcome]) -> None:
    """Put decisions where the audit finds them."""
    for outcome in outcomes:
        for one in outcome.decisions:
            told = {"by": "moderation", "where": where, "decision": one.action, "reason": one.finding.kind}
            exchange.decisions.append({**told, "detail": one.finding.detail, "text": one.text})


class Answers(ABC):
    """One answer on its way out."""

    def __init__(self, moderator: Moderator, exchange: Exchange) -> None:
        self._moderator, self._exchange = moderator, exchange
        self._streams: dict[Any, Stream] = {}
        self.cut = False
        """Whether nothing more shall be sent, though more may come."""
        self._blocked = False
        """Whether a whole text had something in it that is blocked."""

    @abstractmethod
    def whole(self, body: Any) -> Any:
        """Return a whole answer as it may leave."""

    @abstractmethod
    def changed(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the events that leave in place of one."""

    def end(self) -> bytes:
        """Return what ends a stream that is cut."""
        return DONE

    def passed(self, data: bytes) -> tuple[bytes, bytes]:
        """Return what leaves in place of all whole events in `data`, and what is not a whole one yet."""
        *whole, rest = data.split(b"\n\n")
        return b"".join(self.event(block) for block in whole), rest

    def event(self, block: bytes) -> bytes:
        """Return the bytes that leave in place of one event's."""
        if self.cut:
            return b""
        name, data = "", b""
        for line in block.split(b"\n"):
            if line.startswith(b"event:"):
                name = line[6:].strip().decode("latin-1")
            elif line.startswith(b"data:"):
                data += line[5:].strip()
        if not data:
            return block + b"\n\n" if block.startswith(b":") else b""
        if data == b"[DONE]":
            return DONE
        try:
            body = orjson.loads(data)
        except orjson.JSONDecodeError:
            body = None
        if not isinstance(body, dict):
            self._exchange.decisions.append({"by": "moderation", "where": "answer", "decision": "dropped"})
            return b""
        made = [self.before(body)]
        made += [framed(one, str(one.get("type", name)) if name else "") for one in self.changed(body)]
        self.understood(data, body)
        return b"".join(made)

    def before(self, body: dict[str, Any]) -> bytes:
        """Return what is still owed of the events before this one."""
        return b""

    def understood(self, data: bytes, body: dict[str, Any]) -> None:  # noqa: B027  most have nothing to note
        """Note an event that has been dealt with: more like it may follow."""

    def _pushed(self, key: Any, piece: str, *, end: bool = False) -> Outcome:
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = self._moderator.stream()
        return self._noted(stream.push(piece, end=end))

    def _noted(self, outcome: Outcome) -> Outcome:
        if outcome.decisions:
            note(self._exchange, "answer", [outcome])
        return outcome

    def _walked(self, value: Any, key: str = "") -> Any:
        """Return a value with every text in it as it may leave, also those that only show when parts are joined."""
        if isinstance(value, str) and key not in PROTOCOL:
            outcome = self._noted(self._moderator.review(value))
            self._blocked |= outcome.blocked
            return outcome.text
        if isinstance(value, dict):
            return {name: self._walked(one, name) for name, one in value.items()}
        if not isinstance(value, list):
            return value
        made = [self._walked(one, key) for one in value]
        parts = [one for one in made if isinstance(one, dict) and isinstance(one.get("text"), str)]
        text = "".join(one["text"] for one in parts)
        if len(parts) > 1 and (outcome := self._moderator.review(text)).text != text:
            self._blocked |= self._noted(outcome).blocked
            for number, one in enumerate(parts):
                one["text"] = "" if number else outcome.text
        return made


class ChoiceAnswers(Answers):
    """Chat and text completions: texts in `choices`."""

    def __init__(self, moderator: Moderator, exchange: Exchange) -> None:
        super().__init__(moderator, exchange)
        parsed = exchange.parsed if isinstance(exchange.parsed, dict) else {}
        self._wanted = parsed.get("n") or 1
        self._over: set[int] = set()
        self._dropped: set[str] = set()
        self._blocked_early = False
        self._run: Run | None = None

    def whole(self, body: Any) -> Any:
        """Return a body whose choices end where a blocked span begins."""
        for choice in body.get("choices") or ():
            self._blocked = False
            choice.pop("token_ids", None)
            choice |= self._walked({**choice, "logprobs": None})
            if self._blocked:
                choice["finish_reason"] = FILTERED
                for name in ("tool_calls", "function_call"):
                    (choice.get("message") or choice).pop(name, None)
        return body

    def passed(self, data: bytes) -> tuple[bytes, bytes]:
        """The same; events like the one before are looked through together."""
        out: list[bytes] = []
        at = 0
        while not self.cut:
            if self._run is not None:
                text, end = self._run.read(data, at)
                if end > at:
                    out.append(self._together(self._run, text))
                    at = end
                    continue
            end = data.find(b"\n\n", at)
            if end < 0:
                break
            out.append(self.event(data[at:end]))
            at = end + 2
        return b"".join(out), data[at:]

    def understood(self, data: bytes, body: dict[str, Any]) -> None:
        """Take an event's form where there is none."""
        if self._run is None and not self.cut:
            form = form_of(data, body, TEXTS)
            stream = self._streams.get((form.index, form.name)) if form is not None else None
            if form is not None and stream is not None and form.index not in self._over:
                self._run = Run(form, stream.held)

    def _together(self, run: Run, text: str, *, end: bool = False) -> bytes:
        """Return what leaves of a run's events."""
        form = run.form
        outcome = self._pushed((form.index, form.name), text, end=end)
        ready = run.leaving(outcome)
        if not outcome.blocked:
            return b"".join(one if isinstance(one, bytes) else framed(form.event(one)) for one in ready)
        self._run = None
        self._over.add(form.index)
        self._blocked_early = True
        self.cut = len(self._over) >= self._wanted
        left = "".join(one for one in ready if isinstance(one, str))
        return framed(form.event(left, finish_reason=FILTERED))

    def before(self, body: dict[str, Any]) -> bytes:
        """Return what may leave of a run that is over, and all of it where its choice ends here."""
        run = self._run
        if run is None:
            return b""
        form, choices = run.form, body.get("choices") or ()
        own = [one for one in choices if one.get("index", 0) == form.index and one.get("finish_reason") is not None]
        if own and not any((one.get("delta") or one).get(form.name) for one in own):
            left = self._together(run, "", end=True)
        else:
            owed = run.rest()
            left = framed(form.event(owed)) if owed else b""
        self._run = None
        return left

    def changed(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield a chunk with what of its texts may leave."""
        if not body.get("choices"):
            yield body
            return
        choices = [made for choice in body["choices"] if (made := self._choice(choice)) is not None]
        if choices:
            yield {**body, "choices": choices}
        self.cut = self._blocked_early and len(self._over) >= self._wanted

    def _choice(self, choice: dict[str, Any]) -> dict[str, Any] | None:
        index = int(choice.get("index", 0))
        if index in self._over:
            return None
        finished = choice.get("finish_reason") is not None
        delta = choice.get("delta") or {}
        place = delta if "delta" in choice else choice
        texts = {name: text for name in place if isinstance(text := place[name], str) and self._grows(name, choice)}
        made, blocked = self._texts(index, texts, finished)
        asked = [*(delta.get("tool_calls") or ())]
        if isinstance(delta.get("function_call"), dict):
            asked.append({"index": LEGACY, "function": delta["function_call"]})
        calls, blocked_call = self._calls(index, asked, finished)
        blocked = blocked or blocked_call
        rest = {name: value for name, value in delta.items() if value is None or name == "role"}
        self._drop({name for name in delta if delta[name]} - texts.keys() - {"role", "tool_calls", "function_call"})
        if not (made or calls or rest or finished or blocked) and (texts or asked):
            return None
        if "role" in rest and not made:  # the first chunk says whose words follow
            made = dict.fromkeys(texts, "")
        if blocked or finished:
            self._over.add(index)
            self._blocked_early = self._blocked_early or (blocked and not finished)
        reason = FILTERED if blocked else choice.get("finish_reason")
        told: dict[str, Any] = {name: choice[name] for name in ("index", "stop_reason") if name in choice}
        told |= {"logprobs": None, "finish_reason": reason}
        if "delta" not in choice:
            return {**told, "text": made.get("text", "")}
        kept = [] if blocked else calls
        tools = [one for one in kept if one["index"] != LEGACY]
        legacy = next(({"function_call": one["function"]} for one in kept if one["index"] == LEGACY), {})
        return {**told, "delta": {**rest, **made, **legacy, **({"tool_calls": tools} if tools else {})}}

    @staticmethod
    def _grows(name: str, choice: dict[str, Any]) -> bool:
        """Tell whether a string of a chunk is a text that grows: each of a delta, of a completion the known ones."""
        return name != "role" if "delta" in choice else name in TEXTS

    def _drop(self, names: set[str]) -> None:
        """Note what does not leave, because nobody knows how it grows; once for each stream."""
        for name in sorted(names - self._dropped):
            self._dropped.add(name)
            told = {"by": "moderation", "where": "answer", "decision": "dropped", "detail": name}
            self._exchange.decisions.append(told)

    def _texts(self, index: int, texts: dict[str, str], finished: bool) -> tuple[dict[str, str], bool]:
        """Return what of a choice's texts may leave by now, and whether one is blocked."""
        made: dict[str, str] = {}
        names = {*texts, *(key[1] for key in self._streams if finished and key[0] == index and len(key) == 2)}
        blocked = False
        for name in names:
            outcome = self._pushed((index, name), texts.get(name, ""), end=finished)
            blocked = blocked or outcome.blocked
            if outcome.text:
                made[name] = outcome.text
        return made, blocked

    def _calls(self, index: int, calls: list[Any], finished: bool) -> tuple[list[Any], bool]:
        """The same for the arguments of its calls; at its end they give the rest that was held back."""
        made, blocked = [], False
        seen = set()
        for number, call in enumerate(calls):
            kind, name = ("custom", "input") if isinstance(call.get("custom"), dict) else ("function", "arguments")
            key = (index, "call", call.get("index", number), kind, name)
            seen.add(key)
            inner = call.get(kind) or {}
            outcome = self._pushed(key, str(inner.get(name) or ""), end=finished)
            called = self._noted(self._moderator.review(str(inner.get("name") or "")))
            blocked = blocked or outcome.blocked or called.blocked
            told = {one: call[one] for one in ("id", "type") if one in call}
            grown = {one: text for one, text in (("name", called.text), (name, outcome.text)) if one in inner}
            made.append({"index": key[2], **told, kind: grown})
        for key in [one for one in self._streams if finished and one[:2] == (index, "call") and one not in seen]:
            outcome = self._pushed(key, "", end=True)
            blocked = blocked or outcome.blocked
            if outcome.text:
                made.append({"index": key[2], key[3]: {key[4]: outcome.text}})
        return made, blocked
