"""Tests `--seeds`: the runs, their mean and spread, and what a killed command goes on with."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from devnet_jax import Detector
from devnet_jax.config import Config
from devnet_jax.errors import UserError
from devnet_jax.runtime.workdir import Workdir
from devnet_jax.sweep.seeds import SeedRun, Seeds
from tests import fork_server
from tests.conftest import Main, environment, refused

SEEDS = (42, 43, 44)


@pytest.fixture(scope="module")
def command(tiny_core: tuple[str, ...]) -> tuple[str, ...]:
    return (*tiny_core, "--config.evaluation.explanation=none", f"--seeds={len(SEEDS)}")


@pytest.fixture(scope="module")
def workdir(main: Main, command: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of three finished runs; read-only; the file `stdout` holds what was printed."""
    workdir = tmp_path_factory.mktemp("seeds")
    result = main(*command, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    (workdir / "stdout").write_text(result.stdout)
    return workdir


def read(workdir: Path) -> Any:
    return json.loads((workdir / "seeds.json").read_text())


def auroc(folder: Path) -> float:
    """Returns the AUROC of a run's scores.csv by scikit-learn."""
    with (folder / "eval/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    labels = [int(row["label"]) for row in rows]
    return float(roc_auc_score(labels, [float(row["score"]) for row in rows]))


def test_mean_and_spread_are_those_of_the_runs(workdir: Path) -> None:
    assert not (workdir / "config.json").exists()  # it is not a run itself
    folders = [workdir / f"seed-{seed}" for seed in SEEDS]
    for seed, folder in zip(SEEDS, folders, strict=True):
        assert json.loads((folder / "config.json").read_text())["seed"] == seed
        assert (folder / "report.html").exists()
    content = read(workdir)
    assert content["seeds"] == [run["seed"] for run in content["runs"]] == [*SEEDS]
    aurocs = [auroc(folder) for folder in folders]
    measured = [json.loads((folder / "eval/metrics.json").read_text()) for folder in folders]
    values = {
        "image_auroc": aurocs,
        "image_ap": [results["image_ap"] for results in measured],
        # The threshold in force: two good images are held out, which allow the nearest rate, 1/3.
        "false_alarm_rate": [results["calibrated_false_alarm_rate"] for results in measured],
        "miss_rate": [results["calibrated_miss_rate"] for results in measured],
    }
    assert content["measures"].keys() == values.keys()
    for name, summary in content["measures"].items():
        assert summary["mean"] == pytest.approx(np.mean(values[name]))
        assert summary["std"] == pytest.approx(np.std(values[name], ddof=1))
        assert summary["n_seeds"] == 3
    assert "the labelled anomalies" in content["varied"]


def test_prints_and_writes_a_table(workdir: Path) -> None:
    printed, table = (workdir / "stdout").read_text(), (workdir / "seeds.md").read_text()
    content = read(workdir)
    summary = content["measures"]["image_auroc"]
    mean = f"{summary['mean']:.3f} ± {summary['std']:.3f}"
    rate = content["measures"]["false_alarm_rate"]
    rates = f"{rate['mean']:.1%} ± {rate['std']:.1%}"
    for text in (mean, rates, f"{workdir}/{content['median_run']}: ", "the calibrated threshold"):
        assert text in printed
        assert text in table
    for seed in SEEDS:
        assert f"| {seed} | {auroc(workdir / f'seed-{seed}'):.3f} |" in table


def test_killed_it_goes_on_with_the_rest(
    main: Main, command: tuple[str, ...], workdir: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    process = fork_server.start(
        ["-m", "devnet_jax.main", *command, f"--workdir={killed}"], environment()
    )
    while not (killed / "seed-43" / "config.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert [run["seed"] for run in read(killed)["runs"]] == [42]
    # A folder without --seeds would hold a run beside those of the seeds.
    alone = [flag for flag in command if not flag.startswith("--seeds")]
    refused(main(*alone, f"--workdir={killed}"), "several seeds", "go on with --seeds")

    def written() -> dict[Path, int]:
        done = [*(killed / "seed-42").rglob("checksums.json"), killed / "seed-42/report.html"]
        return {file: file.stat().st_mtime_ns for file in done}

    before = written()
    result = main(*command, f"--workdir={killed}")
    assert result.returncode == 0, result.stderr
    assert len(before) > 1
    assert written() == before  # neither trained nor evaluated again
    assert read(killed) == read(workdir)


def test_refusals(
    main: Main, command: tuple[str, ...], workdir: Path, trained_core: Path, parts: Path
) -> None:
    single = main(*command, f"--workdir={trained_core}")
    refused(single, f"--workdir={trained_core}: holds a single run; choose another folder")
    several = main("--mode=export", f"--workdir={workdir}", "--output=model.devnet")
    refused(several, "holds runs of several seeds; give one of them", "seed-")
    with pytest.raises(UserError, match="holds runs of several seeds"):
        Detector.train(parts, workdir)
    mode = main("--mode=eval", f"--workdir={workdir}/seed-42", "--seeds=3")
    refused(mode, "--seeds goes with --mode=train, not with --mode=eval")
    refused(main(*command, f"--workdir={workdir}", "--seeds=1"), "seeds")


def run(seed: int, **results: float) -> SeedRun:
    return SeedRun(seed, f"seed-{seed}", results, None)


def test_seeds_without_a_measure_do_not_count(tmp_path: Path) -> None:
    runs = [
        run(
            1,
            image_auroc=0.9,
            calibrated_threshold=2.0,
            calibrated_miss_rate=0.5,
            calibrated_n_missed=5,
            n_test_anomaly=10,
        ),
        run(2, prior_threshold=1.6, prior_miss_rate=0.1, prior_n_missed=1, n_test_anomaly=10),
        run(3, image_auroc=0.5, calibrated_threshold=2.5, prior_threshold=1.6),
    ]
    seeds = Seeds(Config(), Workdir(tmp_path), [1, 2, 3, 4], runs)
    assert seeds.summaries["image_auroc"] == pytest.approx((0.7, 0.08**0.5, 2))
    assert seeds.summaries["miss_rate"] == pytest.approx((0.3, 0.08**0.5, 2))
    assert "0.700 ± 0.283 (2 of 3 seeds)" in str(seeds)
    assert seeds.thresholds == (
        "the calibrated threshold (2 of 3 runs) or the prior's threshold (1 of 3 runs)"
    )
    assert seeds.typical is runs[2]  # the lower of the two in the middle
    assert "3 of 4 seeds so far" in seeds.to_markdown()
    assert "| 1 | 0.900 | 50.0% (5 of 10) |" in seeds.to_markdown()
    ties = [run(seed, image_auroc=1.0, image_ap=ap) for seed, ap in enumerate((0.7, 0.9, 0.8))]
    assert Seeds(Config(), Workdir(tmp_path), [0, 1, 2], ties).typical is ties[2]
    nothing = Seeds(Config(), Workdir(tmp_path), [2], [run(2, n_test_normal=5)])
    assert "not measured" in str(nothing)
    assert nothing.typical is None
