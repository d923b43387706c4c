"""Stages that the tests of launching start in several processes. They train nothing."""

import os
import signal
import time

from catena.core.errors import DataError
from catena.core.stage import Context, stage
from catena.core.types import ModelVersion
from catena.train.launch import launched
from catena.train.parallel.contract import WorkerDone
from catena.train.settings import TrainConfig


class ActedConfig(TrainConfig):
    """What the processes are to do."""

    what: str = "work"
    """`work`, `fail`, `die` (process 1 does) or `wait`."""


@stage("test.acted")
@launched
def acted(ctx: Context, cfg: ActedConfig, *, base: ModelVersion | None = None) -> ModelVersion:
    """Do as the config says."""
    rank = int(os.environ["RANK"])
    (ctx.workdir / f"began-{rank}").write_text(os.environ["WORLD_SIZE"])
    if cfg.what == "wait" or (cfg.what in ("fail", "die") and rank == 0):
        if rank == 0:
            ctx.events.log("waiting")
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            (ctx.workdir / f"stopped-{rank}").touch()
            raise
    if cfg.what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.what == "fail":
        raise DataError("the data of process 1 is bad", hint="Give better data.")
    met = exchanged(cfg) if cfg.parallel.launcher == "local" else int(os.environ["WORLD_SIZE"])
    ctx.events.metric("seen", 1.0)
    if rank:
        raise WorkerDone
    with ctx.store.temporary_folder() as folder:
        (folder / "config.json").write_text(cfg.model_dump_json())
        return ctx.store.put_model(folder, labels={"processes": str(met)})


def exchanged(cfg: TrainConfig) -> int:
    """Count the processes by an exchange between them."""
    import torch
    import torch.distributed as dist

    from catena.train.parallel import rendezvous

    rendezvous.begin("gloo", cfg.parallel.patience_s)
    one = torch.ones(1)
    dist.all_reduce(one)
    dist.destroy_process_group()
    return int(one)
