"""Slurm batch scripts: one process per GPU or per node."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence

from devnet_jax.distributed.exit_status import INTERRUPTED, PEER_LOST, RESUME
from devnet_jax.errors import UserError
from devnet_jax.launchers.arguments import main_command

SAVE_SECONDS = 120  # SIGTERM is sent this long before the time limit, or up to a minute earlier
WAIT_SECONDS = 300  # for the other tasks, after one has ended; they notice within --peer_timeout
# Status of a task after an error: higher than all statuses after which the job is queued again.
TASK_ERROR = 200

_TASK = f"""\
trap : TERM # handled by the command, which saves
"$@"
status=$?
case $status in
0 | {RESUME} | {PEER_LOST}) ;;
*)
    echo "task $SLURM_PROCID on $(hostname): status $status" >&2
    if ((status <= 128 || status == {INTERRUPTED})); then status={TASK_ERROR}; fi
    ;;
esac
exit "$status"
"""

_END = f"""\
restarts=${{SLURM_RESTART_COUNT:-0}}
if ((status == {RESUME} || status == {PEER_LOST} || (status > 128 && status < {TASK_ERROR}))); then
    # Not if Slurm has ended the job itself: it was cancelled, or is already queued again.
    if [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) != RUNNING ]]; then
        echo "status $status: the job was ended; submitted again, it goes on"
    elif ((restarts >= max_requeues)); then
        echo "status $status: not queued again after $restarts times; submitted again, it goes on"
    else
        echo "status $status: queued again ($((restarts + 1)) of $max_requeues times)"
        scontrol requeue "$SLURM_JOB_ID"
    fi
elif ((status == {TASK_ERROR})); then
    status=1
fi
exit "$status"
"""


@dataclasses.dataclass(frozen=True)
class SlurmJob:
    """The resources and the environment of a Slurm job.

    Attributes:
      nodes: number of nodes.
      gpus_per_node: number of GPUs per node; 0 for a job on CPUs.
      task_per: "gpu" for one process per GPU, "node" for one per node, which uses all its GPUs.
      cpus_per_task: number of cores per process; the cluster's default if `None`.
      time: time limit in Slurm's notation; the cluster's default if `None`.
      partition: partition to run in; the cluster's default if `None`.
      account: account to charge; the cluster's default if `None`.
      name: name of the job.
      log: log file of the processes; %j is replaced by the job's number.
      directives: additional options of sbatch.
      setup: shell commands to run before the processes start.
      folder: working directory of the processes.
      python: Python interpreter of the processes.
      max_requeues: maximum number of times that the job is queued again.
    """

    nodes: int
    gpus_per_node: int
    task_per: str
    cpus_per_task: int | None
    time: str | None
    partition: str | None
    account: str | None
    name: str
    log: str
    directives: Sequence[str]
    setup: Sequence[str]
    folder: str
    python: str
    max_requeues: int

    def __post_init__(self) -> None:
        """Raises `UserError` for values that a line of a batch script cannot hold."""
        for flag, value in (
            ("time", self.time),
            ("partition", self.partition),
            ("account", self.account),
            ("job_name", self.name),
            ("script", self.log),
        ):
            if value is not None and any(character in value for character in "\\\"'\n"):
                raise UserError(
                    f"--{flag}={value}: must not have quotes, backslashes or line breaks"
                )
        for line in self.directives:
            if not line.startswith("-") or "\n" in line:
                raise UserError(f"--sbatch={line}: must be an option such as --constraint=a100")
        if self.task_per == "gpu" and not self.gpus_per_node:
            raise UserError("--task_per=gpu --gpus_per_node=0: give --task_per=node without GPUs")


def batch_script(job: SlurmJob, arguments: Sequence[str]) -> str:
    """Returns the batch script of a job.

    The job is queued again, and resumes, after Slurm has told it to save, and after the loss of a
    process.

    Args:
      job: resources and environment of the job.
      arguments: arguments of `devnet_jax.main`.
    """
    command = main_command(job.python, ["--cluster=slurm"], arguments)
    lines = [
        "#!/bin/bash",
        *_directives(job),
        "# Written by launch/slurm.py. Submit it again to resume the run.",
        "",
        f"max_requeues={job.max_requeues}",
        f"cd {shlex.quote(job.folder)} || exit 1",
        *job.setup,
        *_device_lines(job),
        "# shellcheck disable=SC1003,SC2016 # the words are literal",
        "command=(",
        *(f"    {shlex.quote(word)}" for word in command),
        ")",
        "",
        "# srun returns the highest status of its tasks. A task with an error ends with",
        f"# {TASK_ERROR}, so that the error decides.",
        "# shellcheck disable=SC2016",
        f"task={shlex.quote(_TASK)}",
        "trap : TERM # handled by the tasks, which save",
        f"{shlex.join(_srun_command(job))} \\",
        '    bash -c "$task" task "${command[@]}"',
        "status=$?",
        "",
    ]
    return "\n".join(lines) + _END


def _directives(job: SlurmJob) -> list[str]:
    options = {
        "job-name": job.name,
        "account": job.account,
        "partition": job.partition,
        "time": job.time,
        "nodes": job.nodes,
        "ntasks-per-node": job.gpus_per_node if job.task_per == "gpu" else 1,
        "gpus-per-node": job.gpus_per_node or None,
        "cpus-per-task": job.cpus_per_task,
        "output": job.log,
        "open-mode": "append",  # keeps the log when the job is queued again
        "signal": f"TERM@{SAVE_SECONDS}",
    }
    lines = [f"--{name}={_quoted(str(value))}" for name, value in options.items() if value]
    return [f"#SBATCH {line}" for line in (*lines, "--requeue", *job.directives)]


def _quoted(value: str) -> str:
    """Returns a value with sbatch's quoting, which differs from that of a shell."""
    return f'"{value}"' if any(character in value for character in " \t#") else value


def _device_lines(job: SlurmJob) -> list[str]:
    if job.task_per == "gpu" or not job.gpus_per_node:
        return []
    devices = ",".join(map(str, range(job.gpus_per_node)))
    return [
        "# By default JAX uses one GPU per process of Slurm.",
        f"export JAX_LOCAL_DEVICE_IDS={devices}",
    ]


def _srun_command(job: SlurmJob) -> list[str]:
    # The end of one task must not kill the others: they save, or are about to notice it.
    words = ["srun", "--label", "--kill-on-bad-exit=0", f"--wait={WAIT_SECONDS}"]
    if job.cpus_per_task is not None:
        words += [f"--cpus-per-task={job.cpus_per_task}"]  # srun does not inherit it from sbatch
    if job.gpus_per_node:
        words += ["--gpu-bind=none"]  # each process sees all GPUs of its node; JAX selects its own
    return words
