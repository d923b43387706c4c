"""Tasks beside the next token: what a step sees and what it costs, for encoders, encoder-decoders and classifiers.

    masked     tokens under a mask         inputs [rows, tokens], labels alike, `IGNORED` where nothing is masked
    pairs      a text for a text           inputs [rows, tokens], labels [rows, target tokens]
    sequence   one label for a text        inputs [rows, tokens], labels [rows]
    token      a label for each token      inputs [rows, tokens], labels alike

Batches are pure functions of (seed, step), the masks too. Objectives are sums over what is learnt. Inputs are padded on
the right, and `Batch.sizes` says how far they are real: from it comes the attention mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from catena.models.classify import padded
from catena.models.virtual_tokens import logits
from catena.train.batches import IGNORED, Batch, permutation
from catena.train.tokens import Tokens

SORTED_BATCHES = 8
"""Batches whose rows are sorted by length together, so that a batch holds rows of about one length."""
MASKED_SHARE, KEPT_SHARE, RANDOM_SHARE = 0.15, 0.1, 0.1
"""Of the tokens those that are to be foretold; of these, those left as they are, and those replaced by any other
(Devlin et al. 2018, arXiv 1810.04805). The rest gets the mask."""
VALIDATION = 1 << 40
"""The step from which on fixed masks are drawn: no training comes so far."""


class LengthGroups:
    """Which rows a step sees: all in each epoch, in another order, with rows of about one length together."""

    def __init__(self, lengths: Sequence[int] | NDArray[np.int32], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self._order = lru_cache(maxsize=2)(lambda epoch: permutation(len(lengths), seed, epoch))
        self._group = lru_cache(maxsize=1)(self._make_group)

    def steps(self, epochs: float) -> int:
        """Return the steps that so many times through all rows take."""
        return max(1, round(epochs * len(self.lengths) / self.batch_size))

    def rows(self, step: int) -> list[int]:
        """Return the numbers of the rows of a step."""
        group, place = divmod(step, SORTED_BATCHES)
        return self._group(group)[place]

    def in_order(self, limit: int) -> list[list[int]]:
        """Return at most `limit` batches of the first rows, sorted by length, for measuring."""
        chosen = sorted(range(min(len(self.lengths), limit * self.batch_size)), key=lambda row: self.lengths[row])
        return [chosen[at : at + self.batch_size] for at in range(0, len(chosen), self.batch_size)]

    def _make_group(self, group: int) -> list[list[int]]:
        size, drawn = len(self.lengths), SORTED_BATCHES * self.batch_size
        cursors = range(group * drawn, (group + 1) * drawn)
        chosen = [int(self._order(cursor // size)[cursor % size]) for cursor in cursors]
        chosen.sort(key=lambda row: (self.lengths[row], row))
        batches = [chosen[at : at + self.batch_size] for at in range(0, drawn, self.batch_size)]
        return [batches[place] for place in permutation(SORTED_BATCHES, self.seed, group, 1)]


class Mask(NamedTuple):
    """What masking has to know of a tokenizer."""

    mask: int
    """Id of the token that stands for a masked one."""
    pad: int
    ordinary: NDArray[np.int64]
    """Ids that may stand in the place of another: all but the special ones."""


class MaskedRows:
    """Rows of text with some tokens masked, others in every epoch."""

    def __init__(self, rows: Tokens, order: LengthGroups, mask: Mask) -> None:
        """`rows[n].mask` says which tokens may be masked: all but the special ones."""
        self.rows, self.order, self.mask = rows, order, mask

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        return self._masked(self.order.rows(step), step)

    def in_order(self, limit: int) -> list[Batch]:
        """Return at most `limit` batches with masks that are always the same, for measuring."""
        return [self._masked(rows, VALIDATION + number) for number, rows in enumerate(self.order.in_order(limit))]

    def _masked(self, chosen: Sequence[int], step: int) -> Batch:
        chance = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.order.seed, step))))
        rows = [self.rows[row] for row in chosen]
        inputs, labels = zip(*(self._mask_row(row.ids, row.mask, chance) for row in rows), strict=True)
        return laid(inputs, padded(labels, IGNORED), self.mask.pad)

    def _mask_row(
        self, ids: NDArray[Any], maskable: NDArray[np.bool_], chance: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (inputs, labels); of each row 15 % are masked, and at least one, so that short rows count too."""
        places = np.flatnonzero(maskable)
        places = chance.permutation(places)[: max(1, round(MASKED_SHARE * len(places)))]
        inputs = np.asarray(ids, np.int64).copy()
        labels = np.full(len(ids), IGNORED, np.int64)
        labels[places] = inputs[places]
        drawn = chance.random(len(places))
        others = chance.choice(self.mask.ordinary, len(places))
        inputs[places] = np.where(drawn < RANDOM_SHARE, others, inputs[places])
        inputs[places[drawn >= RANDOM_SHARE + KEPT_SHARE]] = self.mask.mask
        return inputs, labels


class LabelledRows:
    """Rows of tokens with their labels: a number, or a number for each token (of the row, or of the target)."""

    def __init__(self, rows: Sequence[Sequence[int]], labels: Sequence[Any], order: LengthGroups, pad: int) -> None:
        self.rows, self.labels, self.order, self.pad = rows, labels, order, pad

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        return self._laid(self.order.rows(step))

    def in_order(self, limit: int) -> list[Batch]:
        """Return at most `limit` batches of the first rows, for measuring."""
        return [self._laid(rows) for rows in self.order.in_order(limit)]

    def _laid(self, chosen: Sequence[int]) -> Batch:
        labels = [self.labels[row] for row in chosen]
        told = torch.tensor(labels) if isinstance(labels[0], int) else padded(labels, IGNORED)
        return laid([self.rows[row] for row in chosen], told, self.pad)


@dataclass(frozen=True, slots=True)
class LaidBatch(Batch):
    """A batch whose labels need not stand beside its inputs."""

    def trimmed(self) -> Self:
        """Leave out the columns at the end that are padding in every row, of the inputs and of labels beside them."""
        assert self.sizes is not None
        width = int(self.sizes.max())
        beside = self.labels.shape == self.inputs.shape
        return replace(self, inputs=self.inputs[:, :width], labels=self.labels[:, :width] if beside else self.labels)


def laid(rows: Sequence[Sequence[int] | NDArray[np.int64]], labels: Tensor, pad: int) -> LaidBatch:
    """Lay rows into one batch, padded on the right."""
    sizes = [len(row) for row in rows]
    learnt = int(labels.ne(IGNORED).sum())
    return LaidBatch(padded(rows, pad), labels, learnt, sum(sizes), sizes=torch.tensor(sizes))


def attention_of(batch: Batch) -> Tensor:
    """Return 1 where an input is real and 0 where it is padding, [rows, tokens]."""
    if batch.sizes is None:
        return torch.ones_like(batch.inputs)
    columns = torch.arange(batch.inputs.shape[1], device=batch.inputs.device)
    return (columns < batch.sizes[:, None]).long()


# How the hidden states of a masked-language model become logits. Others compute all their logits.
MASKED_HEADS: dict[str, Callable[[Any, Tensor], Any]] = {
    "BertForMaskedLM": lambda model, hidden: model.cls(hidden),
    "RobertaForMaskedLM": lambda model, hidden: model.lm_head(hidden),
    "XLMRobertaForMaskedLM": lambda model, hidden: model.lm_head(hidden),
    "ModernBertForMaskedLM": lambda model, hidden: model.decoder(model.head(hidden)),
}


def masked_token_loss(model: Any, batch: Batch) -> Tensor:
    """Return the summed cross-entropy (nats) of a batch's masked tokens. Only they pass through the output head."""
    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    attention = attention_of(batch)
    labels = batch.labels.flatten()
    chosen = labels.ne(IGNORED).nonzero()[:, 0]
    head = MASKED_HEADS.get(type(plain).__name__)
    if head is None:
        told = model(input_ids=batch.inputs, attention_mask=attention).logits.flatten(0, 1).index_select(0, chosen)
    else:
        hidden = plain.base_model(input_ids=batch.inputs, attention_mask=attention).last_hidden_state
        told = head(plain, hidden.flatten(0, 1).index_select(0, chosen))
    return functional.cross_entropy(told.float(), labels.index_select(0, chosen), reduction="sum")


def target_text_loss(model: Any, batch: Batch) -> Tensor:
    """Return the summed cross-entropy (nats) of the target tokens, each foretold from the source and those before."""
    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    before = plain.prepare_decoder_input_ids_from_labels(labels=batch.labels)
    told = logits(
        model,
        input_ids=batch.inputs,
        attention_mask=attention_of(batch),
        decoder_input_ids=before,
        use_cache=False,
    )
    flat = told.float().flatten(0, 1)
    return functional.cross_entropy(flat, batch.labels.flatten(), ignore_index=IGNORED, reduction="sum")


def label_objective(weights: Sequence[float] | None = None) -> Callable[[Any, Batch], Tensor]:
    """Return the objective of both kinds of classifier: summed cross-entropy (nats), each label with its weight."""

    def label_loss(model: Any, batch: Batch) -> Tensor:
        told = logits(model, input_ids=batch.inputs, attention_mask=attention_of(batch)).float()
        weight = None if weights is None else torch.tensor(weights, device=told.device)
        flat = told.flatten(0, -2)
        return functional.cross_entropy(
            flat, batch.labels.flatten(), weight=weight, ignore_index=IGNORED, reduction="sum"
        )

    return label_loss
