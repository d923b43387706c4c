"""Optimizer and learning rate of the training loop. Schedules are functions of the step alone, so resuming is free."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from catena.train.settings import TrainConfig


def learning_rate(step: int, total: int, config: TrainConfig, peak: float | None = None) -> float:
    """Return the rate of step `step` (from 0) of `total`; `peak` replaces the config's highest rate.

    Warm-up is linear; then cosine, or level and linear (WSD, arXiv 2404.06395), down to `final_rate` of the highest.
    """
    high = config.learning_rate if peak is None else peak
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    progress = min(1.0, (step + 1) / max(total, 1))
    if config.schedule == "cosine":
        fall = 0.5 * (1.0 + math.cos(math.pi * progress))
    elif config.schedule == "wsd":
        fall = min(1.0, (1.0 - progress) / config.decay_share) if config.decay_share else 1.0
    else:
        return high * warm
    return high * warm * (config.final_rate + (1.0 - config.final_rate) * fall)


def make_optimizer(
    model: nn.Module, config: TrainConfig, only: Collection[nn.Parameter] | None = None
) -> torch.optim.Optimizer:
    """Return the config's optimizer, with weight decay on matrices, and none on embeddings, norms and biases.

    With `only`, of those weights alone: the rest of them is another process's.
    """
    chosen = None if only is None else {id(parameter) for parameter in only}
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter, hidden in _trained(model):
        if chosen is None or id(parameter) in chosen:
            (decayed if hidden else kept).append(parameter)
    if config.optimizer == "muon":
        return _muon(model, decayed, kept, config)
    return _PLAIN[config.optimizer](_groups(decayed, kept, config), config)


def _groups(decayed: list[nn.Parameter], kept: list[nn.Parameter], config: TrainConfig) -> list[dict[str, Any]]:
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _trained(model: nn.Module) -> Iterable[tuple[nn.Parameter, bool]]:
    """Yield the weights that are trained, and whether each is a matrix between hidden states or to the outputs."""
    embeddings = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Embedding)}
    for parameter in model.parameters():
        if parameter.requires_grad:
            yield parameter, parameter.dim() >= 2 and id(parameter) not in embeddings


def _adamw(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    betas = (config.momentum, config.beta2)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)


def _sgd(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)


def _adafactor(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(groups, lr=config.learning_rate)


def _lion(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    return Lion(groups, config.learning_rate, (config.momentum, config.beta2))


_PLAIN: dict[str, Callable[[list[dict[str, Any]], TrainConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "lion": _lion,
}


def _muon(
    model: nn.Module, decayed: list[nn.Parameter], kept: list[nn.Parameter], config: TrainConfig
) -> torch.optim.Optimizer:
    """Muon (kellerjordan.github.io/posts/muon) for the matrices inside the layers, AdamW for all else."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    outside = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    inner = [parameter for parameter in decayed if parameter.dim() == 2 and id(parameter) not in outside]
    chosen = {id(parameter) for parameter in inner}
    rest = _groups([parameter for parameter in decayed if id(parameter) not in chosen], kept, config)
    parts: list[torch.optim.Optimizer] = []
    if inner:
        # Its steps are scaled to the size of AdamW's (arXiv 2502.16982), so one rate and one decay serve both.
        parts.append(
            torch.optim.Muon(
                inner, lr=config.learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return Several([*parts, _adamw(rest, config)] if rest else parts)


class Several(torch.optim.Optimizer):
    """Optimizers for different weights as one: the same groups and states, stepped in turn."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        for part in self.parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step each of them."""
        for part in self.parts:
            part.step()


class Lion(torch.optim.Optimizer):
    """Steps by the sign of an interpolated momentum (arXiv 2302.06675); decay is decoupled, one state per weight."""

    def __init__(self, groups: list[dict[str, Any]], rate: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": rate, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Do one step over all weights that have a gradient."""
        for group in self.param_groups:
            early, late = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                average: Tensor = state["exp_avg"]
                direction = average.lerp(parameter.grad, 1 - early).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                average.lerp_(parameter.grad, 1 - late)


@torch.no_grad()
def begin(optimizer: torch.optim.Optimizer) -> None:
    """Make the states where no step has been done yet, so that a checkpoint can be read into them.

    Any optimizer makes its own by a step along no gradient at the rate 0, which leaves weights as they are; what the
    states hold after it is taken back. All of ours begin at zero.
    """
    fresh = [
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if not optimizer.state.get(parameter)
    ]
    if not fresh:
        return
    held = [(parameter, parameter.grad) for group in optimizer.param_groups for parameter in group["params"]]
    rates = [group["lr"] for group in optimizer.param_groups]
    new = {id(parameter) for parameter in fresh}
    for parameter, _ in held:
        parameter.grad = torch.zeros_like(parameter) if id(parameter) in new else None
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for parameter, gradient in held:
        parameter.grad = gradient
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for parameter in fresh:
        for value in optimizer.state[parameter].values():
            if isinstance(value, Tensor):
                value.zero_()
