"""Tests of --mode=recalibrate, of a run and its exported file, and of the warning of a drift."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from PIL import Image
from scipy import stats

from devnet_jax import Detector
from devnet_jax.evaluation.recalibrate import recalibrate_file
from devnet_jax.export.read import ExportedDetector
from devnet_jax.export.write import export_detector, rewrite_card
from devnet_jax.inference.thresholds import Threshold
from devnet_jax.prediction import predict
from devnet_jax.report.digits import format_rate, format_score
from devnet_jax.runtime.workdir import Workdir
from tests.conftest import Main, tiny_flags
from tests.drawn import SIZE, noise, save_good

N_NEW = 40


@pytest.fixture
def run(drawn_run: Path, tmp_path: Path) -> Path:
    """A copy of a run that a test may change."""
    return Path(shutil.copytree(drawn_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def good_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_good(tmp_path_factory.mktemp("new"), range(1000, 1000 + N_NEW))


def read(file: Path) -> dict:
    return json.loads(file.read_text())


def row(text: str, name: str) -> str:
    """Returns a row of a summary without its name."""
    (line,) = [line for line in map(str.strip, text.splitlines()) if line.startswith(name)]
    return line.removeprefix(name).strip()


def test_a_run_and_its_file_get_the_same_threshold_and_eval_keeps_it(
    main: Main, run: Path, good_pictures: Path, drawn_parts: Path, tmp_path: Path
) -> None:
    before = Detector.restore(run)
    file, new_file = tmp_path / "old.devnet", tmp_path / "new.devnet"
    export_detector(before, Workdir(run), file)
    content = file.read_bytes()
    paths = sorted(good_pictures.iterdir())
    scores = np.sort(before.score(paths).scores)

    mixed = Path(shutil.copytree(good_pictures, tmp_path / "mixed"))
    Image.fromarray(noise(SIZE, SIZE, 3)).save(mixed / "noise.png")
    shutil.copy(sorted((mixed).glob("0*.png"))[0], mixed / "zz_again.png")
    trained = read(run / "split.json")["train_normal"][0]
    shutil.copy(drawn_parts / trained, mixed / "trained.png")
    (mixed / "broken.png").write_bytes(b"\x89PNG\r\nand no more")

    result = main("--mode=recalibrate", f"--workdir={run}", f"--input={mixed}")
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "left out: 4 pictures" in line]
    for name, reason in (
        ("noise.png", "(noise)"), ("zz_again.png", "(a copy of another one)"),
        ("trained.png", "(it is a training picture)"), ("broken.png", "damaged"),
    ):  # fmt: skip
        assert name in line
        assert reason in line
    after = Detector.restore(run)
    threshold = after.threshold
    assert threshold is not None
    assert threshold.n_calibration == N_NEW
    # The second largest score, as 5 % of 41 is 2.05: one of the pictures raises an alarm.
    assert scores[-2] < threshold.value <= scores[-1]
    assert np.sum(before.score(paths).scores >= threshold.value) == 1
    assert read(run / "calibration-before.json")["scores"] == pytest.approx(
        before.calibration_scores.tolist()
    )
    source = read(run / "calibration.json")["source"]
    assert (source["input"], source["n"]) == (str(mixed), N_NEW)

    assert before.threshold is not None
    assert row(result.stdout, "good pictures") == f"{N_NEW}; left out: 4"
    assert row(result.stdout, "threshold before") == (
        f"{format_score(before.threshold.value)} (calibrated)"
    )
    assert row(result.stdout, "threshold now").startswith(
        f"{format_score(threshold.value)}: at most 5% of good pictures"
    )
    assert row(result.stdout, "pictures needed").startswith("19 for")
    highest = paths[int(np.argmax(before.score(paths).scores))].name
    assert row(result.stdout, "highest scores").startswith(
        f"'{mixed / highest}' {format_score(scores[-1])}"
    )
    n_alarms = int(np.sum(scores >= before.threshold.value))
    assert row(result.stdout, "alarms before").startswith(str(format_rate(n_alarms, N_NEW)))
    test = stats.ks_2samp(before.calibration_scores, scores)
    moved = row(result.stdout, "scores of good pictures")
    assert f"distance {test.statistic:.2f}, p = {test.pvalue:.2g}" in moved
    assert f"median {np.median(before.calibration_scores):.3g} at calibration (30" in moved

    copied = main(
        "--mode=recalibrate", f"--workdir={file}", f"--input={good_pictures}",
        f"--output={new_file}",
    )  # fmt: skip
    assert copied.returncode == 0, copied.stderr
    assert file.read_bytes() == content
    exported = ExportedDetector.load(new_file)
    assert exported.threshold is not None
    assert exported.threshold.value == pytest.approx(threshold.value, rel=1e-4)
    assert exported.threshold.n_calibration == N_NEW
    assert len(exported.thresholds) == len(before.thresholds)
    np.testing.assert_allclose(np.sort(exported.good_scores), scores, rtol=1e-4, atol=1e-5)
    assert exported.card["recalibration"]["n"] == N_NEW
    assert exported.card["recalibration"]["input"] == good_pictures.name
    assert str(good_pictures.parent) not in json.dumps(exported.card)
    assert exported.card["metrics"]["image_auroc"] >= 0
    assert "calibrated_threshold" not in exported.card["metrics"]
    assert exported.card["metrics"]["prior_threshold"] == exported.thresholds[1].value
    old, new = (ExportedDetector.load(f).score(paths[:3]).scores for f in (file, new_file))
    np.testing.assert_array_equal(old, new)

    kept = main("--mode=eval", f"--workdir={run}", "--verbosity=0")
    assert kept.returncode == 0, kept.stderr
    assert f"kept: threshold of {N_NEW} pictures of {mixed}" in kept.stderr
    assert read(run / "eval" / "metrics.json")["calibrated_threshold"] == threshold.value
    assert read(run / "eval" / "metrics.json")["n_calibration"] == N_NEW
    assert Detector.restore(run).threshold == threshold


def test_a_recalibration_of_another_step_is_dropped(
    main: Main, run: Path, good_pictures: Path
) -> None:
    original = read(run / "calibration.json")
    assert main(
        "--mode=recalibrate", f"--workdir={run}", f"--input={good_pictures}"
    ).returncode == 0  # fmt: skip
    changed = read(run / "calibration.json")
    changed["step"] -= 1  # as if the run had trained on
    (run / "calibration.json").write_text(json.dumps(changed))
    result = main("--mode=eval", f"--workdir={run}")
    assert result.returncode == 0, result.stderr
    assert "dropped, because it is of step" in result.stderr
    assert read(run / "calibration.json") == original


@pytest.fixture(scope="module")
def exported(drawn_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("exported") / "model.devnet"
    export_detector(Detector.restore(drawn_run), Workdir(drawn_run), file)
    return file


def test_mistakes_are_one_line_and_nothing_is_written(
    main: Main, run: Path, exported: Path, good_pictures: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in run.glob("*.json")}
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(good_pictures.iterdir())[:18]:
        shutil.copy(path, few)
    (tmp_path / "empty").mkdir()
    out, workdir, file = tmp_path / "out.devnet", f"--workdir={run}", f"--workdir={exported}"
    given = f"--input={good_pictures}"
    for flags, words in (
        ((workdir, f"--input={few}"), "18 good pictures, and a false-alarm rate of 0.05 needs 19"),
        ((workdir, f"--input={tmp_path / 'empty'}"), "contains no image"),
        ((workdir,), "--input is missing"),
        ((workdir, given, "--config.evaluation.false_alarm_rate=0.01"), "0.01 needs 99"),
        ((workdir, given, f"--output={out}"), "--output goes with an exported file"),
        ((file, given), "--output is missing"),
        ((file, given, f"--output={exported}"), "stays as it is"),
        ((file, f"--input={few}", f"--output={out}"), "needs 19"),
        ((f"--workdir={tmp_path}", given), "no run is there"),
    ):
        result = main("--mode=recalibrate", *flags)
        assert result.returncode == 1, flags
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert words in line
        assert "Traceback" not in result.stderr
    assert {path: path.read_bytes() for path in run.glob("*.json")} == before
    assert not out.exists()


def test_a_file_of_few_pictures_gets_the_rate_that_was_wanted(
    exported: Path, good_pictures: Path, tmp_path: Path
) -> None:
    few = Threshold("calibrated", 3.0, 1 / 3, 2)  # the nearest rate of two pictures
    rewrite_card(exported, tmp_path / "few.devnet", {"thresholds": [dataclasses.asdict(few)]})
    change = recalibrate_file(
        epath.Path(tmp_path / "few.devnet"), [str(good_pictures)], epath.Path(tmp_path / "new")
    )
    assert change.after.false_alarm_rate == 0.05


def test_training_pictures_that_are_gone_are_only_a_warning(
    main: Main, run: Path, good_pictures: Path, tmp_path: Path
) -> None:
    result = main(
        *("--mode=recalibrate", f"--workdir={run}", f"--input={good_pictures}"),
        f"--config.dataset.manual_dir={tmp_path / 'gone'}",
    )
    assert result.returncode == 0, result.stderr
    assert "training pictures among the new ones are not told" in result.stderr


def shift_calibration(run: Path, good_pictures: Path) -> None:
    """Writes a calibration whose scores lie below those of the pictures, and a high threshold."""
    scores = Detector.restore(run).score(sorted(good_pictures.iterdir())).scores
    low = (scores.min() - 1 - np.arange(30) / 30).tolist()
    values = {**read(run / "calibration.json"), "scores": [*low, float(scores.max()) + 1]}
    (run / "calibration.json").write_text(json.dumps(values))


def test_predict_says_that_scores_have_moved(
    run: Path, good_pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    detector = Detector.restore(run)
    same = predict(detector, [str(good_pictures)], str(tmp_path / "same"))
    assert same.drift == ""
    shift_calibration(run, good_pictures)
    with caplog.at_level(logging.WARNING):
        moved = predict(Detector.restore(run), [str(good_pictures)], str(tmp_path / "moved"))
    assert moved.drift.startswith("the scores of pictures that pass have moved: median ")
    assert "(31 pictures)" in moved.drift
    assert f"now ({N_NEW}): look at the pictures" in moved.drift
    assert moved.drift in caplog.text
    assert moved.drift in str(moved)
    assert "have moved" in (tmp_path / "moved" / "report.html").read_text()


def test_the_service_says_that_scores_have_moved(
    run: Path, good_pictures: Path, tmp_path: Path
) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from tests.served import started

    shift_calibration(run, good_pictures)
    export_detector(Detector.restore(run), Workdir(run), tmp_path / "model.devnet")
    with started(tmp_path / "model.devnet") as service:
        for n, path in enumerate(sorted(good_pictures.iterdir())):
            if n == 19:
                assert service.ask("GET", "/health")[1]["drift"] is None
            assert service.ask("POST", "/score", path.read_bytes())[0] == 200
        drift = service.ask("GET", "/health")[1]["drift"]
    assert drift.startswith("the scores of pictures that pass have moved: median ")


def test_a_run_without_images_held_out_can_be_recalibrated(
    main: Main, good_pictures: Path, drawn_parts: Path, shared_tmp: Path, tmp_path: Path
) -> None:
    workdir = f"--workdir={tmp_path / 'run'}"
    flags = tiny_flags("devcore", drawn_parts, shared_tmp)
    assert main(*flags, "--config.dataset.calibration=0.0", workdir).returncode == 0
    assert not (tmp_path / "run" / "calibration.json").exists()
    result = main("--mode=recalibrate", workdir, f"--input={good_pictures}")
    assert result.returncode == 0, result.stderr
    assert "scores of good pictures" not in result.stdout  # there was no calibration
    threshold = Detector.restore(tmp_path / "run").threshold
    assert threshold is not None
    assert (threshold.kind, threshold.n_calibration) == ("calibrated", N_NEW)
    assert main("--mode=eval", workdir).returncode == 0
    assert Detector.restore(tmp_path / "run").threshold == threshold
