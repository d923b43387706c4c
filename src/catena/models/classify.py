"""Classifiers: texts to rows of tokens, and rows to labels. Training encodes with it, evaluation and use predict.

texts -> encode (the tokenizer's own special tokens) -> padded batches -> probabilities, in the order of the texts
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from catena.core.errors import DataError, UsageError
from catena.models import checkpoint
from catena.models.heads import context_of, head_of, labels_of
from catena.models.tags import Place
from catena.models.virtual_tokens import logits, tokens_ahead

Overlong = Literal["refuse", "cut", "drop"]


class Row(NamedTuple):
    """A text in tokens, the special ones included."""

    ids: list[int]
    offsets: list[Place]
    """Characters of the text that each token stands for; (0, 0) for special ones."""
    special: list[bool]


def encode(tokenizer: Any, texts: Sequence[str], context: int = 0) -> list[Row]:
    """Return each text in tokens, with a context cut to it (what ends a sequence is kept).

    A control token that is spelt out in a text stays text.
    """
    if not texts:
        return []
    if not tokenizer.is_fast:
        raise DataError(
            "the tokenizer does not tell which characters a token stands for",
            hint="Convert it to tokenizer.json (a fast tokenizer).",
        )
    told = tokenizer(
        list(texts),
        split_special_tokens=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
        **({"truncation": True, "max_length": context} if context else {}),
    )
    return [
        Row(ids, [(int(start), int(end)) for start, end in offsets], [bool(flag) for flag in special])
        for ids, offsets, special in zip(
            told["input_ids"], told["offset_mapping"], told["special_tokens_mask"], strict=True
        )
    ]


def fit(
    tokenizer: Any, texts: Sequence[str], context: int, policy: Overlong
) -> tuple[list[int], list[Row], dict[str, int]]:
    """Encode texts so that they fit; returns (indices kept, their rows, counts of what was done).

    Counts: `cut`, `too_long` (dropped), `empty` (nothing but white space: never kept). Raises `DataError` under the
    policy `refuse`.
    """
    rows = encode(tokenizer, texts)
    counts = {"cut": 0, "too_long": 0, "empty": 0}
    long = [index for index, row in enumerate(rows) if context and len(row.ids) > context]
    if long and policy == "refuse":
        raise DataError(
            f"text {long[0]} has {len(rows[long[0]].ids)} tokens, the model takes {context}",
            hint="Set overlong to cut or drop, or take a model with a longer context.",
        )
    counts["cut" if policy == "cut" else "too_long"] = len(long)
    if policy == "cut":
        for index, row in zip(long, encode(tokenizer, [texts[index] for index in long], context), strict=True):
            rows[index] = row
    dropped = set() if policy == "cut" else set(long)
    kept = []
    for index, row in enumerate(rows):
        if index in dropped:
            continue
        if all(row.special) or not texts[index].strip():
            counts["empty"] += 1
        else:
            kept.append(index)
    return kept, [rows[index] for index in kept], counts


def padded(rows: Sequence[Sequence[int] | NDArray[np.int64]], fill: int) -> torch.Tensor:
    """Return rows of numbers as one int64 tensor [rows, longest], filled on the right."""
    laid = np.full((len(rows), max(map(len, rows))), fill, np.int64)
    for at, row in enumerate(rows):
        laid[at, : len(row)] = row
    return torch.from_numpy(laid)


def padding_of(tokenizer: Any) -> int:
    """Return the token that rows are filled up with: the one for it, else the one that ends a text."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return 0 if pad is None else int(pad)


class Classifier:
    """A model with the head `sequence` or `token`, ready to be asked."""

    def __init__(self, folder: Path, device: str = "auto") -> None:
        """Open a folder; raises `UsageError` for a model that does not classify."""
        settings = checkpoint.read_config(folder)
        self.head, self.labels = head_of(settings), labels_of(settings)
        if not self.labels:
            raise UsageError(
                f"the model in {folder} does not classify: its head is for {self.head}",
                hint="Give the output of train.classify.",
            )
        self.device = ("cuda" if torch.cuda.device_count() else "cpu") if device == "auto" else device
        self.model, self.tokenizer = checkpoint.load(folder, device=self.device, adapted=True)
        self.context = max(0, context_of(settings) - tokens_ahead(self.model))

    def probabilities(
        self, rows: Sequence[Row], batch_size: int = 64, tell: Callable[[int], object] = lambda done: None
    ) -> list[NDArray[np.float32]]:
        """Return the probabilities of the labels of each row: [labels], or [tokens, labels] of the head `token`.

        Rows are taken in the order of their lengths, so that little is padding; `tell` hears how many are done.
        """
        found: list[NDArray[np.float32] | None] = [None] * len(rows)
        order = sorted(range(len(rows)), key=lambda index: (len(rows[index].ids), index))
        pad = padding_of(self.tokenizer)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            ids = padded([rows[index].ids for index in chosen], pad)
            mask = padded([[1] * len(rows[index].ids) for index in chosen], 0)
            with torch.no_grad():
                told_here = logits(self.model, input_ids=ids.to(self.device), attention_mask=mask.to(self.device))
            told = told_here.float().softmax(-1).cpu().numpy()
            for index, values in zip(chosen, told, strict=True):
                found[index] = values[: len(rows[index].ids)] if self.head == "token" else values
            tell(len(chosen))
        return [values for values in found if values is not None]

    def predict(self, texts: Sequence[str], batch_size: int = 64) -> list[str]:
        """Return the likeliest label of each text (head `sequence`); texts longer than the context are cut."""
        told = self.probabilities(encode(self.tokenizer, texts, self.context), batch_size)
        return [self.labels[int(values.argmax())] for values in told]
