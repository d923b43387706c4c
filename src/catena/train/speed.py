"""How fast a training goes: tokens a second, share of the machine's peak (MFU), time to recover after an end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from catena.models.measure import FORMATS, gemm
from catena.train.batches import Batch

STARTED = time.time()
"""When this module was imported: the start of the process, where the system does not say it."""
GPU_SIZE = 4096
"""Rows and columns of the products that a GPU's peak is measured with."""


class Speed:
    """Tokens and operations of the steps since the last reading; padding, measuring and saving are not counted."""

    def __init__(self, model: nn.Module, peak: float) -> None:
        self._cost, self._attention = flops_per_token(model)
        self._peak = peak
        self._tokens, self._flops, self._seconds = 0, 0.0, 0.0
        self.shown: dict[str, float] = {}
        """The last reading, for the progress line."""

    @contextmanager
    def timing(self, batch: Batch) -> Iterator[None]:
        """Count a step over a batch."""
        began = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - began
        self._tokens += batch.real
        self._flops += batch.real * (self._cost + self._attention * batch.inputs.shape[1])

    def read(self) -> dict[str, float]:
        """Return `tokens_per_s` and, where a peak is known, `mfu` (share of it) since the last reading."""
        seconds = max(self._seconds, 1e-9)
        self.shown = {"tokens_per_s": round(self._tokens / seconds, 1)}
        if self._peak:
            self.shown["mfu"] = round(self._flops / seconds / self._peak, 4)
        self._tokens, self._flops, self._seconds = 0, 0.0, 0.0
        return self.shown


def flops_per_token(model: nn.Module) -> tuple[float, float]:
    """Return a training step's floating-point operations for one token: of the weights, and per token of the row.

    Two for each weight forward, two for the gradient of its input and two more for its own, where it is trained
    (arXiv 2001.08361); embeddings are looked up and cost none, an output head that shares them does. Attention takes
    12 times width and layers for each token of the row (arXiv 2204.02311, appendix B), half of it under a causal mask.
    """
    config: Any = getattr(model, "config", None)
    looked_up = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Embedding)}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None:
        looked_up.discard(id(head.weight))
    weights = 0.0
    for parameter in model.parameters():
        if id(parameter) not in looked_up:
            weights += parameter.numel() * (6 if parameter.requires_grad else 4)
    layers = getattr(config, "num_hidden_layers", 0) or 0
    width = getattr(config, "hidden_size", 0) or 0
    return weights, 6.0 * layers * width


@cache
def peak_flops(precision: str, device: str) -> float:
    """Return the floating-point operations a second of a square product here, measured once in a process (0.3 s)."""
    kind = FORMATS.get(precision, torch.bfloat16)
    rate = gemm(kind, device) if device == "cpu" else gemm(kind, device, GPU_SIZE)
    return (rate or 0.0) * 1e9


def process_started() -> float:
    """Return when this process began, in Unix seconds."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        since_boot = ticks / os.sysconf("SC_CLK_TCK")
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
    except (OSError, ValueError, IndexError, AttributeError):
        return STARTED
