"""The number format of a training's products, and where it runs. Weights stay float32; products may be narrower."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from catena.core.errors import EnvironmentProblem
from catena.core.stage import Context
from catena.hub.files import write_atomically
from catena.models.measure import fastest
from catena.train.settings import TrainConfig


def choose_device(config: TrainConfig) -> torch.device:
    """Return where to train; raises `EnvironmentProblem` when a GPU is asked for and there is none."""
    found = torch.cuda.device_count() > 0
    if config.device == "cuda" and not found:
        raise EnvironmentProblem(
            "no CUDA GPU is usable", hint="`catena doctor` says why; `device: cpu` trains without."
        )
    return torch.device("cuda" if found and config.device != "cpu" else "cpu")


def settle_precision(ctx: Context, config: TrainConfig, device: torch.device) -> str:
    """Return the number format of products: what the config says, or what this machine measures as faster.

    It is kept in the workdir: a training that goes on must not find another one faster in the middle.
    """
    if config.precision != "auto":
        return config.precision
    kept = ctx.workdir / "precision"
    if not kept.exists():
        write_atomically(kept, str(fastest(device.type)[0]).removeprefix("torch.").encode())
    return kept.read_text()


def precision(config: TrainConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which products are computed in the config's number format; weights stay float32."""
    halves = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    wanted = halves.get(config.precision)
    return nullcontext() if wanted is None else torch.autocast(device.type, wanted)
