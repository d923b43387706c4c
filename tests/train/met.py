"""A process that meets others and counts them, for the test of torchrun."""

import sys

import torch
import torch.distributed as dist

from catena.train.parallel import rendezvous
from catena.train.parallel.contract import world_of_environment

if __name__ == "__main__":
    rendezvous.begin("gloo", 300)
    one = torch.ones(1)
    dist.all_reduce(one)
    dist.destroy_process_group()
    store, (rank, _) = rendezvous.store(300), world_of_environment()
    if rank == 0:
        store.set("server", "here")  # as the parameter server does, beside the store of torchrun's agent
    sys.stdout.write(f"process {rank} of {int(one)}: {store.get('server').decode()}\n")
