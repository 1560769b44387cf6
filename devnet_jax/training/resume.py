"""Opening the data set of a run: with a new split, or the one saved in the workdir."""

from __future__ import annotations

import json

from devnet_jax.config import Config, changed_settings, describe_changes
from devnet_jax.data.few_shot import FewShotDataset
from devnet_jax.data.split import Split
from devnet_jax.distributed.cluster import require_agreement
from devnet_jax.errors import UserError
from devnet_jax.runtime.io import read_json
from devnet_jax.runtime.workdir import Workdir, read_config


def open_dataset(config: Config, workdir: Workdir, *, grows: bool = False) -> FewShotDataset:
    """Opens the data set with the split of the workdir's run, or draws one for a new run.

    Args:
      config: all settings.
      workdir: workdir of the run.
      grows: True to add images that are new since the run began, and to accept a larger
        `dataset.n_anomaly`.

    Raises:
      UserError: if the workdir holds a run with other settings, or another process of the run has
        other settings or other images.
    """
    dataset = _open(config, workdir, grows)
    # Paths and modification times may differ between hosts.
    where = {"manual_dir": None, "labels": None, "data_dir": None}
    settings = {**config.to_dict(), "dataset": {**config.to_dict()["dataset"], **where}}
    require_agreement("the settings", json.dumps(settings))
    split = {**dataset.split.to_dict(), "fingerprint": None}
    require_agreement("the images", json.dumps(split))
    return dataset


def _open(config: Config, workdir: Workdir, grows: bool) -> FewShotDataset:
    if not workdir.config.exists():
        if workdir.checkpoints.exists():
            raise UserError(
                f"--workdir={workdir.path} holds checkpoints but no config.json: restore that "
                "file, or choose another workdir"
            )
        return FewShotDataset.draw(config.dataset, config.seed)
    changed = changed_settings(read_config(workdir), config)
    if grows:
        changed.pop("config.dataset.n_anomaly", None)
    if changed:
        raise UserError(
            f"--workdir={workdir.path} holds a run with other settings: "
            f"{describe_changes(changed)}; choose another workdir, or the settings of that run"
        )
    split = Split.from_dict(read_json(workdir.split))
    open_with = FewShotDataset.regrow if grows else FewShotDataset.reopen
    return open_with(config.dataset, split)
