"""What a training is told about its processes. Free of torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from catena.core.config import Config

Kind = Literal["ddp", "zero1", "zero2", "zero3"]
Compression = Literal["none", "float16", "bfloat16", "powersgd"]


class ParallelConfig(Config):
    """How the processes of one training share its work. The sizes' product is the number of processes."""

    data: Kind = "ddp"
    """What data-parallel processes hold of weights, gradients and optimizer state: `ddp` all; `zero1` shares of the
    optimizer state; `zero2` of gradients too; `zero3` of everything."""
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
