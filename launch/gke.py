r"""Runs on GPUs or TPUs of Google Kubernetes Engine, as a JobSet.

    python launch/gke.py --name=carpet --image=europe-docker.pkg.dev/p/r/devnet_jax --num_hosts=4 \
        --accelerator=tpu-v5-lite-podslice --topology=4x4 --devices_per_host=4 -- \
        --config=configs/mvtec.py:carpet --workdir=gs://my-bucket/carpet

The arguments after `--` go to `python -m devnet_jax.main`. The image must have the project
installed and configs/ in its working directory; the cluster must have JobSet installed. --dry_run
prints the manifest, for `kubectl apply -f -`. Not yet tried on a cluster.
"""

from __future__ import annotations

import logging
import subprocess

import yaml
from absl import flags

from devnet_jax.errors import UserError
from devnet_jax.launchers.arguments import find_workdir, require_flag, run_launcher
from devnet_jax.launchers.gke import PodGroup, manifest, require_bucket

logger = logging.getLogger("devnet_jax.gke")

_NAME = flags.DEFINE_string("name", None, "Name of the JobSet.")
_NAMESPACE = flags.DEFINE_string(
    "namespace", None, "Namespace of the JobSet; by default kubectl's."
)
_IMAGE = flags.DEFINE_string("image", None, "Image of the containers.")
_NUM_HOSTS = flags.DEFINE_integer("num_hosts", 1, "Number of nodes.", lower_bound=1)
_ACCELERATOR = flags.DEFINE_string(
    "accelerator",
    None,
    "Name of the GPU or TPU in GKE's node labels: nvidia-l4, tpu-v5-lite-podslice.",
)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Topology of the TPU slice, such as 4x4; leave it out for GPUs."
)
_DEVICES_PER_HOST = flags.DEFINE_integer(
    "devices_per_host", None, "Number of GPUs or TPU chips per node.", lower_bound=1
)
_SPOT = flags.DEFINE_boolean("spot", False, "Use spot nodes, which may be preempted.")
_SERVICE_ACCOUNT = flags.DEFINE_string(
    "service_account", None, "Service account of the pods, with access to the bucket."
)
_MAX_RESTARTS = flags.DEFINE_integer(
    "max_restarts",
    20,
    "Maximum number of restarts of all pods after one was killed, lost or stopped; there is none "
    "after an error.",
    lower_bound=0,
)
_GRACE = flags.DEFINE_integer(
    "grace", 120, "Seconds that a pod has to save after it is told to stop.", lower_bound=0
)
_PYTHON = flags.DEFINE_string("python", "python", "Python interpreter in the image.")
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Only print the manifest.")


def main(arguments: list[str]) -> None:
    """Applies or prints the manifest."""
    pods = PodGroup(
        name=require_flag("name", _NAME.value),
        namespace=_NAMESPACE.value,
        image=require_flag("image", _IMAGE.value),
        hosts=_NUM_HOSTS.value,
        accelerator=require_flag("accelerator", _ACCELERATOR.value),
        topology=_TOPOLOGY.value,
        devices_per_host=require_flag("devices_per_host", _DEVICES_PER_HOST.value),
        spot=_SPOT.value,
        service_account=_SERVICE_ACCOUNT.value,
        max_restarts=_MAX_RESTARTS.value,
        grace_seconds=_GRACE.value,
        python=_PYTHON.value,
    )
    require_bucket(find_workdir(arguments))
    text = yaml.safe_dump(manifest(pods, arguments), sort_keys=False, allow_unicode=True)
    if _DRY_RUN.value:
        print(text, end="")
        return
    try:
        result = subprocess.run(["kubectl", "apply", "-f", "-"], input=text, text=True)
    except FileNotFoundError:
        raise UserError("kubectl: no such program; install it, or use --dry_run") from None
    if result.returncode:
        raise UserError(f"kubectl apply -f -: ended with status {result.returncode}")
    logger.info("show the log of process 0: kubectl logs --follow job/%s-workers-0", pods.name)


if __name__ == "__main__":
    run_launcher(main)
