"""Products of a few rows (decoding) with int8 weights, at the speed of reading them.

Torch's kernel jumps between the rows of a weight, and a processor that prefetches by streams then reads at half its
speed; from 8 rows on it is slower than unpacking. `few_rows.c` reads in order. It is compiled for this processor when
it is first wanted, and kept in the user's cache; where there is no C compiler, or the processor has no products of
bfloat16, everything goes on without it.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("few_rows.c")
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC", "-fopenmp")
COMPILE_S = 60
MOST_ROWS = 32
"""Beyond, a product is bound by arithmetic, which oneDNN does better."""
LANES = 32
"""The inputs of a layer must be a multiple of it."""


@cache
def library() -> Any:
    """Return the compiled functions, or None where they cannot be had; `CATENA_NATIVE=0` turns them off."""
    if os.environ.get("CATENA_NATIVE") == "0":
        return None
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    try:
        path = _compiled(compiler)
        found = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        logger.info("few rows are multiplied by torch: %s", error)
        return None
    pointer, long, integer = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    found.few_rows_int8.argtypes = [pointer] * 4 + [long] * 3 + [integer]
    return found


def _compiled(compiler: str) -> Path:
    """Compile, unless it was compiled before on a processor like this one; return the library's path."""
    facts = Path("/proc/cpuinfo")
    flags = next((line for line in facts.read_text().splitlines() if line.startswith("flags")), "")
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode() + flags.encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "catena"
    path = folder / f"few_rows-{key}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / "few_rows.so"
            command = [compiler, *FLAGS, str(SOURCE), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_S)
            made.replace(path)
    return path


def takes(weight: Tensor, in_features: int) -> bool:
    """Whether a weight can be multiplied with here."""
    return weight.device.type == "cpu" and weight.is_contiguous() and not in_features % LANES and library() is not None


def few(inputs: Tensor, in_features: int) -> bool:
    """Whether inputs [..., in] are of the kind and number that these kernels are for."""
    return inputs.dtype == torch.bfloat16 and inputs.numel() <= MOST_ROWS * in_features


def int8(inputs: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Return inputs [..., in] times int8 weights [out, in], transposed, with a float32 scale for each output."""
    rows, outputs = inputs.contiguous(), len(weight)
    found = torch.empty(*rows.shape[:-1], outputs, dtype=torch.bfloat16)
    size = rows.shape[-1]
    pointers = (weight.data_ptr(), scale.data_ptr(), rows.data_ptr(), found.data_ptr())
    library().few_rows_int8(*pointers, rows.numel() // size, outputs, size, torch.get_num_threads())
    return found
