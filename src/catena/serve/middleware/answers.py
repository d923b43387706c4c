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
TEXTS = ("content", "refusal", "reasoning_content", "reasoning", "text")


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

    def _reviewed(self, text: str) -> Outcome:
        return self._noted(self._moderator.review(text))


class ChoiceAnswers(Answers):
    """Chat and text completions: texts in `choices`."""

    def __init__(self, moderator: Moderator, exchange: Exchange) -> None:
        super().__init__(moderator, exchange)
        parsed = exchange.parsed if isinstance(exchange.parsed, dict) else {}
        self._wanted = parsed.get("n") or 1
        self._over: set[int] = set()
        self._blocked_early = False
        self._run: Run | None = None

    def whole(self, body: Any) -> Any:
        """Return a body whose choices end where a blocked span begins."""
        for choice in body.get("choices") or ():
            choice["logprobs"] = None
            place = choice.get("message", choice)
            blocked = False
            for name in TEXTS:
                if isinstance(place.get(name), str):
                    outcome = self._reviewed(place[name])
                    place[name], blocked = outcome.text, blocked or outcome.blocked
            for call in place.get("tool_calls") or ():
                outcome = self._reviewed(call["function"]["arguments"])
                call["function"]["arguments"], blocked = outcome.text, blocked or outcome.blocked
            if blocked:
                place.pop("tool_calls", None)
                choice["finish_reason"] = FILTERED
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
        delta = dict(choice.get("delta") or {})
        place = delta if "delta" in choice else choice
        texts = {name: place[name] for name in TEXTS if isinstance(place.get(name), str)}
        made, blocked = self._texts(index, texts, finished)
        calls, blocked_call = self._calls(index, delta.get("tool_calls") or [], finished)
        blocked = blocked or blocked_call
        rest = {name: value for name, value in delta.items() if name not in TEXTS and name != "tool_calls"}
        if not (made or calls or rest or finished or blocked) and (texts or delta.get("tool_calls")):
            return None
        if "role" in rest and not made:  # the first chunk says whose words follow
            made = dict.fromkeys(texts, "")
        if blocked or finished:
            self._over.add(index)
            self._blocked_early = self._blocked_early or (blocked and not finished)
        reason = FILTERED if blocked else choice.get("finish_reason")
        told = {**choice, "logprobs": None, "finish_reason": reason}
        if "delta" in choice:
            kept = {"tool_calls": calls} if calls and not blocked else {}
            return {**told, "delta": {**rest, **made, **kept}}
        return {**told, "text": made.get("text", "")}

    def _texts(self, index: int, texts: dict[str, str], finished: bool) -> tuple[dict[str, str], bool]:
        """Return what of a choice's texts may leave by now, and whether one is blocked."""
        made: dict[str, str] = {}
        names = {*texts, *(key[1] for key in self._streams if finished and key[0] == index and key[1] in TEXTS)}
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
            key = (index, "call", call.get("index", number))
            seen.add(key)
            function = dict(call.get("function") or {})
            outcome = self._pushed(key, function.get("arguments") or "", end=finished)
            blocked = blocked or outcome.blocked
            if "arguments" in function:
                function["arguments"] = outcome.text
            made.append({**call, "function": function})
        for key in [one for one in self._streams if finished and one[:2] == (index, "call") and one not in seen]:
            outcome = self._pushed(key, "", end=True)
            blocked = blocked or outcome.blocked
            if outcome.text:
                made.append({"index": key[2], "function": {"arguments": outcome.text}})
        return made, blocked


class ResponseAnswers(Answers):
    """Responses: items of `output`, and events that tell how they grow."""

    def __init__(self, moderator: Moderator, exchange: Exchange) -> None:
        super().__init__(moderator, exchange)
        self._said: dict[tuple[int, int], str] = {}
        """What has left of each text: by output and content index; -1 are a call's arguments."""
        self._response: dict[str, Any] = {}
        self._items: dict[int, dict[str, Any]] = {}
        self._number = 0

    def whole(self, body: Any) -> Any:
        """Return a body whose items end where a blocked span begins."""
        kept = []
        for item in body.get("output") or ():
            blocked = False
            for part in item.get("content") or ():
                part["logprobs"] = []
                outcome = self._reviewed(part.get("text") or "")
                part["text"], blocked = outcome.text, blocked or outcome.blocked
            if "arguments" in item:
                outcome = self._reviewed(item["arguments"])
                item["arguments"], blocked = outcome.text, blocked or outcome.blocked
            kept.append(item)
            if blocked:
                item["status"] = "incomplete"
                body |= {"status": "incomplete", "incomplete_details": {"reason": FILTERED}}
                break
        if "output" in body:
            body["output"] = kept
        return body

    def end(self) -> bytes:
        """A stream of this kind ends with its last event."""
        return b""

    def changed(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the events in place of one, numbered anew."""
        for one in self._events(body):
            yield {**one, "sequence_number": self._number}
            self._number += 1

    def _events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        kind, output = str(body.get("type", "")), int(body.get("output_index", 0))
        if isinstance(body.get("response"), dict):
            self._response = body["response"]
        if kind == "response.output_item.added":
            self._items[output] = body["item"]
        place = (output, -1 if "function_call_arguments" in kind else int(body.get("content_index", 0)))
        if kind.endswith(".delta"):
            yield from self._grown(body, place, str(body.get("delta", "")), end=False)
            return
        if kind.endswith(("output_text.done", "refusal.done", "function_call_arguments.done")):
            more = {**body, "type": kind.removesuffix("done") + "delta"}
            for name in ("text", "refusal", "arguments", "name"):
                more.pop(name, None)
            yield from self._grown(more, place, "", end=True)
            if self.cut:
                return
        yield self._settled(body)

    def _grown(
        self, body: dict[str, Any], place: tuple[int, int], piece: str, *, end: bool
    ) -> Iterator[dict[str, Any]]:
        outcome = self._pushed(place, piece, end=end)
        self._said[place] = self._said.get(place, "") + outcome.text
        without: dict[str, Any] = {"logprobs": []} if "logprobs" in body else {}
        if outcome.text:
            yield {**body, "delta": outcome.text, **without}
        if outcome.blocked:
            self.cut = True
            yield {"type": "response.incomplete", "response": self._incomplete()}

    def _settled(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return an event with the texts in it as they have left."""
        output = int(body.get("output_index", 0))
        made = {**body}
        for name, index in (("text", int(body.get("content_index", 0))), ("arguments", -1)):
            if isinstance(body.get(name), str):
                made[name] = self._said.get((output, index), "")
        if isinstance(body.get("part"), dict):
            made["part"] = self._part(body["part"], (output, int(body.get("content_index", 0))))
        if isinstance(body.get("item"), dict):
            made["item"] = self._item(body["item"], output)
        if isinstance(body.get("response"), dict):
            items = body["response"].get("output") or []
            made["response"] = {**body["response"], "output": [self._item(one, at) for at, one in enumerate(items)]}
        if "logprobs" in made:
            made["logprobs"] = []
        return made

    def _item(self, item: dict[str, Any], output: int) -> dict[str, Any]:
        made = {**item}
        if isinstance(item.get("content"), list):
            made["content"] = [self._part(part, (output, at)) for at, part in enumerate(item["content"])]
        if isinstance(item.get("arguments"), str):
            made["arguments"] = self._said.get((output, -1), "")
        return made

    def _part(self, part: dict[str, Any], place: tuple[int, int]) -> dict[str, Any]:
        without: dict[str, Any] = {"logprobs": []} if "logprobs" in part else {}
        return {**part, **({"text": self._said.get(place, "")} if "text" in part else {}), **without}

    def _incomplete(self) -> dict[str, Any]:
        items = []
        for output, item in sorted(self._items.items()):
            texts = [text for (at, index), text in sorted(self._said.items()) if at == output and index >= 0]
            parts = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []} for text in texts]
            content = {"content": parts} if item.get("type") == "message" else {}
            items.append({**self._item({**item, "content": []}, output), **content, "status": "incomplete"})
        details = {"reason": FILTERED}
        return {**self._response, "status": "incomplete", "incomplete_details": details, "output": items}
