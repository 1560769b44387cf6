"""What the finished runs of a sweep have found: one row a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from etils import epath

from devnet_jax.config import changed_settings, describe
from devnet_jax.errors import UserError
from devnet_jax.runtime.io import read_json, write_csv
from devnet_jax.runtime.workdir import Workdir, read_config
from devnet_jax.sweep.grid import Job
from devnet_jax.sweep.scheduler import RECORD

_MEASURES = {
    "image_auroc",
    "image_ap",
    "image_f1_max",
    "n_test_normal",
    "n_test_anomaly",
    "n_test_duplicates",
}


@dataclasses.dataclass(frozen=True)
class Result:
    """The test result of one run.

    Attributes:
      dataset: its name, such as mvtec_ad.
      category: of a data set that is divided; "" otherwise.
      known_class: the class of all labelled anomalies in the hard setting; "" in the general one.
      contamination: share of the training normals that are unlabelled anomalies.
      n_anomaly: labelled anomalies (shots).
      method: a key of `METHODS`, such as devnet or flos.
      variation: other settings that were varied, as "loss.margin=3.0 loss.prior_std=2.0"; "" if
        none.
      seed: of the run.
      image_auroc: area under the ROC curve.
      image_ap: average precision.
      image_f1_max: best F1.
      n_test_normal: normal test images.
      n_test_anomaly: anomalous test images.
      n_test_duplicates: test images that are also among the training images.
      steps: training steps done.
      workdir: the run's folder, relative to the sweep's.
      started: date on which the run was started, or gone on with; "" if unknown.
      device: what it ran on.
      software: with which versions.
    """

    dataset: str
    category: str
    known_class: str
    contamination: float
    n_anomaly: int
    method: str
    variation: str
    seed: int
    image_auroc: float
    image_ap: float
    image_f1_max: float
    n_test_normal: int
    n_test_anomaly: int
    n_test_duplicates: int
    steps: int
    workdir: str
    started: str = ""
    device: str = ""
    software: str = ""


def read_result(job: Job, folder: Path) -> Result | None:
    """The result of a job in the sweep's folder, or None if it is not finished.

    Raises:
      UserError: its folder holds a run with other settings, or a damaged file.
    """
    workdir = Workdir(folder / job.name)
    if not workdir.config.exists():
        return None
    changed = changed_settings(read_config(workdir), job.config)
    if changed:
        raise UserError(
            f"{workdir.path} holds a run with other settings: {describe(changed)}; choose another "
            "--workdir for this sweep"
        )
    metrics = workdir.evaluation / "metrics.json"
    found = read_json(metrics) if metrics.exists() else {}
    last_step = job.config.train.epochs * job.config.train.steps_per_epoch
    if found.get("step") != last_step or not found.keys() >= _MEASURES:
        return None
    record = workdir.path / RECORD
    dataset = job.config.dataset
    return Result(
        dataset=dataset.name,
        category=dataset.category or "",
        known_class=dataset.known_class or "",
        contamination=dataset.contamination,
        n_anomaly=dataset.n_anomaly,
        method=job.method,
        variation=job.variation_name,
        seed=job.config.seed,
        steps=found["step"],
        workdir=job.name,
        **{name: found[name] for name in _MEASURES},
        **(read_json(record) if record.exists() else {}),
    )


def write_results(results: Iterable[Result], file: Path) -> None:
    """Writes one row a result as CSV, whole or not at all."""
    names = [field.name for field in dataclasses.fields(Result)]
    write_csv(epath.Path(file), names, map(dataclasses.astuple, results))
