"""A tokenizer as llama.cpp applies it: tokens, merges or scores, the way text is cut before, and the chat template.

llama.cpp cuts text by rules that are built in and have names; a file can only name one. Where none of them is the
tokenizer's own (`Vocabulary.exact` is false) the nearest is named: prompts given as text may then be read as other
tokens than here, prompts given as token ids never.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from catena.core.errors import UsageError
from catena.models.tokenizer import CHAT_TEMPLATE, PATTERNS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""llama.cpp's types of tokens."""
WORDS = PATTERNS["words"]
CUTS: Mapping[str, str] = {
    WORDS: "qwen2",
    WORDS.replace(r"\p{N}|", r"\p{N}{1,3}|"): "llama-bpe",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt-2",
}
"""What text is cut by, to llama.cpp's name for it."""
NEAREST = {PATTERNS["names"]: "superbpe"}
"""Identifiers with their dots stay whole; of the built-in rules only this one does not cut them at every dot."""
SPACED_TEMPLATE = CHAT_TEMPLATE.replace(
    "message['content'] +", "((' ' + message['content']) if message['content'] else '') +"
)
"""Catena's own, for engines that do not put a space before every text as its tokenizer does."""
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What stands under `tokenizer.` in the file."""

    model: str
    """`gpt2`: merges of bytes; `llama`: SentencePiece's pieces."""
    tokens: list[str]
    types: list[int]
    cut: str = ""
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    spaced: bool = False
    """A space is put before every text."""
    exact: bool = True


def vocabulary_of(tokenizer: Any, rows: int) -> Vocabulary:
    """Read a tokenizer; `rows` is the number of rows of the embedding, which may be more than there are tokens.

    Raises `UsageError` for a kind that llama.cpp does not have.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UsageError("the tokenizer has no tokenizer.json, from which a GGUF file could be made")
    found = json.loads(backend.to_str())
    kind = found["model"]["type"]
    if kind != "BPE":
        raise UsageError(f"llama.cpp has no tokenizer of the kind {kind}", hint="Only BPE can be written as GGUF here.")
    tokens, types = _tokens(found, rows)
    merges = [" ".join(one) if isinstance(one, list) else one for one in found["model"]["merges"]]
    if found["model"].get("byte_fallback"):
        return _pieces(found, tokens, types, merges)
    cut, exact = _cut(found.get("pre_tokenizer"))
    return Vocabulary("gpt2", tokens, types, cut, merges, spaced=_prepends(found, " "), exact=exact)


def _tokens(found: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Return the tokens in the order of their ids, and their types; rows without a token get names of their own."""
    tokens = [f"[PAD{number}]" for number in range(rows)]
    types = [UNUSED] * rows
    for token, id in found["model"]["vocab"].items():
        tokens[id], types[id] = token, BYTE if BYTE_TOKEN.fullmatch(token) else NORMAL
    for added in found["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    unknown = found["model"].get("unk_token")
    if unknown in tokens:
        types[tokens.index(unknown)] = UNKNOWN
    return tokens, types


def _pieces(found: Mapping[str, Any], tokens: list[str], types: list[int], merges: Sequence[str]) -> Vocabulary:
    """Return SentencePiece's form. It merges the pair with the best score first: that whose merge was learnt first."""
    rank: dict[str, int] = {}
    for number, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        rank.setdefault(left + right, number)
    scores = [
        -float(rank.get(token, len(merges))) if kind == NORMAL else 0.0
        for token, kind in zip(tokens, types, strict=True)
    ]
    return Vocabulary("llama", tokens, types, "default", scores=scores, spaced=_prepends(found, "▁"))


def _cut(pre: Mapping[str, Any] | None) -> tuple[str, bool]:
    """Return llama.cpp's name for how text is cut before merging, and whether it is the same."""
    parts = _parts(pre)
    patterns = [one["pattern"].get("Regex", one["pattern"].get("String")) for one in parts if one["type"] == "Split"]
    others = {one["type"] for one in parts} - {"Split", "ByteLevel"}
    own = any(one["type"] == "ByteLevel" and one.get("use_regex", True) for one in parts)
    if not others and own and not patterns:
        return "gpt-2", True
    if not others and not own and len(patterns) == 1:
        [pattern] = patterns
        if pattern in CUTS:
            return CUTS[pattern], True
        return NEAREST.get(pattern, "qwen2"), False
    return "qwen2", False


def _parts(pre: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if pre is None:
        return []
    return [part for one in pre["pretokenizers"] for part in _parts(one)] if pre["type"] == "Sequence" else [pre]


def _prepends(found: Mapping[str, Any], space: str) -> bool:
    """Tell whether the tokenizer puts a space before a text."""
    text = json.dumps([found.get("normalizer"), found.get("pre_tokenizer")], ensure_ascii=False)
    if f'"prepend": "{space}"' in text:
        return True
    parts = _parts(found["pre_tokenizer"])
    return any(one["type"] == "Metaspace" and one.get("prepend_scheme") != "never" for one in parts)


def template_of(tokenizer: Any) -> str | list[dict[str, str]] | None:
    """Return the chat template, or templates by name, as a GGUF file has them."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        return [{"name": name, "template": text} for name, text in template.items()]
    return SPACED_TEMPLATE if template == CHAT_TEMPLATE else template
