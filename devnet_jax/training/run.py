"""One run, from settings to a trained detector in a workdir.

The order matters: whatever can be wrong with the settings, the data, the weights or the
workdir is found before the first file is written.
"""

from __future__ import annotations

import logging

from devnet_jax.checkpoints.checkpoints import Checkpoints
from devnet_jax.config import Config
from devnet_jax.data.few_shot import FewShotDataset
from devnet_jax.data.store import ImageStore, make_store
from devnet_jax.distributed.cluster import is_rank_zero, locked_by_rank_zero
from devnet_jax.distributed.sharding import replicated
from devnet_jax.errors import UserError
from devnet_jax.models import check_n_scales, load_pretrained
from devnet_jax.models.build import make_variables
from devnet_jax.runtime.io import write_json
from devnet_jax.runtime.workdir import Workdir
from devnet_jax.training.log import TrainingLog
from devnet_jax.training.loop import fit, require_divisible_batch, restore_state
from devnet_jax.training.resume import open_dataset
from devnet_jax.training.step import TrainState, initial_state

logger = logging.getLogger(__name__)


def train(config: Config, workdir: Workdir) -> None:
    """Trains, or goes on training, the run of a workdir.

    Leaves config.json, split.json, checkpoints/, metrics.jsonl and TensorBoard's events.

    Raises:
      UserError: a mistake in the settings, the data, the weights or the workdir, or a loss that
        is no longer finite.
    """
    require_trainable(config)
    workdir.require_writable()
    with locked_by_rank_zero(workdir.lock()):
        _train(config, workdir)


def _train(config: Config, workdir: Workdir) -> None:
    with training_checkpoints(config, workdir) as checkpoints:
        done = checkpoints.latest_step() or 0
        last_step = config.train.epochs * config.train.steps_per_epoch
        if done > last_step:
            raise UserError(
                f"config.train.epochs = {config.train.epochs}: the run has done "
                f"{done // config.train.steps_per_epoch} already; ask for no fewer"
            )
        dataset = open_dataset(config, workdir)
        if done == last_step:  # nothing to restore, no image to decode
            _remember(config, dataset, workdir)
            return
        state = restore_state(checkpoints, config) if done else first_state(config)
        images = dataset.train_images(config.dataset.image_size)
        store = make_store(images, config.dataset, replicated())

        _remember(config, dataset, workdir)
        n_normal = len(dataset.split.train_unlabelled)
        fit_logged(config, workdir, store, n_normal, state, checkpoints)


def require_trainable(config: Config) -> None:
    """Raises `UserError` for settings that no data can train with, on these devices."""
    check_n_scales(config.model.backbone, config.model.n_scales, config.dataset.image_size)
    require_divisible_batch(config)


def training_checkpoints(config: Config, workdir: Workdir) -> Checkpoints:
    """The checkpoints of a workdir, of which a run keeps as many as its settings say."""
    return Checkpoints(
        workdir.checkpoints,
        keep=config.train.keep,
        keep_best=config.train.best_by,
        for_training=True,
    )


def first_state(config: Config) -> TrainState:
    """The state of step 0, its weights fetched or read where the settings name some.

    Raises:
      UserError: they cannot be had, or are of another network.
    """
    pretrained = None
    if config.model.pretrained != "none":
        pretrained = load_pretrained(config.model.pretrained, config.model.backbone)
    return initial_state(config, make_variables(config, pretrained))


def fit_logged(
    config: Config,
    workdir: Workdir,
    store: ImageStore,
    n_normal: int,
    state: TrainState,
    checkpoints: Checkpoints,
) -> None:
    """`fit`, with the log that a workdir keeps."""
    with TrainingLog(
        workdir,
        epochs=config.train.epochs,
        steps_per_epoch=config.train.steps_per_epoch,
        batch_size=config.train.batch_size,
        silent=not is_rank_zero(),
    ) as log:
        fit(config, store, n_normal, state, checkpoints, log)


def _remember(config: Config, dataset: FewShotDataset, workdir: Workdir) -> None:
    if is_rank_zero():
        write_json(workdir.split, dataset.split.to_dict())
        write_json(workdir.config, config.to_dict())
        logger.info("%s", dataset)
