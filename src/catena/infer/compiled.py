"""The decode step as compiled code (torch.compile): what lies between the big products and attention becomes few loops.

Attention and blocked layers stay what they are, as operators that the compiler does not look into; which sequences a
step has is handed to them beside the graph. Compiling takes minutes and runs in the background, while steps go on as
before; one code serves a single sequence, one all larger batches. Rounding differs in the last bits from the
uncompiled step, so it is off unless it is asked for.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import torch
from torch import Tensor

from catena.infer.kv import STEP, Batch, Decode, Layout, PagedCache, step_of

logger = logging.getLogger(__name__)


class CompiledStep:
    """Logits of a step in which every sequence has one new token."""

    def __init__(self, model: Any, layout: Layout, block_size: int) -> None:
        self._model, self._layout, self._size = model, layout, block_size
        self._one: Any = None
        self._many: Any = None
        self._thread = threading.Thread(target=self._prepare, name="catena-compile", daemon=True)
        self._thread.start()

    def ready(self, rows: int) -> bool:
        """Whether the code for so many sequences is there."""
        return (self._one if rows == 1 else self._many) is not None

    def wait(self) -> None:
        """Wait until everything is compiled, or given up."""
        self._thread.join()

    def __call__(self, ids: Tensor, positions: Tensor, batch: Batch) -> Tensor:
        """Return logits `[rows, vocabulary]` of the row `[1, rows]`; raises nothing that the plain step does not."""
        step_of(batch)
        logits: Tensor = (self._one if ids.shape[1] == 1 else self._many)(ids, positions)
        return logits

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        out = self._model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=0, paged=STEP)
        logits: Tensor = out.logits[0]
        return logits

    def _prepare(self) -> None:
        """Compile by running on a cache of its own."""
        try:
            with torch.inference_mode():
                one = torch.compile(self._forward, dynamic=False)
                self._try(one, 1)
                self._one = one
                many = torch.compile(lambda ids, positions: self._forward(ids, positions), dynamic=True)
                self._try(many, 3)
                self._try(many, 5)
                self._many = many
        except Exception as error:  # noqa: BLE001  whatever the compiler cannot do, the plain step can
            logger.warning("the decode step cannot be compiled: %s", str(error).partition("\n")[0])

    def _try(self, code: Any, rows: int) -> None:
        cache = PagedCache(self._layout, rows, self._size)
        tables = torch.arange(rows)[:, None]
        lengths = torch.full((rows, 1), 2)
        group = Decode(0, rows, tables, lengths, 2, equal=True)
        step_of(Batch(cache, torch.arange(rows) * self._size + 1, (), (group,)))
        code(torch.ones(1, rows, dtype=torch.long), torch.ones(1, rows, dtype=torch.long))
