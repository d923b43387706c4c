"""Products with weights in panels, and steps of whole decoders, in C (`panels.c`, `decoder.c`).

Eager operators cost more than the arithmetic between two products of a single token, and a processor reads a weight
fastest as one stream. The C is compiled for this processor when it is first wanted, and kept in the user's cache;
where there is no C compiler, everything goes on without it. `CATENA_NATIVE=0` turns it off.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import math
import mmap
import os
import shutil
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

logger = logging.getLogger(__name__)

SOURCES = tuple(Path(__file__).with_name(name) for name in ("decoder.c", "attention.c", "panels.c", "team.c"))
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC", "-fopenmp", "-Wno-psabi")
COMPILE_S = 120
WIDE = 32
"""Outputs of a panel."""
MANY = 64
"""Rows from which on a product is bound by arithmetic: torch does it where a measurement finds it faster."""
TRIES = 6
CLEARLY = {torch.float32: 1.1, torch.bfloat16: 1.5}
"""So many times the time of torch: what lies between the products is faster here, and rows of bfloat16 all the more."""
PAGE = 1 << 21
"""Bytes of a large page."""
CHUNK = 32 * PAGE
"""Bytes that are asked for at a time; what no weight touches is not taken from the machine."""
LINE = 64
"""Bytes of a cache line."""
BF16, INT8, INT4, FP32 = range(4)
_INPUTS = {FP32: 1, BF16: 2, INT8: 4, INT4: 8}
"""Inputs that lie side by side in a panel."""
_BITS = {FP32: 32, BF16: 16, INT8: 8, INT4: 4}
_STORED = {FP32: torch.float32, BF16: torch.bfloat16, INT8: torch.uint8, INT4: torch.uint8}
FLOATS = {torch.float32: FP32, torch.bfloat16: BF16}
"""Kinds of weights that are no codes."""
MOST_GROUP = 512
"""Inputs of int8 that have a scale together."""


class Record(ctypes.Structure):
    """A weight, as C sees it (`Linear`)."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "scale", "bias")),
        *((name, ctypes.c_long) for name in ("outputs", "inputs", "group")),
        *((name, ctypes.c_int) for name in ("kind", "planes")),
    )


class LayerRecord(ctypes.Structure):
    """A layer of a decoder, as C sees it (`Layer`)."""

    _fields_ = (
        *((name, Record) for name in ("query", "key", "value", "out", "gate", "up", "down")),
        *((name, ctypes.c_void_p) for name in ("before", "after", "query_norm", "key_norm", "keys", "values")),
        ("window", ctypes.c_long),
    )


class ModelRecord(ctypes.Structure):
    """A decoder, as C sees it (`Model`)."""

    _fields_ = (
        ("layers", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("count", "width", "heads", "kv_heads", "dim", "inner")),
        *((name, ctypes.c_float) for name in ("epsilon", "scaling", "turn_scaling")),
        *((name, ctypes.c_void_p) for name in ("norm", "frequencies", "embedding")),
        *((name, ctypes.c_long) for name in ("vocabulary", "per")),
        ("head", Record),
    )


class StepRecord(ctypes.Structure):
    """The rows of a step, as C sees them (`Step`)."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("ids", "positions", "slots", "runs", "keep", "logits", "best")),
        *((name, ctypes.c_long) for name in ("rows", "count", "kept", "block_size")),
        ("threads", ctypes.c_int),
    )


@cache
def library() -> Any:
    """Return the compiled functions, or None where they cannot be had."""
    if os.environ.get("CATENA_NATIVE") == "0":
        return None
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    try:
        found = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        logger.info("products are torch's: %s", error)
        return None
    pointer, long = ctypes.c_void_p, ctypes.c_long
    found.native_linear.argtypes = [pointer, pointer, pointer, long, ctypes.c_int]
    found.native_large_pages.argtypes = [pointer, long]
    found.native_step.argtypes = [pointer, pointer]
    for one in (found.native_linear, found.native_large_pages, found.native_step):
        one.restype = None
    return found


def _compiled(compiler: str) -> Path:
    """Compile, unless it was compiled before on a processor like this one; return the library's path."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    processor = next((line for line in lines if line.startswith("flags")), "")
    text = b"".join(source.read_bytes() for source in SOURCES) + " ".join(FLAGS).encode() + processor.encode()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "catena"
    path = folder / f"native-{hashlib.sha256(text).hexdigest()[:16]}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / "native.so"
            command = [compiler, *FLAGS, str(SOURCES[0]), "-o", str(made), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_S)
            made.replace(path)
    return path


class Panels:
    """A weight [out, in] laid out for the products in C, with its scales and the layer's bias."""

    def __init__(
        self, kind: int, numbers: Tensor, scale: Tensor | None = None, bias: Tensor | None = None, planes: int = 2
    ) -> None:
        """`numbers` [out, in]: float32, bfloat16, or codes of int8 or int4, which have a `scale` [out, groups].

        With two `planes` inputs of whole numbers have 16 bits, with one 8.
        """
        self.kind, (self.outputs, self.inputs) = kind, numbers.shape
        group = self.inputs // (1 if scale is None else scale.shape[1])
        if kind == INT8:
            group = next(size for size in range(MOST_GROUP, 0, -32) if self.inputs % size == 0)
        self.weight = _laid_out(kind, numbers)
        self.scale = None if scale is None else _scales(kind, scale)
        self.bias = None if bias is None else bias.detach().float().contiguous()
        pointers = [0 if one is None else one.data_ptr() for one in (self.weight, self.scale, self.bias)]
        self.record = Record(*pointers, self.outputs, self.inputs, group, kind, planes)

    def numbers(self) -> Tensor:
        """Return the weight as it was given, [out, in]: float32, bfloat16 or int8 codes."""
        panels = self.weight
        if self.kind == INT8:
            panels = (panels ^ 128).view(torch.int8)
        elif self.kind == INT4:
            panels = torch.stack([panels & 15, panels >> 4], dim=2).view(torch.int8) - 8
            panels = panels.flatten(1, 2)
        count, _, _, side = panels.shape
        return panels.transpose(1, 2).reshape(count * WIDE, -1, side).flatten(1)[: self.outputs]

    def product(self, inputs: Tensor) -> Tensor:
        """Return inputs [..., in] times the transposed weight, with the bias, in the inputs' number format."""
        rows = inputs.reshape(-1, self.inputs).float().contiguous()
        found = torch.empty(len(rows), self.outputs)
        library().native_linear(
            ctypes.byref(self.record), rows.data_ptr(), found.data_ptr(), len(rows), torch.get_num_threads()
        )
        return found.to(inputs.dtype).view(*inputs.shape[:-1], self.outputs)


def cut(record: Record, sizes: list[int]) -> list[Record]:
    """Return parts of a weight that have so many outputs each; raises `ValueError` where one begins inside a panel."""
    parts, at = [], 0
    for size in sizes:
        if at % WIDE:
            raise ValueError(f"a layer of {size} outputs is joined to others behind {at}")
        part = Record.from_buffer_copy(record)
        part.weight += at * record.inputs * _BITS[record.kind] // 8
        part.outputs = size
        if record.scale:
            part.scale += at * (4 if record.kind == INT8 else 2 * record.inputs // record.group)
        if record.bias:
            part.bias += 4 * at
        parts.append(part)
        at += size
    return parts


def takes(outputs: int, inputs: int, group: int = 0) -> bool:
    """Whether a weight of that shape can be multiplied with here."""
    fits = inputs % 32 == 0 and (not group or (group % 16 == 0 and inputs % group == 0))
    return fits and outputs > 0 and library() is not None


def wins_at_many(dtype: torch.dtype) -> bool:
    """Whether torch's products are not clearly faster for many rows; measured once in a process (20 ms)."""
    with _measuring:  # two engines that open at once must not find two answers
        if dtype not in _wins:
            _wins[dtype] = _measured(dtype)
        return _wins[dtype]


_measuring = threading.Lock()
_wins: dict[torch.dtype, bool] = {}


def _measured(dtype: torch.dtype) -> bool:
    weight = torch.ones(1024, 1024, dtype=dtype)
    inputs = torch.ones(4 * MANY, 1024, dtype=dtype)
    panels = Panels(FLOATS[dtype], weight)
    ours = theirs = float("inf")
    with torch.inference_mode():
        for _ in range(TRIES):  # in turn, and the shortest counts
            ours = min(ours, _seconds(lambda: panels.product(inputs)))
            theirs = min(theirs, _seconds(lambda: functional.linear(inputs, weight)))
    return ours < CLEARLY[dtype] * theirs


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()  # of all threads: what else runs here has little part in it
    work()
    return time.process_time() - began


def _laid_out(kind: int, numbers: Tensor) -> Tensor:
    """Return panels `[out / 32, in / side, 32, side]` of a weight, filled up with zeros to whole panels."""
    side, (outputs, inputs) = _INPUTS[kind], numbers.shape
    count = -(-outputs // WIDE)
    shape = (count, inputs // side, WIDE, min(side, 4))
    stored = _STORED[kind]
    found = _arena.room(math.prod(shape) * stored.itemsize).view(stored).view(shape)
    for panel in range(count):  # one at a time: a copy of the whole weight would double the memory
        rows = numbers[panel * WIDE : (panel + 1) * WIDE]
        if len(rows) < WIDE:
            rows = torch.cat([rows, rows.new_zeros(WIDE - len(rows), inputs)])
        if kind in FLOATS.values():
            found[panel] = rows.view(WIDE, -1, side).transpose(0, 1)
        elif kind == INT8:
            found[panel] = rows.contiguous().view(torch.uint8).view(WIDE, -1, 4).transpose(0, 1) ^ 128
        else:
            codes = (rows + 8).view(torch.uint8).view(WIDE, -1, 2, 4)
            found[panel] = (codes[:, :, 0] | codes[:, :, 1] << 4).transpose(0, 1)
    return found


def _scales(kind: int, scale: Tensor) -> Tensor:
    """Return the scales in the order of the panels: float32 for int8, float16 `[out / 32, groups, 32]` for int4."""
    rows, groups = -(-len(scale) // WIDE) * WIDE, scale.shape[1]
    filled = torch.zeros(rows, groups, dtype=torch.float16 if kind == INT4 else torch.float32)
    filled[: len(scale)] = scale
    panels = filled.view(-1, WIDE, groups).transpose(1, 2)
    found = _arena.room(filled.nbytes).view(filled.dtype).view(panels.shape)
    return found.copy_(panels)


class _Arena:
    """Memory of large pages, of which weights take their parts in the order in which they are laid out.

    A token reads all weights, one after the other: so the end of one is no end for what the processor reads in advance.
    A weight in memory of its own has large pages in its middle only. Chunks go back with the last weight in them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunk: Callable[[], mmap.mmap | None] = lambda: None
        self._at = self._end = 0

    def room(self, size: int) -> Tensor:
        """Return `size` bytes, all 0, from a cache line on."""
        with self._lock:
            memory = self._chunk()
            if memory is None or self._at + size > self._end:
                memory = self._new(max(size, CHUNK))
            found = torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=self._at)
            self._at += -(-size // LINE) * LINE
        return found

    def _new(self, size: int) -> mmap.mmap:
        memory = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._at = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % PAGE
        self._end = self._at + size
        self._chunk = weakref.ref(memory)
        library().native_large_pages(self._at + ctypes.addressof(ctypes.c_char.from_buffer(memory)), size)
        return memory


_arena = _Arena()
