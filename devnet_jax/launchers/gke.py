"""The manifest of a JobSet: a run on GPUs or TPUs of Google Kubernetes Engine."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from devnet_jax.distributed.exit_status import PEER_LOST, RESUME
from devnet_jax.errors import UserError
from devnet_jax.launchers.arguments import is_bucket, main_command

PORT = 8476  # of process 0, the coordinator
_CONTAINER = "main"
_JOB = "workers"

# Statuses after which the run resumes: stopped, a process lost, or killed by SIGABRT, SIGBUS,
# SIGKILL (also when out of memory), SIGSEGV, SIGALRM or SIGTERM. Kubernetes requires them sorted.
_RESTART_STATUSES = (RESUME, PEER_LOST, 134, 135, 137, 139, 142, 143)


@dataclasses.dataclass(frozen=True)
class PodGroup:
    """The pods of a run, one on each host.

    Attributes:
      name: name of the JobSet.
      namespace: namespace of the JobSet; kubectl's default if `None`.
      image: image of the containers, with the project installed and `configs/` in its working
        directory.
      hosts: number of pods.
      accelerator: name of the nodes' GPU or TPU in GKE's labels.
      topology: topology of the TPU slice, such as 4x4; `None` for GPUs.
      devices_per_host: number of GPUs or TPU chips per node.
      spot: True for spot nodes, which may be preempted at any time.
      service_account: service account of the pods, with access to the bucket.
      max_restarts: maximum number of restarts of all pods.
      grace_seconds: seconds that a pod has to save after it is told to stop.
      python: Python interpreter in the image.
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
        """Raises `UserError` if Kubernetes would reject the name."""
        # Kubernetes allows 63 characters; a pod's name is the JobSet's with a suffix.
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", self.name):
            raise UserError(
                f"--name={self.name}: must be lower-case letters, digits and dashes, starting with "
                "a letter and ending with a letter or digit, 40 at most"
            )

    @property
    def is_tpu(self) -> bool:
        return self.topology is not None


def manifest(pods: PodGroup, arguments: Sequence[str]) -> dict[str, Any]:
    """Returns the manifest of the JobSet, to be written as YAML or JSON.

    Args:
      pods: pods to run on.
      arguments: arguments of `devnet_jax.main`.
    """
    metadata: dict[str, Any] = {"name": pods.name}
    if pods.namespace:
        metadata["namespace"] = pods.namespace
    if pods.is_tpu:  # all pods on one slice
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
                # Any other failure of a job restarts all pods.
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
        "backoffLimit": 0,  # no restart of single pods: the others have ended, too
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
        container["ports"] = [{"containerPort": 8471}, {"containerPort": 8482}]  # libtpu, JAX
    else:
        container["ports"] = [{"containerPort": PORT}]
        # NCCL exchanges data between the GPUs of a host in /dev/shm, by default 64 MB.
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
    # Kubernetes expands $(NAME) in each word, and replaces $$ by $.
    arguments = [word.replace("$", "$$") for word in arguments]
    if pods.is_tpu:
        return main_command(pods.python, ["--cluster=tpu"], arguments)
    # The Job sets the index of a pod; the JobSet gives pods fixed host names.
    process_flags = [
        f"--coordinator={pods.name}-{_JOB}-0-0.{pods.name}:{PORT}",
        f"--num_processes={pods.hosts}",
        "--process_id=$(JOB_COMPLETION_INDEX)",
    ]
    return main_command(pods.python, process_flags, arguments)


def require_bucket(workdir: str | None) -> None:
    """Raises `UserError` unless the workdir is in a bucket, which all pods can access."""
    if not workdir:
        raise UserError("--workdir is missing after --: folder of the run")
    if not is_bucket(workdir):
        raise UserError(
            f"--workdir={workdir}: it is deleted with the pod; give a folder in a bucket, gs://…"
        )
