"""Tests of reading the results of finished runs."""

import csv
import json
from pathlib import Path

import pytest

from devnet_jax.config import Config, with_settings
from devnet_jax.sweep.grid import Job
from devnet_jax.sweep.results import read_result, write_results

JOB = Job(with_settings(Config(), {"train.epochs": 2, "train.steps_per_epoch": 3}), "devnet")
CORE = with_settings(Config(), {"model.detector": "devcore", "devcore.head_steps": 4})
COUNTS = {"n_test_normal": 5, "n_test_anomaly": 0, "n_test_duplicates": 1}


def write_run(folder: Path, job: Job = JOB, **metrics: float) -> None:
    workdir = folder / job.name
    (workdir / "eval").mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(job.config.to_dict()))
    (workdir / "eval" / "metrics.json").write_text(json.dumps(metrics))


def test_a_run_that_cannot_measure_auroc_is_finished(tmp_path: Path) -> None:
    write_run(tmp_path, step=6, **COUNTS)
    result = read_result(JOB, tmp_path)
    assert result is not None
    assert (result.image_auroc, result.image_ap, result.image_f1_max) == (None, None, None)
    assert (result.n_test_normal, result.n_test_anomaly, result.n_test_duplicates) == (5, 0, 1)
    write_results([result], tmp_path / "results.csv")
    (row,) = csv.DictReader((tmp_path / "results.csv").read_text().splitlines())
    assert (row["image_auroc"], row["n_test_anomaly"], row["steps"]) == ("", "0", "6")


def test_a_run_at_an_earlier_step_or_without_counts_is_not_finished(tmp_path: Path) -> None:
    write_run(tmp_path / "earlier", step=3, **COUNTS)
    write_run(tmp_path / "damaged", step=6, image_auroc=0.9)
    assert read_result(JOB, tmp_path / "earlier") is None
    assert read_result(JOB, tmp_path / "damaged") is None


@pytest.mark.parametrize(("n_anomaly", "step"), [(10, 4), (0, 1)])
def test_a_run_of_devcore_is_finished_after_the_head_s_steps(
    tmp_path: Path, n_anomaly: int, step: int
) -> None:
    job = Job(with_settings(CORE, {"dataset.n_anomaly": n_anomaly}), "devcore")
    write_run(tmp_path, job, step=step, image_auroc=0.9, **COUNTS)
    result = read_result(job, tmp_path)
    assert result is not None
    assert (result.method, result.steps, result.image_auroc) == ("devcore", step, 0.9)
