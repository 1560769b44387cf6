"""Trains a detector on images that a caller gives, without a workdir, for the estimator."""

from __future__ import annotations

import json
import tempfile

import jax

from devnet_jax.config import Config
from devnet_jax.data.store import make_store
from devnet_jax.distributed.cluster import is_rank_zero
from devnet_jax.distributed.sharding import replicated
from devnet_jax.distributed.stopping import Stopped
from devnet_jax.errors import UserError
from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.inference.image_list import ImageListReader
from devnet_jax.runtime.io import write_json
from devnet_jax.runtime.workdir import Workdir
from devnet_jax.training.devcore import fit_devcore
from devnet_jax.training.log import TrainingLog
from devnet_jax.training.loop import fit
from devnet_jax.training.run import first_state, require_trainable, training_checkpoints


def train_devnet(
    config: Config, reader: ImageListReader, n_normal: int
) -> tuple[TrainedDetector, list[float]]:
    """Trains a run in a temporary folder, which is removed at the end.

    Args:
      config: all settings.
      reader: normal images, followed by anomalies.
      n_normal: number of normal images.

    Returns:
      The detector, not calibrated, and the mean loss of each epoch.
    """
    require_trainable(config)
    state = first_state(config)
    store = make_store(reader, config.dataset, replicated())
    with tempfile.TemporaryDirectory(prefix="devnet-") as folder:
        workdir = Workdir(folder)
        write_json(workdir.config, config.to_dict())
        with training_checkpoints(config, workdir) as checkpoints:
            try:
                with TrainingLog(config, workdir, silent=not is_rank_zero()) as log:
                    fit(config, store, n_normal, state, checkpoints, log)
            except Stopped:
                raise Stopped(
                    "told to stop: the estimator is not fitted, nothing is saved"
                ) from None
        detector = TrainedDetector.restore(folder, config, calibrated=False)
        lines = workdir.metrics.read_text().splitlines()
    return detector, [json.loads(line)["loss"] for line in lines]


def train_devcore(
    config: Config, reader: ImageListReader, n_normal: int
) -> tuple[TrainedDetector, list[float]]:
    """Fits DevCore, without a folder; see `train_devnet`. It has no losses."""
    n_anomaly = config.n_labelled
    fitted = fit_devcore(config, reader, n_normal, [0] * n_anomaly)
    if fitted is None:
        raise UserError("detector='devcore' is fitted by a single process")
    variables = jax.device_put(fitted.variables, replicated())
    kinds = ("anomaly",) if n_anomaly else ()
    return TrainedDetector(config, variables, config.last_step, kinds=kinds), []
