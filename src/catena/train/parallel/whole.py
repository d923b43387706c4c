"""From parts back to the whole model: what is on many processes becomes one again, on the main one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from catena.train.parallel.strategy import Piece


def hollow(model: Any) -> Any:
    """Return a copy of a model whose weights have shapes and no memory (torch's device "meta"); ties stay ties."""
    weights = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, dict(weights))


def become(model: Any, other: Any) -> None:
    """Make one module object the other, in place: whoever holds it holds the whole model again."""
    model.__class__ = other.__class__
    model.__dict__.clear()
    model.__dict__.update(other.__dict__)


def fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put weights into a hollow model, ties included."""
    old = {name: id(parameter) for name, parameter in model.named_parameters()}
    new = {identity: nn.Parameter(weights[name]) for name, identity in old.items()}
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                filled = new[id(parameter)]
                filled.requires_grad_(parameter.requires_grad)
                module._parameters[key] = filled


def collect(pieces: Sequence[Piece], names: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return whole tensors on process 0, put together from the pieces that all processes hold (elsewhere nothing).

    `names`: every tensor's name and whole shape, in the same order everywhere. One piece is on its way at a time.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    order = list(names)
    mine = {(order.index(piece.name), *piece.offset): piece for piece in pieces if piece.writes and piece.name in names}
    device = pieces[0].tensor.device
    whole = {name: torch.empty(shape) for name, shape in names.items()} if rank == 0 else {}
    for sender in range(world):
        headers = [[at, *offset, *piece.tensor.shape] for (at, *offset), piece in mine.items()]
        count = torch.tensor(len(headers), device=device)
        dist.broadcast(count, sender)
        for number in range(int(count)):
            header = torch.zeros(16, dtype=torch.int64, device=device)
            if rank == sender:
                header[0], header[1 : 1 + len(headers[number])] = len(headers[number]), torch.tensor(headers[number])
            dist.broadcast(header, sender)
            if rank not in (0, sender):
                continue
            at, *place = header[1 : 1 + int(header[0])].tolist()
            offset, shape = place[: len(place) // 2], place[len(place) // 2 :]
            if rank == sender:
                held = mine[(at, *offset)].tensor.detach().contiguous()
            else:
                held = torch.empty(shape, device=device)
            if sender != 0:
                dist.send(held, 0) if rank == sender else dist.recv(held, sender)
            if rank == 0:
                region = tuple(slice(start, start + length) for start, length in zip(offset, shape, strict=True))
                whole[order[at]][region] = held.to("cpu")
    return whole
