"""What the heap keeps: a freed block of some megabytes is there again without a page fault."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT = """
import ctypes, resource, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: one fault may bring a large page, or many small ones
import torch
if sys.argv[1] == "keep":
    from catena.infer.heap import keep_freed
    assert keep_freed()
torch.ones(4 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(4 << 20)  # 16 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has such a setting")
def test_what_a_tensor_leaves_is_taken_again_without_faults() -> None:
    def faults(word: str) -> int:
        done = subprocess.run([sys.executable, "-c", COUNT, word], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("keep") * 2 < faults("as it is")
