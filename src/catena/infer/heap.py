"""The C library's heap, told to keep what large tensors leave.

By default glibc takes each block of many megabytes from the system and gives it back when it is freed. A step over
thousands of tokens does so a hundred times, and every page of 4 KiB costs a fault and is zeroed first: of the time of
scoring windows of 2048 tokens with 34M parameters in float32 that was 7 % (53,000 faults for 7,670 tokens; 7,000 now).
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 32 << 20
"""Largest block that comes from the heap; glibc takes no larger value."""
KEPT = 256 << 20
"""Most free bytes at the end of the heap that are not given back."""


@cache
def keep_freed() -> bool:
    """Set it for this process, once; returns whether the C library took it (glibc does, others have no such call)."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT))
