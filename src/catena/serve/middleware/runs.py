"""Runs of events that differ in one text alone, as a model writes them: read by a pattern instead of as JSON each.

    data: {"id":...,"choices":[{"index":0,"delta":{"content":"  parcel"},"finish_reason":null}]}
    |---------------------- head -----------------------------|  text |--------- tail ---------|

The form is taken from an event that was read and understood, and only where writing it again gives the same bytes, so
there is nothing in head and tail that was not looked at. What fits it is looked through as one text, and its events
leave as they came, each when all of its text may.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from catena.govern.moderation.stream import Outcome

# The inside of a JSON string. Nothing is given back once taken: a long text that does not fit costs one pass.
TEXT = rb'((?>[^"\\\x00-\x1f]*)(?>\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})(?>[^"\\\x00-\x1f]*))*+)'
PLAIN = frozenset({"id", "object", "created", "model", "system_fingerprint", "service_tier", "choices"})
"""Keys of an event that tell nothing of what the model writes; any other must be null."""
WRITERS: tuple[Callable[[Any], bytes], ...] = (
    orjson.dumps,
    lambda body: json.dumps(body).encode(),
    lambda body: json.dumps(body, ensure_ascii=False).encode(),
)


@dataclass(frozen=True, slots=True)
class Form:
    """What all events of a run have in common."""

    match: Callable[..., re.Match[bytes] | None]
    body: Mapping[str, Any]
    index: int
    name: str
    """`content`, `text`, ...: the key of the text."""

    def event(self, text: str, **choice: Any) -> dict[str, Any]:
        """Return an event of this form with another text, and what else its choice says."""
        first = dict(self.body["choices"][0])
        if "delta" in first:
            first["delta"] = {**first["delta"], self.name: text}
        else:
            first[self.name] = text
        return {**self.body, "choices": [{**first, **choice}]}


def form_of(data: bytes, body: Mapping[str, Any], texts: tuple[str, ...]) -> Form | None:
    """Return the form of an event (`data` is its JSON), or None where it says more than one text."""
    choices = body.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not _plain(body, PLAIN):
        return None
    choice = choices[0]
    place = choice.get("delta", choice)
    names = [name for name in texts if isinstance(place.get(name), str)]
    inside = {"index", "delta"} if "delta" in choice else {"index", *names}
    if len(names) != 1 or not _plain(choice, inside) or not (place is choice or _plain(place, {"role", *names})):
        return None
    text = place[names[0]]
    if not text or not isinstance(choice.get("index", 0), int) or all(write(body) != data for write in WRITERS):
        return None
    for colon in (b'":', b'": '):
        opening = b'"' + names[0].encode() + colon + b'"'
        head, found, rest = data.partition(opening)
        for quoted in (orjson.dumps(text), json.dumps(text).encode()) if found and opening not in rest else ():
            if rest.startswith(quoted[1:]):
                tail = rest[len(quoted) - 1 :]
                pattern = re.escape(b"data: " + head + opening) + TEXT + re.escape(b'"' + tail + b"\n\n")
                return Form(re.compile(pattern).match, body, int(choice.get("index", 0)), names[0])
    return None


def _plain(values: Mapping[str, Any], known: set[str] | frozenset[str]) -> bool:
    return all(name in known or value is None for name, value in values.items())


class Run:
    """Events of one form on their way out."""

    def __init__(self, form: Form, held: int) -> None:
        self.form = form
        self._waiting: deque[tuple[bytes, int]] = deque([(b"", held)] if held else ())
        """Events, and how much text each has; without bytes where a part of it has left already."""
        self._owed = ""
        """What may leave, and is not a whole event yet: the beginning of the texts that wait."""

    def read(self, data: bytes, at: int) -> tuple[str, int]:
        """Take all events that stand at a place of `data`; returns their text, and where they end."""
        match, pieces, taken = self.form.match, [], at
        while (found := match(data, taken)) is not None:
            raw = found[1]
            try:
                piece = str(orjson.loads(b'"' + raw + b'"')) if b"\\" in raw else raw.decode()
            except (orjson.JSONDecodeError, UnicodeDecodeError):
                break
            pieces.append(piece)
            self._waiting.append((found[0], len(piece)))
            taken = found.end()
        return "".join(pieces), taken

    def leaving(self, outcome: Outcome) -> list[bytes | str]:
        """Return what leaves now: whole events, and texts that have no event of their own any more."""
        ready: list[bytes | str] = []
        if outcome.changed:
            self._forget(len(self._owed) + outcome.taken)
            ready, self._owed = [self._owed + outcome.text], ""
            return ready if ready[0] else []
        self._owed += outcome.text
        at, waiting = 0, self._waiting
        while waiting and at + waiting[0][1] <= len(self._owed):
            raw, length = waiting.popleft()
            ready.append(raw or self._owed[at : at + length])
            at += length
        self._owed = self._owed[at:]
        return ready

    def rest(self) -> str:
        """Return what may leave, and forget the events: the rest of their texts comes with others."""
        owed, self._owed = self._owed, ""
        self._waiting.clear()
        return owed

    def _forget(self, characters: int) -> None:
        while self._waiting and self._waiting[0][1] <= characters:
            characters -= self._waiting.popleft()[1]
        if characters and self._waiting:
            self._waiting[0] = (b"", self._waiting[0][1] - characters)
