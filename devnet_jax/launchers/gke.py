"""A run on Kubernetes: the manifest of a JobSet, for GPUs or TPUs of Google's clusters."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from devnet_jax.distributed.exit_status import PEER_LOST, RESUME
from devnet_jax.errors import UserError
from devnet_jax.launchers.arguments import is_bucket, main_command

PORT = 8476  # of the first process, on which the others find it
_CONTAINER = "main"
_JOB = "workers"

# The statuses after which the run goes on: stopped, without one of its processes, or killed by
# SIGABRT, SIGKILL (also for want of memory), SIGSEGV or SIGTERM. In order, as Kubernetes wants it.
_RESTART_STATUSES = (RESUME, PEER_LOST, 134, 135, 137, 139, 142, 143)


@dataclasses.dataclass(frozen=True)
class PodGroup:
    """The pods of a run, one on each host.

    Attributes:
      name: of the JobSet.
      namespace: of it; the one that kubectl uses if None.
      image: of the containers: has the project installed, and its `configs/` where it starts.
      hosts: how many pods.
      accelerator: of the nodes: the GPU's or TPU's name in GKE's labels.
      topology: of a TPU slice, such as 4x4; None for GPUs.
      devices_per_host: GPUs, or TPU chips, of each node.
      spot: whether the nodes may be taken away at any time.
      service_account: of the pods, which must be allowed to use the bucket.
      max_restarts: how many times all pods are started again.
      grace_seconds: that a pod has to save when it is told to stop.
      python: the interpreter in the image.
    """

    name: str
    namespace: str | None
    image: str
    hosts: int
    accelerator: str
    topology: str | None
    devices_per_host: int
    spot: bool
    service_account: str | None
    max_restarts: int
    grace_seconds: int
    python: str

    def __post_init__(self) -> None:
        """Raises `UserError` for a name that Kubernetes would refuse."""
        # The longest of the names that are made from it, of a pod, must be 63 characters at most.
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", self.name):
            raise UserError(
                f"--name={self.name}: must be lower-case letters, digits and dashes, from a letter "
                "to a letter or digit, 40 at most"
            )

    @property
    def is_tpu(self) -> bool:
        return self.topology is not None


def manifest(pods: PodGroup, arguments: Sequence[str]) -> dict[str, Any]:
    """The JobSet, to be written as YAML or JSON.

    Args:
      pods: what to run on.
      arguments: of `devnet_jax.main`.
    """
    metadata: dict[str, Any] = {"name": pods.name}
    if pods.namespace:
        metadata["namespace"] = pods.namespace
    if pods.is_tpu:  # all pods on the hosts of one slice
        metadata["annotations"] = {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {
                "maxRestarts": pods.max_restarts,
                # Any other failure of a job starts all pods again.
                "rules": [
                    {
                        "name": "error",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {"name": _JOB, "replicas": 1, "template": {"spec": _job(pods, arguments)}}
            ],
        },
    }


def _job(pods: PodGroup, arguments: Sequence[str]) -> dict[str, Any]:
    return {
        "completionMode": "Indexed",
        "parallelism": pods.hosts,
        "completions": pods.hosts,
        "backoffLimit": 0,  # a pod alone is not started again: the others have ended, too
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "Count",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": _CONTAINER,
                        "operator": "NotIn",
                        "values": list(_RESTART_STATUSES),
                    },
                },
            ]
        },
        "template": {"spec": _pod(pods, arguments)},
    }


def _pod(pods: PodGroup, arguments: Sequence[str]) -> dict[str, Any]:
    device = "google.com/tpu" if pods.is_tpu else "nvidia.com/gpu"
    container: dict[str, Any] = {
        "name": _CONTAINER,
        "image": pods.image,
        "command": _command(pods, arguments),
        "resources": {"limits": {device: pods.devices_per_host}},
    }
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": pods.grace_seconds,
        "nodeSelector": _node_selector(pods),
        "containers": [container],
    }
    if pods.service_account:
        spec["serviceAccountName"] = pods.service_account
    if pods.is_tpu:
        container["ports"] = [{"containerPort": 8471}, {"containerPort": 8482}]  # libtpu's, JAX's
    else:
        container["ports"] = [{"containerPort": PORT}]
        # NCCL passes data between the GPUs of a host here; a container has 64 MB unless told.
        container["volumeMounts"] = [{"name": "shm", "mountPath": "/dev/shm"}]
        spec["volumes"] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    return spec


def _node_selector(pods: PodGroup) -> Mapping[str, str]:
    label = "cloud.google.com/gke"
    if pods.topology is not None:
        selector = {
            f"{label}-tpu-accelerator": pods.accelerator,
            f"{label}-tpu-topology": pods.topology,
        }
    else:
        selector = {f"{label}-accelerator": pods.accelerator}
    return {**selector, f"{label}-spot": "true"} if pods.spot else selector


def _command(pods: PodGroup, arguments: Sequence[str]) -> list[str]:
    # Kubernetes replaces $(NAME), and $$ by $, in each word.
    arguments = [word.replace("$", "$$") for word in arguments]
    if pods.is_tpu:
        return main_command(pods.python, ["--cluster=tpu"], arguments)
    # A Job numbers its pods, and a JobSet gives each a name: nothing has to be asked for.
    own = [
        f"--coordinator={pods.name}-{_JOB}-0-0.{pods.name}:{PORT}",
        f"--num_processes={pods.hosts}",
        "--process_id=$(JOB_COMPLETION_INDEX)",
    ]
    return main_command(pods.python, own, arguments)


def require_bucket(workdir: str | None) -> None:
    """Raises `UserError` unless the workdir is where all pods see it."""
    if not workdir:
        raise UserError("--workdir is missing after --: the folder that the run writes to")
    if not is_bucket(workdir):
        raise UserError(
            f"--workdir={workdir}: lost with the pod; give a folder in a bucket, gs://…"
        )
