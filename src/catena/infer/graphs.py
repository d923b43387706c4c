"""The decode step on a GPU as recorded graphs, one for each size of a batch, so that a step costs one launch.

A graph repeats the same kernels on the same memory: what changes from step to step lies in one table of whole numbers,
copied there in one go, a row for each sequence:

    token | position | slot | length | blocks ...

A batch takes the next larger graph; the rows beyond it write to a block that belongs to nobody and are thrown away. A
size is recorded when it is first needed. What cannot be recorded goes the plain way, and is said once.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence as Many

import torch
from torch import Tensor

from catena.infer.flat import Flat, Singles
from catena.infer.kv import Batch, PagedCache
from catena.infer.scheduler import Chunk

logger = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, *range(16, 257, 8))
"""Sequences of the graphs."""
HEAD = 4
"""Numbers of a row before its blocks."""
WARM_UPS = 2
Forward = Callable[[Tensor, Tensor, Batch, Tensor], Tensor]
Step = Callable[[], Tensor]


def recorded(step: Step) -> Step:
    """Record a step as a CUDA graph and return what plays it; the tensor that it returns is the same each time."""
    beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(WARM_UPS):  # kernels are compiled and libraries set up outside the recording
            step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()

    def play() -> Tensor:
        graph.replay()
        return out

    return play


class GraphStep:
    """Logits of a step in which every sequence has one new token."""

    record: Callable[[Step], Step] = staticmethod(recorded)

    def __init__(self, forward: Forward, cache: PagedCache, blocks: int, *, spare: int) -> None:
        """`blocks` is the most that a sequence can have, `spare` the number of the block that belongs to nobody."""
        self._forward, self._cache = forward, cache
        device = next(iter(cache.keys.values())).data.device
        self._spare = spare
        self._table = torch.zeros(SIZES[-1], HEAD + blocks, dtype=torch.int64, device=device)
        self._steps: dict[int, Step] = {}
        self.broken = False
        """Whether this model cannot be recorded."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes that are recorded."""
        return tuple(sorted(self._steps))

    def takes(self, rows: int) -> bool:
        """Whether there is, or may be, a graph for so many sequences."""
        return not self.broken and rows <= SIZES[-1]

    def __call__(self, row: Many[Chunk], tokens: Tensor | None = None) -> Tensor | None:
        """Return logits `[rows, vocabulary]`, good until the next step; None where the model cannot be recorded.

        `tokens` `[rows]` on the device are taken in place of the chunks', where the host does not know them yet.
        """
        size = SIZES[bisect_left(SIZES, len(row))]
        width = max(-(-chunk.stop // self._cache.block_size) for chunk in row)  # what lies beyond is not read
        unused = [0, 0, self._spare * self._cache.block_size, 1, *[self._spare] * width]
        known = [0] * len(row) if tokens is not None else [chunk.ids[0] for chunk in row]
        rows = [self._numbers(chunk, token, width) for chunk, token in zip(row, known, strict=True)]
        host = torch.tensor(rows + [unused] * (size - len(row)))
        host = host.pin_memory() if self._table.is_cuda else host
        self._table[:size, : HEAD + width].copy_(host, non_blocking=True)
        if tokens is not None:
            self._table[: len(row), 0] = tokens.clamp(min=0)  # -1 of broken logits is no index
        if size not in self._steps:
            try:
                self._steps[size] = self.record(lambda: self._run(size))
            except RuntimeError as error:
                self.broken = True
                logger.warning("the decode step cannot be recorded: %s", str(error).partition("\n")[0])
                return None
        return self._steps[size]()[: len(row)]

    def _numbers(self, chunk: Chunk, token: int, width: int) -> list[int]:
        at, size = chunk.start, self._cache.block_size
        blocks = chunk.sequence.blocks[:width]
        table = blocks + [self._spare] * (width - len(blocks))
        return [token, at, blocks[at // size] * size + at % size, chunk.stop, *table]

    def _run(self, size: int) -> Tensor:
        table = self._table[:size]
        singles = Singles(0, table[:, HEAD:], table[:, 3], self._cache.block_size)
        batch = Batch(self._cache, table[:, 2], (), (), flat=Flat(singles=singles))
        keep = torch.arange(size, device=table.device)
        return self._forward(table[:, 0][None], table[:, 1][None], batch, keep)
