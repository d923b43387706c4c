"""Optimizer and learning rate of the training loop. Schedules are functions of the step alone, so resuming is free."""

from __future__ import annotations

import math

import torch
from torch import nn

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


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW (fused kernels) with weight decay on matrices, and none on embeddings, norms and biases."""
    embeddings = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            matrix = parameter.dim() >= 2 and id(parameter) not in embeddings
            (decayed if matrix else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
        fused=True,
    )
