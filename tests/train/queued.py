"""Two tasks of a Slurm job, each of which runs a command line as `srun` would: python -m tests.train.queued WORDS"""

import os

from tests.train.team import work_together


def task(number: int) -> None:
    """Be one of the tasks."""
    from catena.cli.main import main

    os.environ.update(SLURM_PROCID=str(number), SLURM_NTASKS="2", SLURM_LOCALID=str(number), SLURM_JOB_ID="7")
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise


if __name__ == "__main__":
    work_together(2, task)
