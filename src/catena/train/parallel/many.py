"""Many processes: a `Strategy` that shares rows, weights, layers or tokens, and still does what one process does.

place       cut the model: matrices (tensor), layers (pipeline), tokens (context), everything (zero3)
backward    each process its pieces; then gradients are summed over those who hold the same weights
clip        the norm counts each weight once, wherever it is
pieces      what is held here, and where it lies in the undivided model
gather      the undivided model, on the main process
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from catena.core.errors import ConfigError
from catena.train.batches import Batch
from catena.train.guard import MemoryShort, out_of_memory
from catena.train.objectives import next_token_loss
from catena.train.optim import begin, make_optimizer
from catena.train.parallel import whole
from catena.train.parallel.context import SharedSequences
from catena.train.parallel.mesh import Mesh
from catena.train.parallel.ownership import EarlyReduction, Owners, gradient_of
from catena.train.parallel.pipeline import Stage
from catena.train.parallel.reduction import PowerSGD, make_reduction, total
from catena.train.parallel.sharded import Sharded
from catena.train.parallel.share import Work, work_of
from catena.train.parallel.strategy import Objective, Piece, Strategy
from catena.train.parallel.tensor import Shared, share_matrices
from catena.train.precision import precision
from catena.train.settings import TrainConfig

ELEMENTWISE = ("adamw", "sgd", "lion")
"""Optimizers that step each number of a weight by itself; the others need whole matrices."""


@dataclass(frozen=True)
class Part:
    """What a process holds of one weight: where it lies in the undivided model, and whether it answers for it."""

    name: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    answers: bool


class Many(Strategy):
    """One of several processes."""

    def __init__(self, config: TrainConfig, device: torch.device, mesh: Mesh) -> None:
        super().__init__(config, device)
        self.mesh, self.rank, self.world = mesh, mesh.rank, mesh.world
        self.kind = config.parallel.data if mesh.data.size > 1 else "ddp"
        self.reduction = make_reduction(config.parallel, mesh.replicas, self.wire)
        self.shared = Shared()
        self.stage: Stage | None = None
        self.sequences: SharedSequences | None = None
        self.sharded: Sharded | None = None
        self.early: EarlyReduction | None = None
        if config.optimizer not in ELEMENTWISE and (self.kind == "zero3" or mesh.tensor.size > 1):
            raise ConfigError(
                f"the optimizer {config.optimizer} needs whole matrices; this training shares them",
                hint=f"Choose one of {', '.join(ELEMENTWISE)}, or data: ddp, zero1 or zero2.",
            )

    # -- before the first step ---------------------------------------------------------------------------------------

    def place(self, model: Any) -> Any:
        """Leave in the model what this process trains."""
        mesh = self.mesh
        if hasattr(model, "peft_config") and mesh.world > mesh.data.size:
            raise ConfigError(
                "adapters are trained by data-parallel processes; tensor, pipeline and context are for whole models",
                hint="Leave those sizes at 1; data: zero3 shares the weights of a model that is too large.",
            )
        self.shapes = {name: tuple(held.shape) for name, held in model.named_parameters()}
        self.undivided = whole.hollow(model) if self.divided else None
        if mesh.tensor.size > 1:
            self.shared = share_matrices(model, mesh.tensor, self.wire)
        if mesh.pipeline.size > 1:
            self.stage = Stage(model, mesh.pipeline, self.wire, mesh.context.size)
        if mesh.context.size > 1:
            self.sequences = SharedSequences(model, mesh.context, self.wire)
        model = model.to(self.device).train()
        if self.kind == "zero3":
            self.sharded = Sharded(model, mesh.alike, self.wire)
        self.owners = Owners(model, mesh.replicas, self.wire)
        if self.kind == "zero2":
            self.early = EarlyReduction(self.owners, self.reduction)
        self.held = dict(model.named_parameters())
        self.parts = {name: self._part(name, held) for name, held in self.held.items()}
        return model

    @property
    def divided(self) -> bool:
        """Whether weights lie in parts on several processes."""
        return self.kind == "zero3" or self.mesh.tensor.size > 1 or self.mesh.pipeline.size > 1

    def _part(self, local: str, parameter: nn.Parameter) -> Part:
        """Describe what is held of one weight; the copies of one part have one process that answers for it."""
        name = local if self.stage is None else self.stage.name(local)
        offset, answers = [0] * parameter.dim(), self.owners.of.get(local, 0) == self.mesh.replicas.at
        if local in self.shared.cut:
            dimension, tensor = self.shared.cut[local], self.mesh.tensor
            offset[dimension] = self.shapes[name][dimension] // tensor.size * tensor.at
        elif self.mesh.tensor.at > 0:
            answers = False
        if self.stage is not None and self.stage.copied(local):
            answers = False
        if isinstance(parameter, DTensor):
            assert self.sharded is not None
            offset[0] += self.sharded.offset(parameter)
            answers = local in self.shared.cut or self.mesh.tensor.at == 0
        return Part(name, self.shapes[name], tuple(offset), answers)

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """Return the optimizer of the weights that this process steps; under ZeRO it tells the others after a step."""
        if self.kind not in ("zero1", "zero2"):
            return make_optimizer(model, self.config)
        optimizer = make_optimizer(model, self.config, only=self.owners.own)
        optimizer.register_step_post_hook(lambda *_: self.owners.broadcast())
        return optimizer

    # -- a step ------------------------------------------------------------------------------------------------------

    def backward(self, model: Any, batch: Batch, objective: Objective, micro_batch_size: int) -> float:
        """Add the gradient of the whole batch's mean loss, over all processes; returns that mean."""
        work = self._work(batch, micro_batch_size)
        found, short = 0.0, False
        try:
            found = self._learn(model, work, batch, objective)
        except (RuntimeError, MemoryError) as error:
            if not (self._alone and out_of_memory(error)):
                raise
            short = True
        if self._alone and self.any(short):
            raise MemoryShort(f"memory ran out with {micro_batch_size} rows at once")
        self._reduce()
        return self._total(found)

    @property
    def _alone(self) -> bool:
        """Whether forward and backward wait for nobody, so that all can do a step again when one runs out of memory."""
        shares = self.mesh.tensor.size * self.mesh.context.size > 1
        return self.stage is None and self.sharded is None and self.early is None and not shares

    def _learn(self, model: Any, work: Work, batch: Batch, objective: Objective) -> float:
        """Go through this process's pieces; returns their part of the mean loss."""
        if self.stage is not None:
            return self.stage.learn(work, lambda held, piece: self._cost(held, piece, objective), batch.learnt)
        found = 0.0
        for piece, weight in work:
            loss = self._cost(model, piece, objective) * (weight / batch.learnt)
            if self.sharded is not None:
                self.sharded.backward(loss)
            else:
                loss.backward()  # type: ignore[no-untyped-call]
            found += float(loss.detach())
            if self.early is not None:
                self.early.end_piece()
        return found

    def _work(self, batch: Batch, micro_batch_size: int) -> Work:
        data = self.mesh.data
        return work_of(batch, micro_batch_size, data.at, data.size, self.kind in ("zero2", "zero3"))

    def _cost(self, model: Any, piece: Batch, objective: Objective) -> Tensor:
        piece = piece.to(self.device)
        if self.sequences is not None:
            piece = self.sequences.cut(piece)
        with precision(self.config, self.device):
            return objective(model, piece) if self.sharded is None else self.sharded.cost(objective, piece)

    def _reduce(self) -> None:
        """Sum gradients over the processes that hold the same weights."""
        names = list(self.owners.parameters)
        if self.shared.partial:
            for name in self.shared.partial:
                gradient = gradient_of(self.owners.parameters[name])
                self.wire.add(gradient)
                dist.all_reduce(gradient, group=self.mesh.tensor.group)
        if self.early is not None:
            self.early.finish()
        elif self.kind == "zero1":
            self.owners.reduce(names, self.reduction)
        elif self.mesh.replicas.size > 1 and self.sharded is None:
            self.reduction([(name, gradient_of(self.owners.parameters[name])) for name in names])

    def _total(self, found: float) -> float:
        """Add what the processes found; those that share matrices all found the same."""
        return total(found if self.mesh.tensor.at == 0 else 0.0, None, self.device)

    @torch.no_grad()
    def clip(self, model: nn.Module, longest: float) -> float:
        """Shorten the whole gradient to a 2-norm of `longest`; returns the norm before, the same everywhere."""
        squares = 0.0
        gradients = []
        for name, parameter in self.owners.parameters.items():
            if parameter.grad is not None:
                gradient = local(parameter.grad)
                gradients.append(gradient)
                if self.parts[name].answers:
                    squares += float(torch.linalg.vector_norm(gradient, dtype=torch.float32)) ** 2
        norm = math.sqrt(total(squares, None, self.device))
        if norm + 1e-6 > longest:
            for gradient in gradients:
                gradient.mul_(longest / (norm + 1e-6))
        return norm

    @torch.no_grad()
    def measure(self, model: Any, batches: Sequence[Batch], objective: Objective = next_token_loss) -> float:
        """Return the mean loss over all learnt tokens of some batches, the same on every process."""
        model.eval()
        found = 0.0
        for batch in batches:
            work = self._work(batch, 0)
            if self.stage is not None:
                found += self.stage.measure(work, lambda held, piece: self._cost(held, piece, objective))
            else:
                found += sum(float(self._cost(model, piece, objective)) * weight for piece, weight in work)
        model.train()
        if self.sharded is not None:
            self.sharded.rest()
        return self._total(found) / max(sum(batch.learnt for batch in batches), 1)

    # -- checkpoints and the end -------------------------------------------------------------------------------------

    def pieces(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Piece]:
        """Return all that this process holds and a checkpoint needs."""
        begin(optimizer)
        found = []
        for name, parameter in self.owners.parameters.items():
            part = self.parts[name]
            found.append(self._piece("model", part, local(parameter.detach())))
            for kind, state in optimizer.state.get(parameter, {}).items():
                if isinstance(state, Tensor):
                    found.append(self._piece(kind, part, local(state)))
        found = [piece for piece in found if piece.tensor.numel()]
        return [*found, *self._memory()]

    def _piece(self, kind: str, part: Part, tensor: Tensor) -> Piece:
        name = f"{kind}/{part.name}"
        if tensor.dim() == len(part.shape) and tensor.dim() > 0:
            return Piece(name, tensor, part.shape, part.offset, part.answers)
        # A count of steps, and the like: the same for every part of the weight.
        return Piece(name, tensor, tuple(tensor.shape), (0,) * tensor.dim(), part.answers and not any(part.offset))

    def _memory(self) -> list[Piece]:
        """Return what PowerSGD remembers: errors are each process's own, factors are alike."""
        if not isinstance(self.reduction, PowerSGD) or self.mesh.replicas.size == 1:
            return []
        memory = self.reduction
        memory.prepare([(name, held.detach()) for name, held in self.owners.parameters.items()])
        found = []
        for kind, held, answers in (
            (f"error-{self.rank}-of-{self.world}", memory.errors, True),
            ("factor", memory.factors, self.main),
        ):
            for name, tensor in held.items():
                shape = tuple(tensor.shape)
                found.append(Piece(f"{kind}/{name}", tensor, shape, (0,) * len(shape), answers, optional=True))
        return found

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any process."""
        return total(float(flag), None, self.device) > 0

    def same(self, number: int) -> int:
        """Return what the main process says."""
        held = torch.tensor(number, dtype=torch.int64, device=self.device)
        dist.broadcast(held, 0)
        return int(held)

    def least(self, number: int) -> int:
        """Return the least that any process says."""
        held = torch.tensor(number, dtype=torch.int64, device=self.device)
        dist.all_reduce(held, dist.ReduceOp.MIN)
        return int(held)

    def gather(self, model: Any) -> Any:
        """Make the model whole again on the main process."""
        if self.sequences is not None:
            self.sequences.leave(model)
        if self.undivided is None:
            return model.to("cpu").eval()
        parts = [self._piece("model", part, local(self.held[name].detach())) for name, part in self.parts.items()]
        held = [piece for piece in parts if piece.tensor.numel()]
        weights = whole.collect(held, {f"model/{name}": shape for name, shape in self.shapes.items()})
        if self.main:
            whole.fill(self.undivided, {name.removeprefix("model/"): held for name, held in weights.items()})
            whole.become(model, self.undivided)
        return model.eval()

    def close(self) -> None:
        """Leave the group of processes."""
        dist.destroy_process_group()


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
