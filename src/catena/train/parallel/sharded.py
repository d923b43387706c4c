"""ZeRO stage 3: every weight, gradient and state is shared, and a layer's weights are together only while it computes.

torch's FSDP2 does it (`fully_shard`), layer by layer. What is outside the layers (embeddings, norm, head) is one unit,
which is together while the objective runs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from catena.train.batches import Batch
from catena.train.parallel.strategy import Objective, Wire


class _Costs(nn.Module):
    """A model and its objective as one module: an objective calls parts of a model, and FSDP watches whole calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, objective: Objective, batch: Batch) -> Tensor:
        return objective(self.model, batch)


class Sharded:
    """A model whose weights are shared. Making it shares them."""

    def __init__(self, model: Any, mesh: DeviceMesh, wire: Wire) -> None:
        self.mesh, self.wire = mesh, wire
        self._costs = _Costs(model)
        decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
        self._bytes = sum(held.numel() * held.element_size() for held in model.parameters())
        for layer in getattr(decoder, "layers", ()):
            fully_shard(layer, mesh=mesh)
        fully_shard(self._costs, mesh=mesh)

    def cost(self, objective: Objective, batch: Batch) -> Tensor:
        """Return what the objective says of a batch."""
        self.wire.bytes += self._bytes
        loss: Tensor = self._costs(objective, batch)
        return loss

    def backward(self, loss: Tensor) -> None:
        """Go backward; FSDP divides gradients by the number of processes, and our losses are parts of a sum."""
        self.wire.bytes += 2 * self._bytes  # weights once more, and gradients
        (loss * self.mesh.size()).backward()  # type: ignore[no-untyped-call]

    def offset(self, parameter: DTensor) -> int:
        """Return the first row that this process holds of a weight."""
        _, offset = compute_local_shape_and_global_offset(parameter.shape, self.mesh, parameter.placements)
        return int(offset[0])

    def rest(self) -> None:
        """Let go of the weights that a forward without a backward has brought together."""
        for module in self._costs.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
