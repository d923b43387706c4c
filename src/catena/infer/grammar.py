"""Grammars: answers that have the form which was asked for. Between the model's logits and the choice of a token.

A grammar is compiled once for a tokenizer (llguidance); each sequence has a matcher, which says before each token
which ones may follow, and is told after it which one was taken. An answer that is cut at its length is cut in the
middle of its form; any other one fulfils it.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Collection
from typing import Any, Protocol

import torch
from torch import Tensor

from catena.core.errors import UsageError
from catena.core.generate import Grammar
from catena.core.registry import require

KEPT = 64
"""Compiled grammars that are kept for the next request with the same one."""
WHITE_SPACE = {"whitespace_pattern": r"( |\n {0,24})?"}
"""A space, or a new line with its indent. The standard allows any amount, and small models go on with it for ever."""


class GrammarMatcher(Protocol):
    """Where one answer is in its grammar."""

    def allowed(self, vocabulary: int) -> Tensor:
        """Return which tokens may come next, bool `[vocabulary]`."""
        ...

    def accept(self, token: int) -> bool:
        """Take a token; False where the text is complete."""
        ...


class Grammars:
    """The grammars of one tokenizer. Safe for several threads."""

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._ends = ends
        self._lock = threading.Lock()
        self._kept: OrderedDict[Grammar, Any] = OrderedDict()
        self._words: Any = None

    def matcher(self, grammar: Grammar) -> GrammarMatcher:
        """Return a matcher at the beginning; raises `UsageError` for a grammar that says nonsense."""
        library = require("llguidance")
        with self._lock:
            if self._words is None:
                self._words = _words(self._tokenizer, self._vocabulary, self._ends)
            compiled = self._kept.get(grammar)
            if compiled is not None:
                self._kept.move_to_end(grammar)
                return _Matcher(compiled.deep_copy())
            words = self._words
        # Outside the lock: a schema may take a second, and others need not wait for it.
        compiled = library.LLMatcher(words, lark(grammar), log_level=0)
        if compiled.is_error():
            raise UsageError(f"the {NAMES[grammar.kind]} cannot be used: {_reason(compiled.get_error())}")
        with self._lock:
            self._kept[grammar] = compiled
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return _Matcher(compiled.deep_copy())


NAMES = {
    "json_schema": "JSON schema",
    "json": "JSON form",
    "regex": "regular expression",
    "choice": "list of choices",
    "tools": "schema of a tool",
}


class _Matcher:
    """A `GrammarMatcher` over llguidance's."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allowed(self, vocabulary: int) -> Tensor:
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        return ((bits[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()[:vocabulary].bool()

    def accept(self, token: int) -> bool:
        return bool(self._matcher.consume_token(token)) and not self._matcher.is_stopped()


def lark(grammar: Grammar) -> str:
    """Return a grammar in llguidance's Lark form; raises `UsageError` for a value that is not of its kind.

    A space may stand before everything: many tokenizers put one before each text, and take it off again.
    """
    side = 'start: SPACE? body\nSPACE: " "\n'
    if grammar.kind == "json":
        return f"{side}body: %json {_schema({'type': 'object'})}"
    if grammar.kind == "json_schema":
        return f"{side}body: %json {_schema(_decoded(grammar))}"
    if grammar.kind == "choice":
        choices = _decoded(grammar)
        if not isinstance(choices, list) or not choices or not all(isinstance(one, str) and one for one in choices):
            raise UsageError("choices are a list of texts, none of them empty")
        return f"{side}body: {' | '.join(json.dumps(one) for one in choices)}"
    if grammar.kind == "regex":
        return f"{side}body: TEXT\nTEXT: {_quoted(grammar.value)}"
    return _tools(_decoded(grammar))


def _tools(facts: dict[str, Any]) -> str:
    """Calls of tools, with free text around them or without."""
    forms = []
    for tool in facts["tools"]:
        schema = {
            "type": "object",
            "properties": {"name": {"const": tool["name"]}, "arguments": tool.get("parameters") or {"type": "object"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        forms.append(f"%json {_schema(schema)}")
    begin, end = facts["begin"], facts["end"]
    bodies = "\n".join(f"body_{number}: {form}" for number, form in enumerate(forms))
    body = "body: " + " | ".join(f"body_{number}" for number in range(len(forms)))
    close = f"SPACES: /[ \\n]{{0,2}}/\nclose: SPACES {json.dumps(end)}"
    if facts["free"]:
        trigger = f"call_begin[lazy]: TEXT {json.dumps(begin)}\nTEXT: /(.|\\n)*/"
        calling = "call: call_begin SPACES body close"
        calls = f"call{'*' if facts['many'] else '?'}"
        return f"start: {calls} rest\nrest: TEXT\n{calling}\n{close}\n{trigger}\n{body}\n{bodies}"
    calling = f"call: {json.dumps(begin)} SPACES body close"
    return f"start: SPACES call{' (SPACES call)*' if facts['many'] else ''}\n{calling}\n{close}\n{body}\n{bodies}"


def _schema(schema: Any) -> str:
    if isinstance(schema, dict):
        schema = {**schema, "x-guidance": WHITE_SPACE}
    return json.dumps(schema, ensure_ascii=False)


def _decoded(grammar: Grammar) -> Any:
    try:
        return json.loads(grammar.value)
    except ValueError as error:
        raise UsageError(f"the {NAMES[grammar.kind]} is no JSON: {error}") from error


def _quoted(expression: str) -> str:
    """Return a regular expression between slashes."""
    if not expression:
        raise UsageError("the regular expression is empty")
    escaped, after_backslash = "", False
    for character in expression:
        bare = character == "/" and not after_backslash
        escaped += "\\/" if bare else "\\n" if character == "\n" else character
        after_backslash = character == "\\" and not after_backslash
    return f"/{escaped}/"


def _words(tokenizer: Any, vocabulary: int, ends: Collection[int]) -> Any:
    from llguidance.hf import from_tokenizer

    if not getattr(tokenizer, "is_fast", False):
        raise UsageError("answers of a given form need a fast tokenizer", hint="Convert the model's to tokenizer.json.")
    known = sorted(ends) or tokenizer.eos_token_id
    return from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=known)


def _reason(message: str) -> str:
    """Return what a person can use of the compiler's message: its first line without the place in our text."""
    first = next((line for line in message.strip().splitlines() if line.strip()), "it is not valid")
    place, _, rest = first.partition(": ")
    return rest if place.startswith("at ") and rest else first
