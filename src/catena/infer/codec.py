"""Text to tokens and back, as one model sees them. The engine reads prompts with it, the server shows tokens with it.

What a token stands for is told in bytes, not in text: a token of a byte-level vocabulary may be a third of 你.
"""

from __future__ import annotations

import copy
import json
import re
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from catena.core.errors import UsageError
from catena.core.generate import Message
from catena.models.chat import encode_prompt, takes_tools
from catena.models.tokenizer import encode_texts

META = "▁"
"""What SentencePiece writes in place of a space."""
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _bytes_of_characters() -> dict[str, int]:
    """Return what the characters of a byte-level vocabulary stand for: printable ones themselves, others from 256 on.

    The table of GPT-2 (Radford et al. 2019), which every byte-level tokenizer uses.
    """
    shown = [byte for byte in range(256) if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + at): byte for at, byte in enumerate(hidden)}


BYTES = _bytes_of_characters()


class ModelCodec:
    """A `Codec` over a tokenizer. Safe for several threads."""

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Collection[int] = ()) -> None:
        # A copy: to encode, transformers sets flags of the tokenizer, while the engine's thread decodes with it.
        self._tokenizer = copy.deepcopy(tokenizer)
        self._lock = threading.Lock()
        self.vocabulary = vocabulary
        """Rows of the embedding; a token id must be below."""
        self.ends = ends
        own = tokenizer.eos_token_id
        self.end: int | None = own if own in ends or not ends else min(ends)

    @property
    def takes_tools(self) -> bool:
        """Whether its chat template shows tools to the model."""
        return takes_tools(self._tokenizer)

    def tokens(
        self, prompt: str | Sequence[Message] | Sequence[int], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """Return the token ids of text, of a conversation (by the model's chat template), or of ids given as such."""
        if not prompt:
            raise UsageError("the prompt is empty")
        _refuse_half_characters([prompt] if isinstance(prompt, str) else prompt)
        if isinstance(prompt, str):
            with self._lock:
                tokens = list(self._tokenizer(prompt, verbose=False)["input_ids"])
        elif all(isinstance(part, Message) for part in prompt):
            with self._lock:
                messages = [part for part in prompt if isinstance(part, Message)]
                tokens = encode_prompt(self._tokenizer, messages, tools)
        else:
            tokens = self._known(prompt)
        if not tokens:
            raise UsageError("the prompt has no tokens")
        return tokens

    def continuation(self, text: str) -> list[int]:
        """Return the token ids of a text that goes on after something; control tokens spelt out in it stay text."""
        _refuse_half_characters([text])
        with self._lock:
            return encode_texts(self._tokenizer, [text])[0]

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, control tokens left out."""
        with self._lock:
            text: str = self._tokenizer.decode(
                self._known(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        return text

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """Return what each token stands for; of a row that no token has, nothing."""
        with self._lock:
            tokens = self._tokenizer.convert_ids_to_tokens(self._known(ids))
            return [self._piece(id, token) for id, token in zip(ids, tokens, strict=True)]

    def _known(self, ids: Iterable[Any]) -> list[int]:
        given = list(ids)
        if not all(type(one) is int and 0 <= one < self.vocabulary for one in given):
            raise UsageError(f"a prompt of token ids holds something that is no id from 0 to {self.vocabulary - 1}")
        return given

    def _piece(self, id: int, token: str | None) -> bytes:
        if token is None:
            return b""
        if id in self._added:
            return self._added[id].encode()
        if self._byte_level:
            # A vocabulary may hold characters that stand for no byte: they are written as they are.
            return b"".join(bytes([BYTES[one]]) if one in BYTES else one.encode() for one in token)
        match = BYTE.fullmatch(token)
        return bytes([int(match[1], 16)]) if match else token.replace(META, " ").encode()

    @cached_property
    def _added(self) -> dict[int, str]:
        return {id: str(token.content) for id, token in self._tokenizer.added_tokens_decoder.items()}

    @cached_property
    def _byte_level(self) -> bool:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return backend is not None and "ByteLevel" in json.dumps(json.loads(backend.to_str())["decoder"])


def _refuse_half_characters(parts: Iterable[str | Message | int]) -> None:
    for part in parts:
        text = part.content if isinstance(part, Message) else part
        try:
            if isinstance(text, str):
                text.encode()
        except UnicodeEncodeError as error:
            raise UsageError("the prompt has half a character (a lone surrogate), which is no text") from error
