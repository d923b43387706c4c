"""What a training is told about its processes. Free of torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from catena.core.config import Config

Kind = Literal["ddp", "zero1", "zero2", "zero3", "server"]
Compression = Literal["none", "float16", "bfloat16", "powersgd"]
Launcher = Literal["local", "ray"]


class ParallelConfig(Config):
    """How the processes of one training share its work. The sizes' product is the number of processes."""

    processes: int = Field(default=0, ge=0)
    """Processes to start for the training. 0: none but this one, or those that torchrun has started."""
    launcher: Launcher = "local"
    """Where they are started: `local`, on this machine; `ray`, on a cluster. Those of torchrun and Slurm are there."""
    data: Kind = "ddp"
    """What data-parallel processes hold of weights, gradients and optimizer state: `ddp` all; `zero1` shares of the
    optimizer state; `zero2` of gradients too; `zero3` of everything; `server`: one process holds the state, and
    all send their gradients to it without waiting for one another."""
    staleness: int = Field(default=1, ge=0)
    """With `server`, the steps that the fastest process may be ahead of the slowest (bounded staleness)."""
    tensor: int = Field(default=1, ge=1)
    """Processes that share each layer's matrices (tensor parallel)."""
    pipeline: int = Field(default=1, ge=1)
    """Processes that hold consecutive layers (pipeline parallel)."""
    context: int = Field(default=1, ge=1)
    """Processes that share each sequence (context parallel)."""
    compression: Compression = "none"
    """How gradients are made small before data-parallel processes exchange them."""
    rank: int = Field(default=4, ge=1)
    """Rank of PowerSGD's factors (arXiv 1905.13727)."""
    patience_s: float = Field(default=600.0, gt=0)
    """Seconds that a process waits for the others, at the start and in each exchange, before it gives them up."""

    @property
    def exact(self) -> bool:
        """Whether what is learnt is what one process learns: no gradient comes late or is made smaller."""
        return self.data != "server" and self.compression == "none"
