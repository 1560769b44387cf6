"""Tests of evaluating with test images of one kind, or none: a run whose split lost the others."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from devnet_jax import Detector
from devnet_jax.export.read import ExportedDetector
from devnet_jax.export.write import export_detector
from devnet_jax.runtime.workdir import Workdir
from tests.conftest import Main

Evaluated = tuple[Path, dict[str, Any], list[float], str]


@pytest.fixture
def evaluate(main: Main, trained: Path, tmp_path: Path) -> Callable[..., Evaluated]:
    """Evaluates the finished run again, with only those of its test images that `keep` accepts.

    Returns its workdir, the content of metrics.json, the scores, and what the command printed.
    """

    def evaluate(keep: Callable[[str], bool]) -> Evaluated:
        copy = tmp_path / "run"
        shutil.copytree(trained, copy)
        shutil.rmtree(copy / "eval")
        shutil.rmtree(copy / "tensorboard")
        (copy / "report.html").unlink()
        split = json.loads((copy / "split.json").read_text())
        split["test"] = [path for path in split["test"] if keep(path)]
        (copy / "split.json").write_text(json.dumps(split))
        result = main("--mode=eval", f"--workdir={copy}")
        assert result.returncode == 0, result.stderr
        text = (copy / "eval" / "metrics.json").read_text()
        assert "NaN" not in text
        with (copy / "eval" / "scores.csv").open() as file:
            scores = [float(row["score"]) for row in csv.DictReader(file)]
        return copy, json.loads(text), scores, result.stdout

    return evaluate


COMMON = {
    "step",
    "n_test_normal",
    "n_test_anomaly",
    "n_test_duplicates",
    "n_calibration",
    "prior_threshold",
    "prior_promised_false_alarm_rate",
}


def test_without_anomalies_only_false_alarms_are_measured(
    evaluate: Callable[..., Evaluated],
) -> None:
    workdir, metrics, scores, printed = evaluate(lambda path: path.startswith("test/good"))
    assert metrics.keys() == COMMON | {"prior_false_alarm_rate"}
    assert (metrics["n_test_normal"], metrics["n_test_anomaly"]) == (5, 0)
    alarms = np.array(scores) >= metrics["prior_threshold"]
    assert metrics["prior_false_alarm_rate"] == pytest.approx(alarms.mean())
    why = "no anomalous test image: AUROC and miss rate cannot be measured"
    assert re.search(rf"^  not measured +{why}$", printed, re.MULTILINE)
    assert "missed" not in printed
    assert f"{alarms.mean():.1%} false alarms (5% if scores follow the prior)" in printed
    assert f"{why[0].upper()}{why[1:]}." in (workdir / "report.html").read_text()
    told = EventAccumulator(str(workdir / "tensorboard" / "eval"), {"images": 0}).Reload()
    assert set(told.Tags()["scalars"]) == {f"eval/{name}" for name in metrics if name != "step"}


def test_without_normal_images_only_misses_are_measured(
    evaluate: Callable[..., Evaluated],
) -> None:
    workdir, metrics, scores, printed = evaluate(lambda path: not path.startswith("test/good"))
    assert metrics.keys() == COMMON | {"prior_miss_rate"}
    assert (metrics["n_test_normal"], metrics["n_test_anomaly"]) == (0, 5)
    missed = np.array(scores) < metrics["prior_threshold"]
    assert metrics["prior_miss_rate"] == pytest.approx(missed.mean())
    why = "no normal test image: AUROC and false-alarm rate cannot be measured"
    assert re.search(rf"^  not measured +{why}$", printed, re.MULTILINE)
    assert f"false alarms 5% if scores follow the prior, {missed.mean():.1%} missed" in printed
    assert f"{why[0].upper()}{why[1:]}." in (workdir / "report.html").read_text()


def test_without_test_images_thresholds_remain(
    main: Main, evaluate: Callable[..., Evaluated], tmp_path: Path
) -> None:
    workdir, metrics, scores, printed = evaluate(lambda path: False)
    assert metrics.keys() == COMMON
    assert (metrics["n_test_normal"], metrics["n_test_anomaly"], scores) == (0, 0, [])
    assert (workdir / "eval" / "scores.csv").read_text() == "path,label,defect,score,reason\n"
    why = "no test image: AUROC, false-alarm rate and miss rate cannot be measured"
    assert re.search(rf"^  not measured +{why}$", printed, re.MULTILINE)
    assert re.search("^  report +not written: there is no test image$", printed, re.MULTILINE)
    assert not (workdir / "report.html").exists()

    detector = Detector.load(workdir)
    assert isinstance(detector, Detector)
    export_detector(detector, Workdir(workdir), tmp_path / "model.devnet")
    card = ExportedDetector.load(tmp_path / "model.devnet").card
    assert (card["metrics"], card["tested_classes"]) == (metrics, {})

    result = main("--mode=explain", f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
