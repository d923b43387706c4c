"""A process's part of a batch: some of its rows, or some of its columns. Pure functions of the batch and the place.

Every process has the whole batch, so each knows what the others do: how many pieces they have, and what counts in them.
"""

from __future__ import annotations

from dataclasses import fields, replace

from torch import Tensor
from torch.nn import functional

from catena.train.batches import IGNORED, Batch

Work = list[tuple[Batch, float]]
"""Pieces of a batch, and 1 for each that counts; 0 for one that is only gone through because others go through one."""


def work_of(batch: Batch, micro_batch_size: int, at: int, ranks: int, lockstep: bool) -> Work:
    """Return the pieces that process `at` of `ranks` goes through.

    In `lockstep` every process goes through equally many, so that what all do together in each is done equally often.
    """
    shares = [batch] if ranks == 1 else [batch.share(rank, ranks) for rank in range(ranks)]
    pieces = [[piece for piece in share.pieces(micro_batch_size) if piece.learnt] for share in shares]
    work: Work = [(piece, 1.0) for piece in pieces[at]]
    if lockstep:
        filler = next((found[0] for found in pieces if found), batch)
        work += [(filler, 0.0)] * (max(len(found) for found in pieces) - len(work))
    return work


def share_columns(batch: Batch, rank: int, ranks: int) -> Batch:
    """Return one of `ranks` equal runs of columns; rows are first made longer, with nothing to learn, to divide."""
    length = batch.inputs.shape[1]
    width = -(-length // ranks)
    cut: dict[str, Tensor] = {}
    for field in fields(batch):
        tensor = getattr(batch, field.name)
        if isinstance(tensor, Tensor) and tensor.dim() > 1:
            longer = functional.pad(tensor, (0, width * ranks - length), value=IGNORED if field.name == "labels" else 0)
            cut[field.name] = longer[:, rank * width : (rank + 1) * width].contiguous()
    changed: dict[str, object] = {**cut, "learnt": int(cut["labels"].ne(IGNORED).sum()), "sizes": None}
    return replace(batch, **changed)  # type: ignore[arg-type]
