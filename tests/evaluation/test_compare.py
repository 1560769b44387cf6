"""Tests of comparing two detectors on the same pictures."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from devnet_jax.data.example import Example
from devnet_jax.evaluation.compare import changes_of_side, measure_difference
from devnet_jax.inference.thresholds import Threshold
from devnet_jax.report.comparison import CHANGES, Side
from tests.conftest import Main, make_parts, refused

Rows = list[dict[str, str]]


def read(folder: Path) -> tuple[dict[str, Any], Rows]:
    with (folder / "compare.csv").open() as file:
        return json.loads((folder / "compare.json").read_text()), list(csv.DictReader(file))


def scores_of(run: Path) -> dict[str, float]:
    with (run / "eval" / "scores.csv").open() as file:
        return {row["path"]: float(row["score"]) for row in csv.DictReader(file)}


def test_two_runs_on_the_pictures_that_both_have_tested(
    main: Main, trained: Path, trained_core: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = ("--mode=compare", f"--workdir={trained_core}", f"--against={trained}")
    result = main(*flags, f"--output={out}")
    assert result.returncode == 0, result.stderr
    found, rows = read(out)
    a, b = scores_of(trained_core), scores_of(trained)
    assert {row["path"] for row in rows} == a.keys() & b.keys()
    for row in rows:
        assert float(row["score_a"]) == pytest.approx(a[row["path"]], abs=1e-4)
        assert float(row["score_b"]) == pytest.approx(b[row["path"]], abs=1e-4)
    labels = [int(row["label"]) for row in rows]
    for side in "ab":
        auroc = roc_auc_score(labels, [float(row[f"score_{side}"]) for row in rows])
        assert found[f"auroc_{side}"] == pytest.approx(auroc)
    assert found["auroc_difference"] == pytest.approx(found["auroc_a"] - found["auroc_b"])
    alarms = np.array([[int(row["alarm_a"]), int(row["alarm_b"])] for row in rows])
    assert found["n_changed"] == int((alarms[:, 0] != alarms[:, 1]).sum())
    page = (out / "compare.html").read_text()
    assert page.count('<li class="card">') == found["n_changed"]
    assert "<script" not in page
    assert len(result.stdout.strip().splitlines()) <= 6


def test_a_detector_and_itself(main: Main, trained_core: Path, tmp_path: Path) -> None:
    flags = ("--mode=compare", f"--workdir={trained_core}", f"--against={trained_core}")
    result = main(*flags, f"--output={tmp_path / 'out'}")
    assert result.returncode == 0, result.stderr
    found, _ = read(tmp_path / "out")
    ends = (found["auroc_difference_low"], found["auroc_difference_high"])
    assert (found["auroc_difference"], *ends) == (0, 0, 0)
    assert (found["auroc_p_value"], found["n_changed"], found["changed_p_value"]) == (1, 0, 1)
    assert (
        "Both detectors rank these pictures equally"
        in (tmp_path / "out" / "compare.html").read_text()
    )


def test_a_run_and_a_file_on_labelled_pictures(
    main: Main, trained_core: Path, exported_core: Path, parts: Path, tmp_path: Path
) -> None:
    """Pictures that the run has learned from are left out; the change of a setting holds for B."""
    flags = ("--mode=compare", f"--against={exported_core}", f"--output={tmp_path / 'out'}")
    result = main(*flags, f"--workdir={trained_core}", f"--input={parts}")
    assert result.returncode == 0, result.stderr
    found, rows = read(tmp_path / "out")
    assert {row["path"] for row in rows} == scores_of(trained_core).keys()
    assert found["n_left_out"] == 12  # 10 train, 2 calibrate
    assert found["auroc_difference"] == pytest.approx(0, abs=1e-9)
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "12 pictures are left out" in page
    assert "not known which pictures" in page


def test_changed_settings_hold_for_both_runs(
    main: Main, trained_core: Path, tmp_path: Path
) -> None:
    flags = ("--mode=compare", f"--workdir={trained_core}", f"--against={trained_core}")
    change = "--config.evaluation.threshold=0.7"
    result = main(*flags, change, f"--output={tmp_path / 'out'}")
    assert result.returncode == 0, result.stderr
    found, _ = read(tmp_path / "out")
    assert found["threshold_a"] == found["threshold_b"] == 0.7


def test_requests_that_cannot_be_compared(
    main: Main, trained_core: Path, exported_core: Path, parts: Path, tmp_path: Path
) -> None:
    flags = ("--mode=compare", f"--workdir={trained_core}", f"--output={tmp_path / 'out'}")
    refused(main(*flags), "--against is missing")
    refused(main(*flags[:2], f"--against={trained_core}"), "--output is missing")
    against_file = (*flags, f"--against={exported_core}")
    refused(main(*against_file), "does not say what it has tested", "--input")
    refused(main(*flags, f"--against={tmp_path / 'no'}"), f"--against={tmp_path / 'no'}", "no run")
    train_alone = tmp_path / "seen"
    shutil.copytree(parts / "train", train_alone / "train")
    refused(main(*against_file, f"--input={train_alone}"), "none of the 9 labelled pictures is new")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_runs_of_different_data_sets(
    main: Main, trained_core: Path, tiny_core: tuple[str, ...], tmp_path: Path
) -> None:
    folder = make_parts(tmp_path / "parts")
    for file in (folder / "test").rglob("*.png"):
        file.rename(file.with_name(f"other_{file.name}"))
    other = f"--workdir={tmp_path / 'run'}"
    where = f"--config.dataset.manual_dir={folder}"
    assert main(*tiny_core, where, other).returncode == 0
    flags = ("--mode=compare", other, f"--against={trained_core}", f"--output={tmp_path / 'out'}")
    refused(main(*flags), "have tested no picture in common")


def examples_of(labels: list[int]) -> list[Example]:
    return [
        Example(f"{i}.png", "test", label, "dent" if label else "good", "")
        for i, label in enumerate(labels)
    ]


def test_sides_by_hand() -> None:
    """A alarms at 1, B at 10: three anomalies and a good picture are right with A alone."""
    labels = [1, 1, 1, 1, 0, 0, 0, 1]
    alarms_a = [1, 1, 1, 0, 0, 1, 0, 1]
    alarms_b = [0, 0, 0, 1, 1, 1, 0, 1]
    sides = (
        Side("a", np.array(alarms_a, float), Threshold("prior", 1, 0.05)),
        Side("b", 10 * np.array(alarms_b, float), Threshold("prior", 10, 0.05)),
    )
    names = ["missed_to_found"] * 3 + ["found_to_missed", "false_alarm_to_passed", "", "", ""]
    assert changes_of_side(np.array(labels), sides) == names
    found = measure_difference(examples_of(labels), sides, names)
    counts = dict.fromkeys(CHANGES, 0)
    counts |= {"missed_to_found": 3, "found_to_missed": 1, "false_alarm_to_passed": 1}
    assert found["changed"] == counts
    assert (found["n_right_a_alone"], found["n_right_b_alone"]) == (4, 1)
    assert found["changed_p_value"] == pytest.approx(12 / 32)  # 2·(1 + 5)/2⁵
    assert (found["miss_rate_a"], found["miss_rate_b"]) == pytest.approx((0.2, 0.6))
    assert (found["false_alarm_rate_a"], found["false_alarm_rate_b"]) == pytest.approx(
        (1 / 3, 2 / 3)
    )
    assert found["kinds"].keys() == {"dent"}


def test_without_thresholds_or_normal_pictures_the_rest_remains() -> None:
    scores = np.array([1.0, 2.0])
    sides = Side("a", scores, None), Side("b", scores, Threshold("prior", 1, 0.05))
    found = measure_difference(examples_of([1, 1]), sides, ["", ""])
    assert found == {
        "a": "a",
        "b": "b",
        "n_normal": 0,
        "n_anomaly": 2,
        "threshold_b": 1,
        "n_missed_b": 0,
        "miss_rate_b": 0,
        "miss_rate_low_b": 0,
        "miss_rate_high_b": pytest.approx(0.657620, abs=1e-5),  # Wilson: z² / (2 + z²)
    }
