"""Tests that one threshold is in force, from an evaluation to the service."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from devnet_jax import Detector
from devnet_jax.export.read import ExportedDetector
from tests.conftest import Main
from tests.served import started


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("drawn_run", "change", "kind"),
    [
        ("devcore", "false_alarm_rate=0.3", "calibrated"),
        ("devnet", "threshold=0.75", "given"),
    ],
    indirect=["drawn_run"],
)
def test_what_an_evaluation_was_given_holds_until_the_next_one(
    main: Main, drawn_run: Path, parts: Path, tmp_path: Path, change: str, kind: str
) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    run, file, stain = tmp_path / "run", tmp_path / "part.devnet", str(parts / "test" / "stain")
    shutil.copytree(drawn_run, run)
    original = read(run / "config.json")["evaluation"]
    before = Detector.load(run).threshold
    flag = f"--config.evaluation.{change}"

    # Given to a prediction, it holds for that alone.
    once = main("--mode=predict", f"--workdir={run}", flag, f"--input={stain}",
                f"--output={tmp_path / 'once'}")  # fmt: skip
    assert once.returncode == 0, once.stderr
    assert Detector.load(run).threshold == before

    evaluated = main("--mode=eval", f"--workdir={run}", flag)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "config.json: keeps the settings of this evaluation" in evaluated.stderr
    name, value = change.split("=")
    assert read(run / "config.json")["evaluation"][name] == float(value)
    metrics = read(run / "eval" / "metrics.json")
    threshold = metrics[f"{kind}_threshold"]
    assert before is not None
    assert threshold != before.value
    if kind == "given":
        assert threshold == 0.75
    for row in rows_of(run / "eval" / "scores.csv"):
        assert (float(row["score"]) >= threshold) == (row["is_anomaly"] == "1")
        assert (float(row["severity"]) >= 0.5) == (row["is_anomaly"] == "1")
    page = (run / "report.html").read_text()
    assert f'<span id="value">{threshold}</span>' in page
    assert re.search(rf"{kind} \(in force\)</th>", page)

    result = main("--mode=predict", f"--workdir={run}", f"--input={stain}",
                  f"--output={tmp_path / 'predicted'}")  # fmt: skip
    assert result.returncode == 0, result.stderr
    predicted = rows_of(tmp_path / "predicted" / "predictions.csv")
    assert {float(row["threshold"]) for row in predicted} == {threshold}
    assert predicted == rows_of(tmp_path / "once" / "predictions.csv")

    exported = main("--mode=export", f"--workdir={run}", f"--output={file}")
    assert exported.returncode == 0, exported.stderr
    detector = ExportedDetector.load(file)
    card = detector.card
    assert card["thresholds"][0]["kind"] == kind
    assert card["thresholds"][0]["value"] == threshold
    assert card["metrics"] == metrics
    assert detector.threshold == Detector.load(run).threshold

    back = main("--mode=eval", f"--workdir={run}", f"--config.evaluation.{name}={original[name]}")
    assert back.returncode == 0, back.stderr
    assert Detector.load(run).threshold == before

    picture = next((parts / "test" / "stain").glob("*.png")).read_bytes()
    with started(file) as service:
        _, served = service.ask("GET", "/card")
        status, answer = service.ask("POST", "/score", picture)
    assert status == 200
    assert served["thresholds"] == card["thresholds"]
    assert answer["threshold"] == threshold
    assert answer["is_anomaly"] == (answer["score"] >= threshold) == (answer["severity"] >= 0.5)


def test_an_export_with_other_settings_has_no_results_of_the_former_threshold(
    main: Main, trained_core: Path, tmp_path: Path
) -> None:
    file, flag = tmp_path / "part.devnet", "--config.evaluation.threshold=0.75"
    result = main("--mode=export", f"--workdir={trained_core}", flag, f"--output={file}")
    assert result.returncode == 0, result.stderr
    card = ExportedDetector.load(file).card
    assert card["thresholds"][0]["value"] == 0.75
    metrics = read(trained_core / "eval" / "metrics.json")
    assert card["metrics"]["image_auroc"] == metrics["image_auroc"]
    assert card["metrics"]["calibrated_threshold"] == card["thresholds"][1]["value"]
    assert "kinds" in metrics
    assert "kinds" not in card["metrics"]  # at the threshold in force


def test_a_given_threshold_in_python_and_for_the_service(
    exported_core: Path, trained_core: Path, parts: Path
) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    paths = sorted((parts / "test" / "stain").glob("*.png"))
    run, file = Detector.load(trained_core), ExportedDetector.load(exported_core)
    for detector in (run, file):
        given = detector.with_threshold(0.75)
        assert given.threshold is not None
        assert (given.threshold.kind, given.threshold.value) == ("given", 0.75)
        found = given.score(paths)
        assert found.is_anomaly is not None
        assert found.is_anomaly.tolist() == (found.scores >= 0.75).tolist()
        assert given.with_threshold(-1.0).threshold.value == -1  # type: ignore[union-attr]
        assert detector.threshold != given.threshold
    assert "kinds" in file.card["metrics"]
    served = file.with_threshold(0.75).card
    assert "kinds" not in served["metrics"]  # at the former threshold in force
    assert served["thresholds"][0]["value"] == 0.75
    with started(exported_core, "--threshold=0.75") as service:
        status, answer = service.ask("POST", "/score", paths[0].read_bytes())
    assert (status, answer["threshold"]) == (200, 0.75)
