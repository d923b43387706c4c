"""Context parallel: each process holds some of the tokens of every sequence.

Everything in a decoder is done token by token but attention. There each process has the queries of its own tokens and
gathers the keys and values of all (as Llama 3 was trained, arXiv 2407.21783, section 3.3.2); going backward, their
gradients are summed to where they belong. Activations, the most of the memory of a long sequence, are shared.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from catena.core.errors import ConfigError
from catena.train.batches import Batch
from catena.train.parallel.mesh import Axis
from catena.train.parallel.pipeline import PLAIN_DECODERS
from catena.train.parallel.share import share_columns
from catena.train.parallel.strategy import Wire

NAME = "context_parallel"
DENSE = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")


class _Gather(torch.autograd.Function):
    """The tokens of all processes, [rows, heads, tokens, width]; gradients are summed to the process of the token."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, axis: Axis, wire: Wire) -> Tensor:
        ctx.axis, ctx.wire = axis, wire
        own = value.contiguous()
        wire.add(own)
        parts = [torch.empty_like(own) for _ in range(axis.size)]
        dist.all_gather(parts, own, group=axis.group)
        return torch.cat(parts, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        parts = [part.contiguous() for part in gradients[0].chunk(ctx.axis.size, 2)]
        own = torch.empty_like(parts[0])
        ctx.wire.add(*parts)
        dist.reduce_scatter(own, parts, group=ctx.axis.group)
        return own, None, None


class SharedSequences:
    """One process's tokens. Making it puts its attention into the model."""

    def __init__(self, model: Any, axis: Axis, wire: Wire) -> None:
        self.axis, self.wire = axis, wire
        self.before: str = model.config._attn_implementation
        if model.config.model_type not in PLAIN_DECODERS:
            raise ConfigError(
                f"context parallel is not offered for models of the type {model.config.model_type}",
                hint=f"Set context: 1. These can: {', '.join(PLAIN_DECODERS)}.",
            )
        if self.before not in DENSE:
            raise ConfigError(
                f"context parallel has no {self.before} attention", hint="Use attention: dense, or context: 1."
            )
        self._positions: Tensor | None = None
        self._mask: Tensor | None = None
        AttentionInterface.register(NAME, self._attend)
        AttentionMaskInterface.register(NAME, _no_mask)
        model.set_attn_implementation(NAME)
        self._hook = model.get_decoder().register_forward_pre_hook(self._place, with_kwargs=True)

    def cut(self, piece: Batch) -> Batch:
        """Return this process's columns of a piece, and remember where they stand for the forward that follows."""
        if type(piece) is not Batch or piece.labels.shape != piece.inputs.shape:
            raise ConfigError(
                "context parallel is for learning token by token; this training needs whole sequences",
                hint="Set context: 1.",
            )
        part = share_columns(piece, self.axis.at, self.axis.size)
        width = part.inputs.shape[1]
        everywhere = torch.arange(width * self.axis.size, device=piece.inputs.device)
        own = everywhere[self.axis.at * width : (self.axis.at + 1) * width]
        mask = own[:, None] >= everywhere[None, :]
        if piece.documents is not None:
            whole = functional.pad(piece.documents, (0, len(everywhere) - piece.documents.shape[1]), value=-1)
            mask = mask & (whole[:, own, None] == whole[:, None, :])
        self._mask = mask if mask.dim() == 2 else mask[:, None]
        self._positions = own.expand(len(part.inputs), -1) if part.positions is None else part.positions
        return part

    def _place(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "position_ids": self._positions, "attention_mask": None}

    def _attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        keys, values = (self._everyones(tensor) for tensor in (key, value))
        mask = self._mask
        window = kwargs.get("sliding_window")
        if window is not None and mask is not None:
            width = query.shape[2]
            own = torch.arange(width, device=query.device) + self.axis.at * width
            mask = mask & (own[:, None] - torch.arange(keys.shape[2], device=query.device)[None, :] < window)
        mixed = functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, dropout_p=dropout, scale=scaling, enable_gqa=True
        )
        return mixed.transpose(1, 2).contiguous(), None

    def _everyones(self, value: Tensor) -> Tensor:
        whole: Tensor = _Gather.apply(value, self.axis, self.wire)  # type: ignore[no-untyped-call]
        return whole

    def leave(self, model: Any) -> None:
        """Give the model its own attention back."""
        self._hook.remove()
        model.set_attn_implementation(self.before)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Make no mask: the attention makes its own, from where the tokens stand in the whole sequence."""
