"""Pipeline parallel: each process holds consecutive layers, and pieces of the batch go through them one after another.

One forward, one backward (1F1B, arXiv 2006.09503), so that a stage keeps as many pieces in flight as stages follow it.
With 2 stages and 4 pieces (F forward, B backward):

    stage 0   F0 F1 B0 F2 B1 F3 B2 B3
    stage 1      F0 B0 F1 B1 F2 B2 F3 B3

A stage runs the model's own code and the plan's own objective. The hidden states that come in take the place of the
input's embeddings; on all stages but the last the objective is left as soon as the decoder has answered.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from catena.core.errors import ConfigError
from catena.train.batches import Batch
from catena.train.parallel.mesh import Axis
from catena.train.parallel.share import Work
from catena.train.parallel.strategy import Wire

PLAIN_DECODERS = ("llama", "mistral", "qwen2", "qwen3", "olmo2", "smollm3")
"""Model types whose decoder is embeddings, layers and a norm, with nothing in between."""

Cost = Callable[[Any, Batch], Tensor]
"""The loss of a piece on this process, with its precision and device seen to."""


class _Answered(Exception):
    """The decoder of a stage that is not the last has answered."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class Stage:
    """One process's layers. Making it cuts the model; of each sequence it sees one of `shares` parts."""

    def __init__(self, model: Any, axis: Axis, wire: Wire, shares: int = 1) -> None:
        self.axis, self.wire, self.model = axis, wire, model
        self.first, self.last = axis.at == 0, axis.at == axis.size - 1
        self.width: int = model.config.hidden_size
        self._shares = shares
        self.tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        self._fed: Tensor | None = None
        self._begin = _cut(model, axis, self.tied)
        decoder = model.get_decoder()
        decoder.register_forward_pre_hook(self._feed, with_kwargs=True)
        if not self.last:
            decoder.register_forward_hook(self._leave)

    def name(self, local: str) -> str:
        """Return a parameter's name in the undivided model."""
        return re.sub(r"(?<=layers\.)(\d+)", lambda found: str(int(found[1]) + self._begin), local, count=1)

    def copied(self, local: str) -> bool:
        """Whether a parameter is a copy of one that another stage answers for: the head's, where it is tied."""
        return self.tied and not self.first and "embed" in local

    def _feed(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if self._fed is None:
            return None
        kept = {key: value for key, value in kwargs.items() if key != "input_ids"}
        return (), {**kept, "inputs_embeds": self._fed}

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        raise _Answered(output.last_hidden_state)

    def _forward(self, piece: Batch, cost: Cost, fed: Tensor | None) -> Tensor:
        """Return the hidden states for the next stage, or on the last one the loss."""
        self._fed = fed
        try:
            return cost(self.model, piece)
        except _Answered as answered:
            return answered.hidden
        finally:
            self._fed = None

    def learn(self, work: Work, cost: Cost, learnt: int) -> float:
        """Go forward and backward through all pieces; returns the loss over `learnt` (0 but on the last stage)."""
        ahead = min(self.axis.size - self.axis.at - 1, len(work))
        waiting: list[tuple[Tensor | None, Tensor]] = []
        total = 0.0
        fed = self._exchange(receive_before=work[0][0]) if work else None
        for number, (piece, weight) in enumerate(work):
            output = self._forward(piece, cost, fed)
            if self.last:
                output = output * (weight / learnt)
                total += float(output.detach())
            waiting.append((fed, output))
            following = work[number + 1][0] if number + 1 < len(work) else None
            if number < ahead:
                self._exchange(send_after=output)
                fed = self._exchange(receive_before=following)
                continue
            gradient = self._exchange(send_after=output, receive_after=waiting[0][1])
            fed = self._exchange(send_before=self._back(waiting, gradient), receive_before=following)
        while waiting:
            gradient = self._exchange(receive_after=waiting[0][1])
            self._exchange(send_before=self._back(waiting, gradient))
        if self.tied:
            self._sum_tied()
        return total

    def measure(self, work: Work, cost: Cost) -> float:
        """Go forward through all pieces; returns their summed loss (0 but on the last stage)."""
        total = 0.0
        for piece, weight in work:
            output = self._forward(piece, cost, self._exchange(receive_before=piece))
            self._exchange(send_after=output)
            total += float(output) * weight if self.last else 0.0
        return total

    def _back(self, waiting: list[tuple[Tensor | None, Tensor]], gradient: Tensor | None) -> Tensor | None:
        """Go backward through the oldest piece; returns the gradient for the stage before."""
        fed, output = waiting.pop(0)
        output.backward(gradient)  # type: ignore[no-untyped-call]
        return None if fed is None else fed.grad

    def _exchange(
        self,
        *,
        send_before: Tensor | None = None,
        receive_before: Batch | None = None,
        send_after: Tensor | None = None,
        receive_after: Tensor | None = None,
    ) -> Tensor | None:
        """Send and receive at once, to and from the stages before and after; returns what came.

        At once, because two neighbours that both send first would wait for each other for ever (on nccl).
        """
        transfers: list[dist.P2POp] = []
        came: Tensor | None = None
        if not self.first:
            before = self.axis.ranks[self.axis.at - 1]
            if send_before is not None:
                transfers.append(self._sent(send_before, before))
            if receive_before is not None:
                device = next(self.model.parameters()).device
                rows, length = receive_before.inputs.shape
                came = torch.empty(rows, -(-length // self._shares), self.width, device=device)
                transfers.append(dist.P2POp(dist.irecv, came, before, self.axis.group))
        if not self.last:
            after = self.axis.ranks[self.axis.at + 1]
            if send_after is not None:
                transfers.append(self._sent(send_after.detach(), after))
            if receive_after is not None:
                came = torch.empty_like(receive_after, dtype=torch.float32)
                transfers.append(dist.P2POp(dist.irecv, came, after, self.axis.group))
        for transfer in dist.batch_isend_irecv(transfers) if transfers else ():
            transfer.wait()
        if came is not None and receive_before is not None and torch.is_grad_enabled():
            came.requires_grad_()
        return came

    def _sent(self, tensor: Tensor, peer: int) -> dist.P2POp:
        whole = tensor.float().contiguous()
        self.wire.add(whole)
        return dist.P2POp(dist.isend, whole, peer, self.axis.group)

    def _sum_tied(self) -> None:
        """Add the head's gradient to the embedding's, on both ends."""
        if not (self.first or self.last):
            return
        weight = self.model.get_input_embeddings().weight
        own = weight.grad if weight.grad is not None else torch.zeros_like(weight)
        other, peer = torch.empty_like(own), self.axis.ranks[-1 if self.first else 0]
        transfers = [self._sent(own, peer), dist.P2POp(dist.irecv, other, peer, self.axis.group)]
        for transfer in dist.batch_isend_irecv(transfers):
            transfer.wait()
        weight.grad = own + other


def _cut(model: Any, axis: Axis, tied: bool) -> int:
    """Leave a stage's layers in the model; returns the number of the first."""
    config, decoder = model.config, model.get_decoder()
    count = len(getattr(decoder, "layers", ()))
    kinds = set(getattr(config, "layer_types", None) or ())
    if config.model_type not in PLAIN_DECODERS or len(kinds) > 1:
        raise ConfigError(
            f"a model of the type {config.model_type} cannot be cut into a pipeline here",
            hint=f"Use zero3 or tensor to share its weights. These can: {', '.join(PLAIN_DECODERS)}.",
        )
    if count < axis.size:
        raise ConfigError(
            f"the model's {count} layers cannot be shared by a pipeline of {axis.size}",
            hint=f"Set pipeline to {count} or less.",
        )
    begin, end = count * axis.at // axis.size, count * (axis.at + 1) // axis.size
    decoder.layers = nn.ModuleList(list(decoder.layers)[begin:end])
    first, last = axis.at == 0, axis.at == axis.size - 1
    if not first and not (last and tied):
        model.set_input_embeddings(nn.Identity())
    if not last:
        decoder.norm = nn.Identity()
        if not (first and tied):
            model.set_output_embeddings(nn.Identity())
    return begin
