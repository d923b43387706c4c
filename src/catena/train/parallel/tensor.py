"""Tensor parallel: each process holds some columns of one matrix and the same rows of the next.

    x -> [ column-shared: q, k, v | gate, up ] -> own heads, own features -> [ row-shared: o | down ] -> sum -> x

One sum over the processes forward and one backward for each such pair (Megatron-LM, arXiv 1909.08053). Which matrices
these are, the model's own config says (`base_model_tp_plan` of transformers). Embeddings, norms and the head are whole
on every process: their gradients come out the same everywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from catena.core.errors import ConfigError
from catena.train.parallel.mesh import Axis
from catena.train.parallel.strategy import Wire


class _Copy(torch.autograd.Function):
    """The same value for every process; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, axis: Axis, wire: Wire) -> Tensor:
        ctx.axis, ctx.wire = axis, wire
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        whole = gradients[0].contiguous()
        ctx.wire.add(whole)
        dist.all_reduce(whole, group=ctx.axis.group)
        return whole, None, None


class _Sum(torch.autograd.Function):
    """The sum of every process's value; its gradient is everyone's."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, axis: Axis, wire: Wire) -> Tensor:
        whole = value.contiguous()
        wire.add(whole)
        dist.all_reduce(whole, group=axis.group)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


class ColumnShared(nn.Module):
    """A linear layer of which this process computes some of the outputs."""

    def __init__(self, linear: nn.Linear, axis: Axis, wire: Wire) -> None:
        super().__init__()
        self.axis, self.wire = axis, wire
        self.weight = _part(linear.weight, 0, axis)
        self.bias = None if linear.bias is None else _part(linear.bias, 0, axis)

    def forward(self, value: Tensor) -> Tensor:
        """Return this process's outputs, [..., outputs / processes]."""
        same = _Copy.apply(value, self.axis, self.wire)  # type: ignore[no-untyped-call]
        return functional.linear(same, self.weight, self.bias)


class RowShared(nn.Module):
    """A linear layer of which this process has some of the inputs."""

    def __init__(self, linear: nn.Linear, axis: Axis, wire: Wire) -> None:
        super().__init__()
        self.axis, self.wire = axis, wire
        self.weight = _part(linear.weight, 1, axis)
        self.bias = linear.bias

    def forward(self, value: Tensor) -> Tensor:
        """Return all outputs, summed over the processes."""
        own = functional.linear(value, self.weight)
        whole: Tensor = _Sum.apply(own, self.axis, self.wire)  # type: ignore[no-untyped-call]
        return whole if self.bias is None else whole + self.bias


def _part(parameter: Tensor, dimension: int, axis: Axis) -> nn.Parameter:
    part = parameter.detach().chunk(axis.size, dimension)[axis.at].clone()
    return nn.Parameter(part, requires_grad=parameter.requires_grad)


@dataclass
class Shared:
    """What was shared in a model, by parameter name."""

    cut: dict[str, int] = field(default_factory=dict)
    """The dimension along which a parameter was cut."""
    partial: list[str] = field(default_factory=list)
    """Whole parameters that each process uses on its own heads only: their gradients are summed over the processes."""


def share_matrices(model: Any, axis: Axis, wire: Wire) -> Shared:
    """Replace the model's linear layers by this process's parts of them.

    Raises `ConfigError` where the model has no plan for it, or its heads or features do not divide.
    """
    plan: dict[str, str] = getattr(model.config, "base_model_tp_plan", None) or {}
    if not plan:
        raise ConfigError(
            f"a model of the type {model.config.model_type} has no plan for tensor parallel",
            hint="Use zero3, or pipeline, to share its weights.",
        )
    _check_heads(model.config, axis.size)
    base, prefix = model.base_model, f"{model.base_model_prefix}." if model.base_model is not model else ""
    shared = Shared()
    for name, module in list(base.named_modules()):
        style = plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", name))
        if style is None:
            continue
        if style == "replicated_with_grad_allreduce":
            shared.partial += [f"{prefix}{name}.{key}" for key, _ in module.named_parameters()]
            continue
        if style not in ("colwise", "rowwise") or not isinstance(module, nn.Linear):
            raise ConfigError(
                f"tensor parallel cannot share {name} ({type(module).__name__}, {style})",
                hint="Use zero3 to share the weights of this model.",
            )
        features = module.out_features if style == "colwise" else module.in_features
        if features % axis.size:
            raise ConfigError(
                f"the {features} features of {name} cannot be shared by {axis.size} processes",
                hint="Choose a number for tensor that divides them.",
            )
        part = ColumnShared(module, axis, wire) if style == "colwise" else RowShared(module, axis, wire)
        base.set_submodule(name, part)
        shared.cut[f"{prefix}{name}.weight"] = 0 if style == "colwise" else 1
        if style == "colwise" and module.bias is not None:
            shared.cut[f"{prefix}{name}.bias"] = 0
    return shared


def _check_heads(config: Any, processes: int) -> None:
    for key, what in (("num_attention_heads", "attention heads"), ("num_key_value_heads", "key and value heads")):
        heads = getattr(config, key, None)
        if heads is not None and heads % processes:
            raise ConfigError(
                f"the model's {heads} {what} cannot be shared by {processes} processes",
                hint=f"Choose a number for tensor that divides {heads}.",
            )
