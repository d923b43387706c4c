"""The number format of a training's products, and where it runs. Weights stay float32; products may be narrower.

float32    as it is; on GPUs products in TF32
bfloat16   autocast
float16    autocast, and the loss scaled so that small gradients do not vanish (arXiv 1710.03740)
float8     bfloat16, and the linear layers' products in float8 (catena.train.float8)
"""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from catena.core.errors import ConfigError, EnvironmentProblem, UsageError
from catena.core.stage import Context
from catena.hub.files import write_atomically
from catena.models.measure import fastest
from catena.train.settings import TrainConfig

FLOAT8_CAPABILITY = (8, 9)
COMPILED_FROM = 500
"""Steps from which compiling the layers pays on a GPU."""
SETTLED_WITHIN_S = 120.0
HIGHEST_SCALE = 2.0**24
GROWS_AFTER = 2000
"""Finite steps in a row after which the scale of float16 losses is doubled."""


def choose_device(config: TrainConfig) -> torch.device:
    """Return where to train; raises `EnvironmentProblem` when a GPU is asked for and there is none."""
    found = torch.cuda.device_count() > 0
    if config.device == "cuda" and not found:
        raise EnvironmentProblem(
            "no CUDA GPU is usable", hint="`catena doctor` says why; `device: cpu` trains without."
        )
    if not found or config.device == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def settle_precision(ctx: Context, config: TrainConfig, device: torch.device) -> str:
    """Return the number format of products: what the config says, or what this machine measures as faster.

    It is kept in the workdir: a training that goes on must not find another one faster in the middle, and of several
    processes one measures for all. Raises `UsageError` for a format that the device does not have.
    """
    if config.precision == "float8":
        _check_float8(device)
    if config.precision != "auto":
        return config.precision
    kept = ctx.workdir / "precision"
    if not kept.exists() and os.environ.get("RANK", "0") == "0":
        found = str(fastest(device.type)[0]).removeprefix("torch.")
        ctx.events.log(f"number format: {found}, the fastest that this machine is right in")
        write_atomically(kept, found.encode())
    deadline = time.monotonic() + SETTLED_WITHIN_S
    while not kept.exists():
        if time.monotonic() > deadline:
            raise EnvironmentProblem(
                f"the main process has not settled the number format within {SETTLED_WITHIN_S:.0f} s",
                hint="Set precision, or look at what the main process says.",
            )
        time.sleep(0.02)
    return kept.read_text()


def _check_float8(device: torch.device) -> None:
    if device.type != "cuda":
        raise UsageError(
            "float8 is for GPUs: on a CPU its products are slower than float32's, and less exact",
            hint="Leave precision at auto.",
        )
    if torch.cuda.get_device_capability(device) < FLOAT8_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise UsageError(f"{name} has no float8 products", hint="Set precision to bfloat16, or leave it at auto.")


def precision(config: TrainConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which products are computed in the config's number format; weights stay float32."""
    halves = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float8": torch.bfloat16}
    wanted = halves.get(config.precision)
    return nullcontext() if wanted is None else torch.autocast(device.type, wanted)


def prepare(model: Any, config: TrainConfig, device: torch.device, steps: int) -> None:
    """Set what depends on number format, memory and device in a model that is in its place.

    That is what is computed again, TF32, float8, compiled layers.
    """
    if config.gradient_checkpointing:
        _keep_inputs_alone(model)
    if device.type != "cuda":
        if config.compile == "on":
            raise UsageError(
                "compiling is for GPUs: on a CPU it takes half a minute and gains nothing",
                hint="Leave compile at auto.",
            )
        return
    torch.set_float32_matmul_precision("high")
    if config.precision == "float8":
        from catena.train.float8 import use_float8

        use_float8(model)
    if config.compile == "on" or (config.compile == "auto" and steps >= COMPILED_FROM):
        for layer in _layers(model):
            layer.compile()


def _keep_inputs_alone(model: Any) -> None:
    """Make layers compute again what the backward pass needs. Raises `ConfigError` where the model cannot."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ConfigError(
            f"gradient checkpointing is not offered for {type(model).__name__}",
            hint="Set gradient_checkpointing: false, and a smaller micro_batch_size.",
        )
    model.activation_checkpointing_enable({"use_reentrant": False})


def finished(model: Any) -> None:
    """Turn what `prepare` changed in the layers back: the model is to be saved, or used as any other."""
    if isinstance(model, torch.nn.Module):
        from catena.train.float8 import without_float8

        without_float8(model)
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            model.activation_checkpointing_disable()  # type: ignore[operator]


def _layers(model: Any) -> list[Any]:
    """Return the blocks that a model repeats: each is compiled once and used for all."""
    return [
        layer
        for blocks in model.modules()
        if isinstance(blocks, torch.nn.ModuleList) and len({type(layer) for layer in blocks}) == 1
        for layer in blocks
    ]


@dataclass
class LossScale:
    """The factor of float16 losses: halved where a gradient overflows, doubled after a long time without."""

    value: float = 65536.0
    finite_in_a_row: int = 0

    def learn(self, finite: bool) -> None:
        """Take in whether the step's gradient was finite."""
        self.finite_in_a_row = self.finite_in_a_row + 1 if finite else 0
        if not finite:
            self.value = max(self.value / 2, 1.0)
        elif self.finite_in_a_row == GROWS_AFTER:
            self.value, self.finite_in_a_row = min(self.value * 2, HIGHEST_SCALE), 0
