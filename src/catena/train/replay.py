"""Replay: documents among the conversations, so that a model that learns to answer does not forget how to read on.

Every `every`-th step of the training is a batch of packed documents, the others are those of the curriculum:

    step            0  1  2  3  4  5  6  7  8 ...      (every = 4)
    conversations   0  1  2  .  3  4  5  .  6
    documents       .  .  .  0  .  .  .  1  .
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from catena.core.stage import Context
from catena.core.types import DatasetVersion, ModelVersion
from catena.train.artifacts import encode_split, seed_of

if TYPE_CHECKING:
    from catena.train.batches import Batch, PackedDocuments
    from catena.train.curriculum import Curriculum
    from catena.train.sft import SftConfig

REPLAY_CURVE = "replay_loss"


class Replayed:
    """A curriculum with documents in between; the same pure functions of the step."""

    def __init__(self, course: Curriculum, documents: PackedDocuments, every: int) -> None:
        self._course, self._documents, self._every = course, documents, every
        self.steps = self._at(course.steps)
        self.ends = [self._at(end) for end in course.ends]

    def _at(self, conversations: int) -> int:
        """Return how many steps are done when so many batches of conversations are."""
        return conversations + max(conversations - 1, 0) // (self._every - 1)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        before = (step + 1) // self._every
        if (step + 1) % self._every:
            return self._course.batch(step - before)
        return replace(self._documents.batch(before - 1), curve=REPLAY_CURVE)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: that of the batch of conversations before it."""
        return self._course.rate(min(step - (step + 1) // self._every, self._course.steps - 1))


def packed_documents(
    ctx: Context, cfg: SftConfig, words: Any, base: ModelVersion, documents: DatasetVersion
) -> PackedDocuments:
    """Encode and pack the documents that are replayed. Raises `DataError` where they fill no sequence."""
    from catena.train.batches import PackedDocuments
    from catena.train.encode import Encoding

    plan = Encoding(shape="document", tokenizer=str(ctx.store.checkout(base)), vocabulary=base.digest)
    tokens = encode_split(ctx, "replay", documents, cfg.split, plan=plan, words=words)
    return PackedDocuments(tokens, cfg.replay_length, cfg.replay_sequences, (seed_of(ctx), len(cfg.phases)))
