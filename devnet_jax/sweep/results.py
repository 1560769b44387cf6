"""Results of the finished runs of a sweep, and the file results.csv."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from etils import epath

from devnet_jax.config import changed_settings, describe_changes
from devnet_jax.errors import UserError
from devnet_jax.runtime.io import read_json, write_csv
from devnet_jax.runtime.workdir import Workdir, read_config
from devnet_jax.sweep.grid import Job
from devnet_jax.sweep.scheduler import RECORD

_COUNTS = ("n_test_normal", "n_test_anomaly", "n_test_duplicates")


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The test result of one run, a row of results.csv.

    Attributes:
      dataset: name of the data set, such as mvtec_ad.
      category: category of the data set; "" if it has none.
      known_class: class of all labelled anomalies in the hard setting; "" in the general setting.
      contamination: share of unlabelled anomalies among the normal training images.
      n_anomaly: number of labelled anomalies (shots).
      method: key of `METHODS`, such as devnet or flos.
      variation: other settings that vary, such as "loss.margin=3.0 loss.prior_std=2.0", or "".
      seed: seed of the run.
      image_auroc: area under the ROC curve; `None` unless both kinds of images are tested.
      image_ap: average precision, or `None` likewise.
      image_f1_max: best F1, or `None` likewise.
      n_test_normal: number of normal test images.
      n_test_anomaly: number of anomalous test images.
      n_test_duplicates: number of test images that are also among the training images.
      steps: number of training steps done.
      workdir: folder of the run, relative to the folder of the sweep.
      started: date on which the run was started or last resumed; "" if unknown.
      device: devices of the run; "" if unknown.
      software: versions of the software; "" if unknown.
    """

    dataset: str
    category: str
    known_class: str
    contamination: float
    n_anomaly: int
    method: str
    variation: str
    seed: int
    image_auroc: float | None
    image_ap: float | None
    image_f1_max: float | None
    n_test_normal: int
    n_test_anomaly: int
    n_test_duplicates: int
    steps: int
    workdir: str
    started: str = ""
    device: str = ""
    software: str = ""


def read_result(job: Job, folder: Path) -> RunResult | None:
    """Reads the result of a job; None if the job is not finished.

    Args:
      job: job of the sweep.
      folder: folder of the sweep.

    Raises:
      UserError: if the job's folder contains a run with other settings, or a damaged file.
    """
    workdir = Workdir(folder / job.name)
    if not workdir.config.exists():
        return None
    changed = changed_settings(read_config(workdir), job.config)
    if changed:
        raise UserError(
            f"{workdir.path} contains a run with other settings: {describe_changes(changed)}; "
            "choose another --workdir for this sweep"
        )
    metrics = workdir.evaluation / "metrics.json"
    measured = read_json(metrics) if metrics.exists() else {}
    if measured.get("step") != job.config.last_step or not measured.keys() >= {*_COUNTS}:
        return None
    record = workdir.path / RECORD
    dataset = job.config.dataset
    return RunResult(
        dataset=dataset.name,
        category=dataset.category or "",
        known_class=dataset.known_class or "",
        contamination=dataset.contamination,
        n_anomaly=job.config.n_labelled,
        method=job.method,
        variation=job.variation_name,
        seed=job.config.seed,
        steps=measured["step"],
        workdir=job.name,
        image_auroc=measured.get("image_auroc"),
        image_ap=measured.get("image_ap"),
        image_f1_max=measured.get("image_f1_max"),
        **{name: measured[name] for name in _COUNTS},
        **(read_json(record) if record.exists() else {}),
    )


def write_results(results: Iterable[RunResult], file: Path) -> None:
    """Writes results.csv atomically, one row per run."""
    names = [field.name for field in dataclasses.fields(RunResult)]
    write_csv(epath.Path(file), names, map(dataclasses.astuple, results))
