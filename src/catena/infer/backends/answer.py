"""From the pieces of an engine's reply to deltas and a completion, as the native engine would tell them. No I/O.

Where token ids come with every piece and the tokenizer is known, text is decoded here and stops are found here: an
answer then has the same text whichever engine made the tokens. Otherwise it is the engine's text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from catena.core.errors import CatenaError
from catena.core.generate import Completion, Delta, FinishReason, TokenLogprob
from catena.infer.backends.wire import Asked, Piece
from catena.infer.text import TextStream


class Reads(Protocol):
    """What is needed of a tokenizer."""

    ends: Collection[int]

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of tokens."""
        ...


class Answer:
    """One answer as it grows."""

    def __init__(self, asked: Asked, codec: Reads | None, *, whole_ids: bool, drops_space: bool = False) -> None:
        """`whole_ids`: the ids of every token come, in the order of the text.

        `drops_space`: the tokenizer takes a space off the beginning of what it decodes, and the engine does not.
        """
        self.asked = asked
        self._codec, self._drops_space = codec, drops_space
        self._decoded = TextStream(codec.text, asked.params.stop) if codec is not None and whole_ids else None
        self._text: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: tuple[TokenLogprob, ...] = ()
        self._prompt_tokens = len(asked.ids) if asked.ids is not None else 0
        self._counted: int | None = None
        self._cached = 0
        self._told = False
        self.finish: FinishReason | None = None
        """Why the answer ended, once it has."""
        self.complete = False
        """True where the end was seen here: nothing that the engine still says is wanted."""

    def push(self, piece: Piece) -> Delta | None:
        """Take a piece; return what is new, if anything."""
        if self.asked.ids is None and piece.prompt_tokens is not None:
            self._prompt_tokens = piece.prompt_tokens
        self._counted = piece.answer_tokens if piece.answer_tokens is not None else self._counted
        self._cached = piece.cached if piece.cached is not None else self._cached
        self._prompt_logprobs = piece.prompt_logprobs or self._prompt_logprobs
        if self.finish is not None:
            return None
        ids, text = self._taken(piece)
        entries = piece.logprobs[: len(ids)] if ids else piece.logprobs
        self._ids += ids
        self._logprobs += entries
        self.finish = self.finish or piece.finish
        self._text.append(text)
        return Delta(text, None, tuple(ids), tuple(entries)) if text or ids else None

    def last(self, reason: FinishReason | None = None, error: CatenaError | None = None) -> Delta:
        """Return the last delta, with the whole answer."""
        rest = self._decoded.finish() if self._decoded is not None and reason is None else ""
        self._text.append(rest)
        stopped = self._decoded is not None and self._decoded.stopped
        scores = self._prompt_logprobs
        first = self.asked.params.prompt_logprobs_from
        completion = Completion(
            request_id=self.asked.request.id,
            text="".join(self._text),
            token_ids=tuple(self._ids),
            finish_reason=reason or ("stop" if stopped else self.finish) or "error",
            prompt_tokens=self._prompt_tokens,
            logprobs=tuple(entry.logprob for entry in scores) if not self.asked.generates else (),
            token_logprobs=tuple(self._logprobs),
            prompt_logprobs=scores[first - 1 :] if self.asked.params.prompt_logprobs is not None else (),
            cached_tokens=self._cached,
            completion_tokens=None if self._counted is None or self._counted == len(self._ids) else self._counted,
            error=error,
        )
        return Delta(rest, completion)

    def _taken(self, piece: Piece) -> tuple[list[int], str]:
        """Return the tokens of a piece that belong to the answer, and its new text; sees where the answer ends."""
        ids: list[int] = []
        text = ""
        params = self.asked.params
        ends = self._codec.ends if self._codec is not None and not params.ignore_end else ()
        for id in piece.ids:
            ids.append(id)
            if id in params.stop_token_ids or id in ends:
                self.complete = True
            elif self._decoded is not None:
                text += self._decoded.push(id)
                self.complete = self._decoded.stopped
            if self.complete:
                self.finish = "stop"
                break
        if self._decoded is not None and piece.ids:
            return ids, text
        by_token = self.complete and ids[-1] in params.stop_token_ids
        return ids, "" if by_token else self._own(piece.text)

    def _own(self, text: str) -> str:
        """Return the engine's text, without the space that the tokenizer put before the answer where it does so."""
        if text and not self._told:
            self._told = True
            return text.removeprefix(" ") if self._drops_space else text
        return text
