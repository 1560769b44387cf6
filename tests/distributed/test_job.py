"""The number of processes that a cluster's environment announces."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from devnet_jax.distributed.cluster import ClusterSettings, join_cluster
from devnet_jax.distributed.job import n_announced_processes

VARIABLES = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")


def set_environment(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("cluster", "environment", "processes"),
    [
        ("slurm", {"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "8"}, 4),
        ("slurm", {"SLURM_NTASKS": "8", "OMPI_COMM_WORLD_SIZE": "2"}, 8),
        ("slurm", {}, 1),
        ("open_mpi", {"OMPI_COMM_WORLD_SIZE": "2", "SLURM_STEP_NUM_TASKS": "4"}, 2),
        ("open_mpi", {"SLURM_NTASKS": "8"}, 1),
        ("tpu", {"SLURM_STEP_NUM_TASKS": "4"}, 1),
        (None, {"SLURM_STEP_NUM_TASKS": "4"}, 1),
    ],
)
def test_announced_processes(
    monkeypatch: pytest.MonkeyPatch,
    cluster: str | None,
    environment: dict[str, str],
    processes: int,
) -> None:
    set_environment(monkeypatch, environment)
    assert n_announced_processes(cluster) == processes


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4"}, "one of 4 processes (SLURM_STEP_NUM_TASKS)"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "one of 2 processes (OMPI_COMM_WORLD_SIZE)"),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"}, None),
        ({"SLURM_NTASKS": "8"}, None),  # a batch script, which runs once
    ],
)
def test_a_process_of_a_job_that_runs_alone_warns(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    environment: dict[str, str],
    message: str | None,
) -> None:
    set_environment(monkeypatch, environment)
    monkeypatch.setattr(logging.getLogger("devnet_jax"), "propagate", True)
    with join_cluster(ClusterSettings()):
        pass
    assert (message or "") in caplog.text
    assert bool(caplog.text) == (message is not None)


@pytest.mark.parametrize("module", ["devnet_jax.distributed.job", "devnet_jax.main"])
def test_what_runs_before_the_devices_are_set_does_not_import_jax(module: str) -> None:
    program = f"import {module}, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
