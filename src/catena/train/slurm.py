"""Slurm: the script that puts a training into its queue, and the contract of the processes that it starts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --ntasks={processes}
#SBATCH --output={name}-%j.log
# Say where they run, and with which GPUs, as your cluster wants: --nodes, --gpus-per-task, --partition, --time.
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
srun --kill-on-bad-exit=1 {command}
"""


def slurm_script(command: Sequence[str], processes: int, name: str) -> str:
    """Return a batch script that runs a command on so many processes. Its nodes must see the workspace."""
    return SCRIPT.format(name=name.replace("/", "-"), processes=processes, command=shlex.join(command))


def slurm_contract(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the contract for a process that Slurm's `srun` started; nothing where it did not.

    MASTER_ADDR is the batch script's to set: only `scontrol` can read a list of nodes.
    """
    if "SLURM_PROCID" not in environment or "RANK" in environment:
        return {}
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_NTASKS"],
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": environment.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": environment.get("MASTER_PORT", str(20_000 + int(environment["SLURM_JOB_ID"]) % 20_000)),
    }
