"""Reads from the environment how many processes a cluster's job has; does not import JAX."""

from __future__ import annotations

import os

# Environment variables with the number of processes, by the cluster's name in --cluster.
PROCESS_COUNT = {"slurm": "SLURM_STEP_NUM_TASKS", "open_mpi": "OMPI_COMM_WORLD_SIZE"}
# Read where the variable above is unset. Slurm sets it in a batch script, too, outside of srun.
_FALLBACK = {"slurm": "SLURM_NTASKS"}


def n_announced_processes(cluster: str | None) -> int:
    """Returns the number of processes that the environment announces.

    For Slurm this is the number of tasks of the step that srun has started
    (SLURM_STEP_NUM_TASKS), or else that of the job (SLURM_NTASKS).

    Args:
      cluster: "slurm" or "open_mpi"; others announce no number, and count as one process.
    """
    for variables in (PROCESS_COUNT, _FALLBACK):
        number = os.environ.get(variables.get(cluster or "", ""))
        if number and number.isdecimal():
            return int(number)
    return 1
