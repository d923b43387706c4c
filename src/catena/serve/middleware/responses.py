"""Answers in the form of responses, moderated: items of `output`, and the events that tell how each text in them grows.

What is said again at the end of a text, a part, an item or all of it is what has left of it, and not what came.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from catena.govern.moderation.moderator import Moderator
from catena.serve.middleware.answers import FILTERED, Answers
from catena.serve.middleware.exchange import Exchange

SAID = ("text", "refusal", "arguments", "input", "code")
"""Keys of a whole text in the events of a response that tell its end."""


class ResponseAnswers(Answers):
    """Responses: items of `output`, and events that tell how they grow."""

    def __init__(self, moderator: Moderator, exchange: Exchange) -> None:
        super().__init__(moderator, exchange)
        self._said: dict[tuple[int, int], str] = {}
        """What has left of each text: by output and content index; -1 is what a call gives, -2 and on are summaries."""
        self._response: dict[str, Any] = {}
        self._items: dict[int, dict[str, Any]] = {}
        self._number = 0

    def whole(self, body: Any) -> Any:
        """Return a body whose items end where a blocked span begins."""
        kept = []
        for item in body.get("output") or ():
            kept.append(self._walked(item))
            for part in kept[-1].get("content") or ():
                if isinstance(part, dict):
                    part["logprobs"] = []
            if self._blocked:
                kept[-1]["status"] = "incomplete"
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
        place = (output, self._place(kind, body))
        if kind.endswith(".delta"):
            yield from self._grown(body, place, str(body.get("delta", "")), end=False)
            return
        if kind.endswith(".done") and place in self._said and any(name in body for name in SAID):
            more = {**body, "type": kind.removesuffix("done") + "delta"}
            for name in (*SAID, "name"):
                more.pop(name, None)
            yield from self._grown(more, place, "", end=True)
            if self.cut:
                return
        settled = self._settled(body, place)
        if self._blocked:
            self.cut = True
            settled = {"type": "response.incomplete", "response": self._incomplete()}
        yield settled

    @staticmethod
    def _place(kind: str, body: dict[str, Any]) -> int:
        """Return which text of its item an event is about."""
        if "_call_" in kind:
            return -1
        return -2 - int(body["summary_index"]) if "summary_index" in body else int(body.get("content_index", 0))

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

    def _settled(self, body: dict[str, Any], place: tuple[int, int]) -> dict[str, Any]:
        """Return an event with the texts in it as they have left."""
        made = self._texts(body, place)
        if isinstance(body.get("part"), dict):
            made["part"] = self._part(body["part"], place)
        if isinstance(body.get("item"), dict):
            made["item"] = self._item(body["item"], place[0])
        if isinstance(body.get("response"), dict):
            items = body["response"].get("output") or []
            made["response"] = {**body["response"], "output": [self._item(one, at) for at, one in enumerate(items)]}
        if "logprobs" in body:
            made["logprobs"] = []
        return self._others(body, made)

    def _item(self, item: dict[str, Any], output: int) -> dict[str, Any]:
        made = self._texts(item, (output, -1))
        for name, first, step in (("content", 0, 1), ("summary", -2, -1)):
            if isinstance(item.get(name), list):
                made[name] = [self._part(part, (output, first + step * at)) for at, part in enumerate(item[name])]
        return self._others(item, made)

    def _part(self, part: dict[str, Any], place: tuple[int, int]) -> dict[str, Any]:
        made = self._texts(part, place)
        return self._others(part, made | ({"logprobs": []} if "logprobs" in part else {}))

    def _texts(self, value: dict[str, Any], place: tuple[int, int]) -> dict[str, Any]:
        return {name: self._said.get(place, "") for name in SAID if isinstance(value.get(name), str)}

    def _others(self, value: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
        """Return a value with what is `made` of it, and all else looked through."""
        return {name: made[name] if name in made else self._walked(one, name) for name, one in value.items()}

    def _incomplete(self) -> dict[str, Any]:
        items = []
        for output, item in sorted(self._items.items()):
            texts = [text for (at, index), text in sorted(self._said.items()) if at == output and index >= 0]
            parts = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []} for text in texts]
            content = {"content": parts} if item.get("type") == "message" else {}
            items.append({**self._item({**item, "content": []}, output), **content, "status": "incomplete"})
        details = {"reason": FILTERED}
        return {**self._response, "status": "incomplete", "incomplete_details": details, "output": items}
