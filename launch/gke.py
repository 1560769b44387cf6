r"""Runs on nodes of a Google Kubernetes cluster, with GPUs or TPUs, as a JobSet.

    python launch/gke.py --name=carpet --image=europe-docker.pkg.dev/p/r/devnet_jax --num_hosts=4 \
        --accelerator=tpu-v5-lite-podslice --topology=4x4 --devices_per_host=4 -- \
        --config=configs/mvtec.py:carpet --workdir=gs://my-bucket/carpet

What comes after `--` is for `python -m devnet_jax.main`. The image has the project installed, and
configs/ in the folder where it starts; JobSet is installed in the cluster. --dry_run prints the
manifest, for `kubectl apply -f -`. Not yet tried on a cluster.
"""

from __future__ import annotations

import logging
import subprocess

import yaml
from absl import flags

from devnet_jax.errors import UserError
from devnet_jax.launchers.arguments import required, run_launcher, workdir_of
from devnet_jax.launchers.gke import PodGroup, manifest, require_bucket

logger = logging.getLogger("devnet_jax.gke")

_NAME = flags.DEFINE_string("name", None, "Name of the JobSet.")
_NAMESPACE = flags.DEFINE_string("namespace", None, "Namespace of it; by default kubectl's own.")
_IMAGE = flags.DEFINE_string("image", None, "Image of the containers.")
_NUM_HOSTS = flags.DEFINE_integer("num_hosts", 1, "Nodes to run on.", lower_bound=1)
_ACCELERATOR = flags.DEFINE_string(
    "accelerator",
    None,
    "Name of the GPU or TPU, as GKE labels nodes: nvidia-l4, tpu-v5-lite-podslice.",
)
_TOPOLOGY = flags.DEFINE_string("topology", None, "Of a TPU slice: 4x4. Left out for GPUs.")
_DEVICES_PER_HOST = flags.DEFINE_integer(
    "devices_per_host", None, "GPUs, or TPU chips, of each node.", lower_bound=1
)
_SPOT = flags.DEFINE_boolean("spot", False, "Use nodes that may be taken away.")
_SERVICE_ACCOUNT = flags.DEFINE_string(
    "service_account", None, "Of the pods; it must be allowed to use the bucket."
)
_MAX_RESTARTS = flags.DEFINE_integer(
    "max_restarts",
    20,
    "How many times all pods start again after one was killed, lost or stopped; never after an "
    "error.",
    lower_bound=0,
)
_GRACE = flags.DEFINE_integer(
    "grace", 120, "Seconds that a pod has to save when it is told to stop.", lower_bound=0
)
_PYTHON = flags.DEFINE_string("python", "python", "The interpreter in the image.")
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Print the manifest; run nothing.")


def main(arguments: list[str]) -> None:
    """Applies the manifest."""
    pods = PodGroup(
        name=required("name", _NAME.value),
        namespace=_NAMESPACE.value,
        image=required("image", _IMAGE.value),
        hosts=_NUM_HOSTS.value,
        accelerator=required("accelerator", _ACCELERATOR.value),
        topology=_TOPOLOGY.value,
        devices_per_host=required("devices_per_host", _DEVICES_PER_HOST.value),
        spot=_SPOT.value,
        service_account=_SERVICE_ACCOUNT.value,
        max_restarts=_MAX_RESTARTS.value,
        grace_seconds=_GRACE.value,
        python=_PYTHON.value,
    )
    require_bucket(workdir_of(arguments))
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
    logger.info("what it says: kubectl logs --follow job/%s-workers-0", pods.name)


if __name__ == "__main__":
    run_launcher(main)
