"""What becomes of a sample that is longer than the model's context: refused, cut, split or dropped. Always counted.

documents        cut: the first tokens stay    split: pieces of full length, each going on where the last ended
conversations    cut: likewise                 split: at a question; system messages lead each piece
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from catena.core.errors import DataError

if TYPE_CHECKING:
    from catena.models.chat import Encoded

Overlong = Literal["refuse", "cut", "split", "drop"]
Messages = Sequence[Any]
Encode = Callable[[Sequence[Messages]], "list[Encoded]"]


class Counts(dict[str, int]):
    """How many samples were `cut`, `split`, `too_long` (dropped), `empty`, or had `nothing_to_learn`."""

    def add(self, reason: str) -> None:
        """Count one more."""
        self[reason] = self.get(reason, 0) + 1


def fit_document(
    ids: Sequence[int], longest: int, policy: Overlong, number: int, counts: Counts
) -> list[Sequence[int]]:
    """Return the pieces of a document of which none needs more than `longest` inputs (their last token is a label).

    Raises `DataError` under the policy `refuse`.
    """
    if len(ids) <= longest + 1:
        return [ids]
    if policy == "refuse":
        raise too_long("document", number, len(ids), longest + 1)
    counts.add({"cut": "cut", "split": "split", "drop": "too_long"}[policy])
    if policy == "drop":
        return []
    if policy == "cut":
        return [ids[: longest + 1]]
    # Pieces overlap by one token: it is the last label of one and the first input of the next.
    return [ids[at : at + longest + 1] for at in range(0, len(ids) - 1, longest)]


def fit_conversation(
    row: Encoded, messages: Messages, context: int, policy: Overlong, *, number: int, encode: Encode, counts: Counts
) -> list[Encoded]:
    """Return the pieces of a conversation that fit into `context` tokens and have something to learn.

    Raises `DataError` under the policy `refuse`.
    """
    pieces = [row]
    if len(row.ids) > context:
        if policy == "refuse":
            raise too_long("conversation", number, len(row.ids), context)
        if policy == "split":
            pieces = list(_split(messages, context, encode))
            if len(pieces) > 1:
                counts.add("split")
        if policy == "drop":
            counts.add("too_long")
            return []
        if any(len(piece.ids) > context for piece in pieces):
            counts.add("cut")
            pieces = [piece._replace(ids=piece.ids[:context], mask=piece.mask[:context]) for piece in pieces]
    kept = [piece for piece in pieces if any(piece.mask[1:])]
    if not kept:
        counts.add("nothing_to_learn")
    return kept


def too_long(what: str, number: int, length: int, longest: int) -> DataError:
    """Return the error for a sample that is refused."""
    return DataError(
        f"{what} {number} has {length} tokens, the model takes {longest}",
        hint="Set overlong to cut, split or drop, or train a model with a longer context.",
    )


def _split(messages: Messages, context: int, encode: Encode) -> Iterator[Encoded]:
    """Give as many exchanges (a question and all until the next one) to each piece as fit; at least one."""
    lead = [turn for turn in messages if _role(turn) == "system"]
    exchanges: list[list[Any]] = []
    for turn in messages:
        if _role(turn) == "user" or (not exchanges and _role(turn) != "system"):
            exchanges.append([turn])
        elif _role(turn) != "system":
            exchanges[-1].append(turn)
    held: list[Any] = []
    last: Encoded | None = None
    for exchange in exchanges:
        [tried] = encode([[*lead, *held, *exchange]])
        if last is not None and len(tried.ids) > context:
            yield last
            held = []
            [tried] = encode([[*lead, *exchange]])
        held, last = [*held, *exchange], tried
    if last is not None:
        yield last


def _role(turn: Any) -> str:
    return str(turn["role"] if isinstance(turn, dict) else turn.role)


def fit_conversations(
    conversations: Sequence[Messages], words: Any, context: int, policy: Overlong, first: int = 0
) -> tuple[list[int], list[Encoded], Counts]:
    """Encode conversations so that they fit; returns (number of each row's conversation, the rows, what was done).

    Conversations are numbered from `first` on. Raises `DataError` for an unknown role, and under the policy `refuse`.
    """

    from catena.models.chat import encode_conversations

    def encode(some: Sequence[Messages]) -> list[Encoded]:
        return encode_conversations(words, some)

    counts = Counts()
    numbers: list[int] = []
    rows: list[Encoded] = []
    for number, (row, messages) in enumerate(zip(encode(conversations), conversations, strict=True), first):
        pieces = fit_conversation(row, messages, context, policy, number=number, encode=encode, counts=counts)
        numbers += [number] * len(pieces)
        rows += pieces
    return numbers, rows, counts
