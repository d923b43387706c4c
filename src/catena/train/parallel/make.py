"""The one place where a training's strategy is chosen."""

from __future__ import annotations

import torch

from catena.train.parallel.contract import sizes_of, world_of_environment
from catena.train.parallel.strategy import Strategy
from catena.train.settings import TrainConfig


def make_strategy(config: TrainConfig, device: torch.device) -> Strategy:
    """Return this process's strategy; with several (WORLD_SIZE) it meets the others first.

    Raises `ConfigError` where the processes cannot be shared as the config says.
    """
    _, world = world_of_environment()
    if world == 1:
        sizes_of(config.parallel, 1)
        return Strategy(config, device)
    if config.parallel.data == "server":
        from catena.train.parallel.server import ByServer

        sizes_of(config.parallel, world)
        return ByServer(config, device)
    from catena.train.parallel.many import Many
    from catena.train.parallel.mesh import join

    return Many(config, device, join(config.parallel, device))
