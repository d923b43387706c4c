"""Where a process stands among the others, and with whom it shares what. The groups of one training are made here.

With 8 processes as pipeline 2 x data 2 x tensor 2 (the last is the fastest to change, so that processes that share
matrices are neighbours, on one machine):

    rank         0  1  2  3 | 4  5  6  7
    pipeline     0  0  0  0 | 1  1  1  1
    data         0  0  1  1 | 0  0  1  1
    tensor       0  1  0  1 | 0  1  0  1
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from catena.train.parallel import rendezvous
from catena.train.parallel.contract import NAMES, sizes_of, world_of_environment
from catena.train.parallel.settings import ParallelConfig


@dataclass(frozen=True)
class Axis:
    """One direction of the mesh, seen from this process: who else is in it, and which of them this process is."""

    size: int
    at: int
    group: Any = None
    """torch's process group; None where the size is 1."""
    ranks: tuple[int, ...] = (0,)
    """Of the group's members, in the whole training."""


@dataclass(frozen=True)
class Mesh:
    """The place of this process: its axes, and torch's mesh under them."""

    rank: int
    world: int
    pipeline: Axis
    data: Axis
    context: Axis
    tensor: Axis
    replicas: Axis
    """Data and context together: those who hold the same weights and each have a part of their gradient."""
    alike: DeviceMesh
    """torch's mesh of the replicas (of data alone where no context is shared), over which ZeRO-3 shares weights."""


def join(config: ParallelConfig, device: torch.device) -> Mesh:
    """Meet the other processes and return this one's place. Reads RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT."""
    rank, world = world_of_environment()
    sizes = sizes_of(config, world)
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        rendezvous.begin("nccl" if device.type == "cuda" else "gloo", config.patience_s)
    devices = init_device_mesh(device.type, sizes, mesh_dim_names=NAMES)
    pipeline, data, context, tensor = (_axis(devices[name], name) for name in NAMES)
    alike, replicas = devices["data"], data if data.size > 1 else context
    if data.size > 1 and context.size > 1:
        alike = devices["data", "context"]._flatten("replicas")
        replicas = _axis(alike, "replicas")
    return Mesh(rank, world, pipeline, data, context, tensor, replicas, alike)


def _axis(mesh: DeviceMesh, name: str) -> Axis:
    if mesh.size() == 1:
        return Axis(1, 0)
    group = mesh.get_group()
    ranks: Sequence[int] = dist.get_process_group_ranks(group)
    return Axis(mesh.size(), mesh.get_local_rank(), group, tuple(ranks))
