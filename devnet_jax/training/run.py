"""Trains the detector of a run in its workdir.

Mistakes in the settings, the data, the weights or the workdir are found before the first file is
written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from devnet_jax.checkpoints.checkpoints import Checkpoints
from devnet_jax.config import Config
from devnet_jax.data.few_shot import FewShotDataset
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.data.store import make_store
from devnet_jax.distributed.cluster import is_rank_zero, locked_by_rank_zero
from devnet_jax.distributed.sharding import replicated
from devnet_jax.errors import UserError
from devnet_jax.models import check_n_scales
from devnet_jax.models.build import first_variables
from devnet_jax.models.devcore import check_image_size
from devnet_jax.runtime.io import write_json
from devnet_jax.runtime.numerics import standard_numerics
from devnet_jax.runtime.workdir import Workdir
from devnet_jax.training.devcore import fit_devcore
from devnet_jax.training.learned import Learned, write_learned
from devnet_jax.training.log import TrainingLog
from devnet_jax.training.loop import fit, require_divisible_batch, restore_state
from devnet_jax.training.ordinary import summarise_images, write_ordinary
from devnet_jax.training.resume import open_dataset
from devnet_jax.training.step import TrainState, initial_state

logger = logging.getLogger(__name__)


@standard_numerics()
def train(config: Config, workdir: Workdir) -> None:
    """Trains the run of a workdir, or resumes it.

    Writes config.json, split.json, ordinary.json and checkpoints/; for devnet metrics.jsonl and
    TensorBoard's events, for devcore learned.json.

    Raises:
      UserError: for a mistake in the settings, the data, the weights or the workdir, or a loss that
        is not finite.
    """
    require_trainable(config)
    workdir.require_writable()
    if workdir.seeds.exists():
        raise UserError(
            f"--workdir={workdir.path}: holds runs of several seeds; go on with --seeds, or choose "
            "another folder"
        )
    with (
        locked_by_rank_zero(workdir.lock()),
        training_checkpoints(config, workdir) as checkpoints,
    ):
        TRAINERS[config.model.detector](config, workdir, checkpoints)


def _train_devnet(config: Config, workdir: Workdir, checkpoints: Checkpoints) -> None:
    done = checkpoints.latest_step() or 0
    if done > config.last_step:
        raise UserError(
            f"config.train.epochs = {config.train.epochs}: the run has already done "
            f"{done // config.train.steps_per_epoch} epochs; use at least that many"
        )
    dataset = open_dataset(config, workdir, grows=config.train.warm_start)
    has_changed = dataset.source.fingerprint != dataset.split.fingerprint
    if done and has_changed and not config.train.warm_start:
        logger.info(
            "new images train with --config.train.warm_start=True and more --config.train.epochs"
        )
    if not dataset.split.train_anomaly:
        raise UserError(
            f"data set {dataset.source.name} has no labelled anomalies, which the deviation network"
            " needs: add some, or train with config.model.detector=devcore"
        )
    if done == config.last_step and dataset.has_grown:
        raise UserError(
            f"config.train.epochs = {config.train.epochs}: data set {dataset.source.name} has "
            "grown, and the run has done these epochs; to go on with the new images, use more"
        )
    if done == config.last_step:  # no state to restore, no image to decode
        _write_settings(config, dataset, workdir)
        return
    state = restore_state(checkpoints, config) if done else first_state(config)
    images = dataset.train_images()
    store = make_store(images, config.dataset, replicated())

    # Before the first step with new images: if killed in the midst, the run resumes with them.
    if dataset.has_grown or not workdir.ordinary.exists():
        _write_ordinary(dataset, workdir)
    _write_settings(config, dataset, workdir)
    n_normal = len(dataset.split.train_unlabelled)
    with TrainingLog(config, workdir, silent=not is_rank_zero()) as log:
        fit(config, store, n_normal, state, checkpoints, log)


def _train_devcore(config: Config, workdir: Workdir, checkpoints: Checkpoints) -> None:
    done = checkpoints.latest_step() or 0
    dataset = open_dataset(config, workdir, grows=True)
    if done and not dataset.has_grown:
        _write_settings(config, dataset, workdir)
        return
    kinds = sorted(set(dataset.labelled_defects))
    learning = config.with_labels(len(dataset.labelled_defects))
    fitted = fit_devcore(
        learning,
        dataset.train_images(),
        len(dataset.split.train_unlabelled),
        [kinds.index(defect) for defect in dataset.labelled_defects],
    )
    if not done:
        _write_settings(config, dataset, workdir)
    # A run whose folder has grown goes on counting.
    step = done + learning.last_step
    _write_ordinary(dataset, workdir)
    variables: dict[str, Any] = {}
    if fitted is not None:
        variables = fitted.variables
        head = fitted.head
        scores = (head.normal_scores.tolist(), head.anomaly_scores.tolist())
        write_learned(workdir, Learned(step, kinds, head.weights, *scores))
    checkpoints.save(step, variables, {"step": np.int32(step)}, settings=config.to_dict())
    if done:
        checkpoints.wait()  # the split changes last: if killed before, the run grows again
        _write_settings(config, dataset, workdir)


# By the name of the detector.
TRAINERS: Mapping[str, Callable[[Config, Workdir, Checkpoints], None]] = {
    "devnet": _train_devnet,
    "devcore": _train_devcore,
}


def require_trainable(config: Config) -> None:
    """Raises `UserError` for settings that cannot train on these devices, whatever the data."""
    preprocessing = Preprocessing.from_settings(config.dataset)
    if config.model.detector == "devcore":
        check_image_size(config.model.backbone, min(preprocessing.size))
        return
    if config.dataset.n_anomaly == 0:
        raise UserError(
            "config.dataset.n_anomaly = 0: the deviation network needs labelled anomalies; give "
            "some, or train with config.model.detector=devcore"
        )
    check_n_scales(config.model.backbone, config.model.n_scales, min(preprocessing.size))
    require_divisible_batch(config)


def training_checkpoints(config: Config, workdir: Workdir) -> Checkpoints:
    """Opens the checkpoints of a workdir for training; the settings say how many are kept."""
    return Checkpoints(
        workdir.checkpoints,
        keep=config.train.keep,
        keep_best=config.train.best_by,
        for_training=True,
    )


def first_state(config: Config) -> TrainState:
    """Returns the state of step 0, with pretrained weights if the settings name some.

    Raises:
      UserError: if the weights cannot be loaded, or belong to another network.
    """
    return initial_state(config, first_variables(config))


def _write_ordinary(dataset: FewShotDataset, workdir: Workdir) -> None:
    """Writes the summary of the normal training images."""
    if is_rank_zero():
        n_normal = len(dataset.split.train_unlabelled)
        write_ordinary(
            workdir, summarise_images(dataset.train_images(), n_normal, dataset.normal_sizes)
        )


def _write_settings(config: Config, dataset: FewShotDataset, workdir: Workdir) -> None:
    if is_rank_zero():
        write_json(workdir.split, dataset.split.to_dict())
        write_json(workdir.config, config.to_dict())
        logger.info("%s", dataset)
        if kinds := dataset.describe_kinds():
            logger.info("kinds of defects: %s", kinds)
