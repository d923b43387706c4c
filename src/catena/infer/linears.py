"""Linear layers as a processor reads them fastest. The engine prepares its model with this once, when it is opened.

Weights of bfloat16 and float32 are laid out in panels (`catena.models.native`), in place of the rows that training
wants: the same numbers, read in order. float32 is where a measurement finds torch's products not clearly faster; it is
added up in another order then, which the last digit shows. Where there is no compiler for panels, oneDNN's blocks are
taken for bfloat16, if a short measurement says that they pay. Layers of int8 and int4 lay themselves out
(`catena.models.quant_int`), for inputs of bfloat16. A head that shares its numbers with the embeddings has them twice
from then on.
"""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from catena.core.errors import UsageError
from catena.infer.heap import keep_freed
from catena.models import native
from catena.models.checkpoint import read_config
from catena.models.measure import fastest
from catena.models.quant import Int4Linear, Int8Linear, prepack_

SMALLEST = 1 << 18
"""Weights of the smallest layer that is laid out anew: a smaller one stays in the processor's cache in any order."""
ROWS = 16
"""Rows that the layout is chosen for; it serves a single row, and hundreds, as well."""
TRIES = 5


class LaidOutLinear(nn.Module, ABC):
    """A linear layer whose weight lies in an order of its own. It cannot be trained or saved."""

    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._rows: Tensor | None = None
        self._number = next(_numbers)
        _layers[self._number] = self
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        if self._rows is not None:
            return functional.linear(inputs, self._rows, self.bias)
        if torch.compiler.is_compiling():  # the compiler cannot look into them
            compiled: Tensor = torch.ops.catena.blocked_linear(inputs, self._number, self.out_features)
            return compiled
        return self.product(inputs)

    @abstractmethod
    def product(self, inputs: Tensor) -> Tensor:
        """The product itself."""

    @property
    def weight(self) -> Tensor:
        """The rows [out, in]. A layer whose model looks at them (Mamba, Jamba) has them from then on, and no layout."""
        if self._rows is None:
            self._rows = self.rows()
            self.give_up()
        return self._rows

    @abstractmethod
    def rows(self) -> Tensor:
        """The weight as it was given [out, in]."""

    @abstractmethod
    def give_up(self) -> None:
        """Let go of the layout."""

    def extra_repr(self) -> str:
        """Say the shape."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class BlockedLinear(LaidOutLinear):
    """One in oneDNN's blocks."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        # Neither a parameter nor a buffer: its storage is oneDNN's, which nothing else can copy or move.
        self._blocks = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)

    def product(self, inputs: Tensor) -> Tensor:
        """The product itself."""
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._blocks, self.bias, "none", [], "")
        return outputs

    def rows(self) -> Tensor:
        """The weight as it was given."""
        found: Tensor = self._blocks.to_dense()
        return found

    def give_up(self) -> None:
        """Let go of the layout."""
        self._blocks = None


class PanelLinear(LaidOutLinear):
    """One in panels, for our own kernels."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.dtype = linear.weight.dtype
        self.panels: native.Panels | None = native.Panels(
            native.FLOATS[self.dtype], linear.weight.detach(), bias=linear.bias
        )

    def product(self, inputs: Tensor) -> Tensor:
        """Multiply in C; many rows by torch, where it is faster at that."""
        assert self.panels is not None
        if inputs.numel() < native.MANY * self.in_features or native.wins_at_many(self.dtype):
            return self.panels.product(inputs)
        return functional.linear(inputs, self.rows(), self.bias)

    def rows(self) -> Tensor:
        """The weight as it was given."""
        assert self.panels is not None
        return self.panels.numbers()

    def give_up(self) -> None:
        """Let go of the layout."""
        self.panels = None


_numbers = itertools.count()
_layers: WeakValueDictionary[int, LaidOutLinear] = WeakValueDictionary()
LIBRARY: Any = torch.library.Library("catena", "FRAGMENT")  # type: ignore[no-untyped-call]
LIBRARY.define("blocked_linear(Tensor inputs, int number, int outputs) -> Tensor")
LIBRARY.impl("blocked_linear", lambda inputs, number, _: _layers[number].product(inputs), "CPU")


def _shape(inputs: Tensor, number: int, outputs: int) -> Tensor:
    return inputs.new_empty(*inputs.shape[:-1], outputs)


torch.library.register_fake("catena::blocked_linear", _shape, lib=LIBRARY)


def device_for(asked: str) -> str:
    """Return where to compute; `auto` is the first GPU, else the processor. Raises `UsageError` for one that is not."""
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise UsageError(f"there is no device {asked!r}", hint="Say cpu, cuda or cuda:1.") from error
    count = torch.cuda.device_count()
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= count):
        raise UsageError(f"there is no device {asked!r} here; there are {count} GPUs", hint="Say device: auto.")
    return asked


def dtype_for(folder: Path, precision: str, device: str = "cpu") -> torch.dtype:
    """Return the number format to load a model folder with.

    `auto`: float32, but bfloat16 for weights that are stored so where it is fast: on a GPU, or as measured here.
    """
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    settings = read_config(folder)
    stored = settings.get("dtype") or settings.get("torch_dtype")
    if stored != "bfloat16" or settings.get("quantization_config"):
        return torch.float32
    return fastest()[0] if device == "cpu" else torch.bfloat16


def form_for(folder: Path, precision: str, device: str) -> tuple[torch.dtype, str]:
    """Return number format and device to load a model folder with; see `device_for`, `dtype_for`."""
    device = device_for(device)
    return dtype_for(folder, precision, device), device


def prepare_(model: nn.Module, *, short: bool = False) -> list[str]:
    """Lay out, in place, the layers of a model that is read from here on; returns the names of those that changed.

    With `short`, layers of whole numbers round their inputs to 8 bits.
    """
    parameter = next(model.parameters())
    for layer in model.modules() if short else ():
        if isinstance(layer, Int8Linear | Int4Linear):
            layer.planes = 1
    prepack_(model, parameter.dtype)
    if parameter.device.type != "cpu":
        return []
    keep_freed()
    found = [name for name, layer in model.named_modules() if _is_taken(layer)]
    changed: list[str] = []
    for name in found:  # by name: no old layer is held while the next ones are laid out
        linear: Any = model.get_submodule(name)
        if native.takes(linear.out_features, linear.in_features):
            model.set_submodule(name, PanelLinear(linear))
        elif linear.weight.dtype == torch.bfloat16 and linear.weight.numel() >= SMALLEST and blocks_pay():
            model.set_submodule(name, BlockedLinear(linear))
        else:
            continue
        changed.append(name)
    return changed


def _is_taken(layer: nn.Module) -> bool:
    if type(layer) is not nn.Linear:
        return False
    if layer.weight.dtype == torch.float32:
        return native.library() is not None and native.wins_at_many(torch.float32)
    return layer.weight.dtype == torch.bfloat16


@cache
def blocks_pay() -> bool:
    """Tell whether blocks are read faster than rows here: one token and a few, measured once in a process (30 ms)."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise") or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    linear = nn.Linear(1024, 2048, bias=False, dtype=torch.bfloat16)
    plain = blocked = 0.0
    try:
        other = BlockedLinear(linear)
        for rows in (1, ROWS):
            inputs = torch.ones(1, rows, linear.in_features, dtype=torch.bfloat16)
            plain += _seconds(lambda inputs=inputs: functional.linear(inputs, linear.weight))  # type: ignore[misc]
            blocked += _seconds(lambda inputs=inputs: other(inputs))  # type: ignore[misc]
    except RuntimeError:
        return False
    return blocked < plain


def _seconds(work: Callable[[], object]) -> float:
    """Return the shortest time of a few tries: what else runs here only makes it longer."""
    best = float("inf")
    with torch.inference_mode():
        work()
        for _ in range(TRIES):
            began = time.perf_counter()
            work()
            best = min(best, time.perf_counter() - began)
    return best
