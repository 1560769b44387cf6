"""One run, from settings to a trained detector in a workdir.

The order matters: whatever can be wrong with the settings, the data, the weights or the
workdir is found before the first file is written.
"""

from __future__ import annotations

import logging

from devnet_jax.checkpoints import Checkpoints
from devnet_jax.config import Config, changed_settings
from devnet_jax.data.few_shot import FewShotDataset
from devnet_jax.data.split import Split
from devnet_jax.errors import UserError
from devnet_jax.initialisation import make_variables
from devnet_jax.models import check_n_scales, load_pretrained
from devnet_jax.training import fit, require_divisible_batch
from devnet_jax.training_log import TrainingLog
from devnet_jax.workdir import Workdir, read_json, write_json

logger = logging.getLogger(__name__)


def train(config: Config, workdir: Workdir) -> None:
    """Trains, or goes on training, the run of a workdir.

    Leaves config.json, split.json, checkpoints/, metrics.jsonl and TensorBoard's events.

    Raises:
      UserError: a mistake in the settings, the data, the weights or the workdir, or a loss that
        is no longer finite.
    """
    check_n_scales(config.model.backbone, config.model.n_scales, config.dataset.image_size)
    require_divisible_batch(config)
    workdir.require_writable()
    dataset = open_dataset(config, workdir)
    with Checkpoints(workdir.checkpoints) as checkpoints:
        if checkpoints.latest_step() is None and config.model.pretrained != "none":
            pretrained = load_pretrained(config.model.pretrained, config.model.backbone)
        else:
            pretrained = None
        variables = make_variables(config, pretrained)
        images = dataset.train_images(config.dataset.image_size)

        write_json(workdir.split, dataset.split.to_dict())
        write_json(workdir.config, config.to_dict())
        n_normal = len(dataset.split.train_normal)
        logger.info(
            "%s: %d normal images and %d labelled anomalies train, %d images test",
            dataset.source.name,
            n_normal,
            len(images) - n_normal,
            len(dataset.split.test),
        )
        with TrainingLog(
            workdir,
            epochs=config.train.epochs,
            steps_per_epoch=config.train.steps_per_epoch,
            batch_size=config.train.batch_size,
        ) as log:
            fit(config, images, n_normal, variables, checkpoints, log)


def open_dataset(config: Config, workdir: Workdir) -> FewShotDataset:
    """The data set of the settings, with the split of the workdir's run or, for a new run, drawn.

    Raises:
      UserError: the workdir holds a run that these settings would not have given.
    """
    if not workdir.config.exists():
        return FewShotDataset.draw(config.dataset, config.seed)
    changed = changed_settings(Config.from_dict(read_json(workdir.config)), config)
    if changed:
        listed = ", ".join(
            f"{name} is {new!r}, was {old!r}" for name, (old, new) in changed.items()
        )
        raise UserError(
            f"--workdir={workdir.path} holds a run with other settings: {listed}; "
            "choose another workdir, or the settings of that run"
        )
    return FewShotDataset.reopen(config.dataset, Split.from_dict(read_json(workdir.split)))
