"""Facts about the measurement: it chooses what it measured fastest, once, and leaves the thread count alone."""

import json
import subprocess
import sys

import torch

from catena.models import measure


def test_fastest_follows_the_numbers_and_leaves_threads_as_they_were() -> None:
    threads = torch.get_num_threads()
    found = measure.measurements()
    dtype, chosen = measure.fastest("cpu")
    rates = found["gflops"]
    assert dtype == (torch.bfloat16 if (rates["bfloat16"] or 0) > 1.2 * rates["float32"] else torch.float32)
    assert str(chosen) in found["threads"]
    assert measure.measurements() is found
    assert torch.get_num_threads() == threads


def test_program_prints_json() -> None:
    done = subprocess.run([sys.executable, "-m", "catena.models.measure"], capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    assert facts["gflops"]["float32"] > 0
    assert facts["read_gb_per_s"] > 0
    assert facts["torch"] == torch.__version__
