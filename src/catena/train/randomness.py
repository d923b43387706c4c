"""The random numbers of a training: dropout and the like. Kept in each checkpoint, and put back before a repeated step.

Which data a step sees is not random at all (catena.train.batches); this is for what models and objectives draw.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

CPU, CUDA = "random/cpu", "random/cuda"


def seed_all(seed: int) -> None:
    """Start every generator from one seed."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def tensors(device: torch.device) -> dict[str, Tensor]:
    """Return the state of torch's generators, as tensors of bytes."""
    found = {CPU: torch.get_rng_state()}
    if device.type == "cuda":
        found[CUDA] = torch.cuda.get_rng_state(device)
    return found


def put_back(states: dict[str, Tensor], device: torch.device) -> None:
    """Set torch's generators to what `tensors` returned; a GPU's state is passed over where there is none."""
    torch.set_rng_state(states[CPU])
    if CUDA in states and device.type == "cuda":
        torch.cuda.set_rng_state(states[CUDA], device)


def plain() -> dict[str, Any]:
    """Return the state of Python's and numpy's generators as JSON."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, [int(key) for key in keys], position, has_gauss, cached],
    }


def put_back_plain(state: dict[str, Any]) -> None:
    """Set Python's and numpy's generators to what `plain` returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), position, has_gauss, cached))
