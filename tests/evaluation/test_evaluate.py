"""Tests of evaluating: with test images of one kind, or none; reasons, and what is expected."""

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
from devnet_jax.evaluation.estimate import expected_performance
from devnet_jax.export.read import ExportedDetector
from devnet_jax.export.write import export_detector
from devnet_jax.inference.thresholds import Threshold
from devnet_jax.report.digits import format_rate
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
    "trained_classes",
    "step",
    "n_test_normal",
    "n_test_anomaly",
    "n_test_duplicates",
    "n_calibration",
    "prior_threshold",
    "prior_promised_false_alarm_rate",
    "calibrated_threshold",
    "calibrated_promised_false_alarm_rate",
}


def rate_names(rate: str, count: str) -> set[str]:
    """Returns the entries of a rate at both thresholds."""
    names = (count, rate, f"{rate}_low", f"{rate}_high")
    return {f"{kind}_{name}" for kind in ("prior", "calibrated") for name in names}


def test_without_anomalies_only_false_alarms_are_measured(
    evaluate: Callable[..., Evaluated],
) -> None:
    workdir, metrics, scores, printed = evaluate(lambda path: path.startswith("test/good"))
    assert metrics.keys() == COMMON | {"calibrated_excess_p_value"} | rate_names(
        "false_alarm_rate", "n_false_alarms"
    )
    assert (metrics["n_test_normal"], metrics["n_test_anomaly"]) == (5, 0)
    alarms = np.array(scores) >= metrics["prior_threshold"]
    assert metrics["prior_false_alarm_rate"] == pytest.approx(alarms.mean())
    why = "no anomalous test image: AUROC and miss rate cannot be measured"
    assert re.search(rf"^  not measured +{why}$", printed, re.MULTILINE)
    assert "missed" not in printed
    rate = format_rate(int(alarms.sum()), 5)
    told = f"{rate.share} false alarms {rate.in_brackets}, 5% if scores follow the prior"
    assert told in printed
    assert f"{why[0].upper()}{why[1:]}." in (workdir / "report.html").read_text()
    told = EventAccumulator(str(workdir / "tensorboard" / "eval"), {"images": 0}).Reload()
    numbers = metrics.keys() - {"step", "trained_classes"}
    assert set(told.Tags()["scalars"]) == {f"eval/{name}" for name in numbers}


def test_without_normal_images_only_misses_are_measured(
    evaluate: Callable[..., Evaluated],
) -> None:
    workdir, metrics, scores, printed = evaluate(lambda path: not path.startswith("test/good"))
    assert metrics.keys() == COMMON | rate_names("miss_rate", "n_missed")
    assert (metrics["n_test_normal"], metrics["n_test_anomaly"]) == (0, 5)
    missed = np.array(scores) < metrics["prior_threshold"]
    assert metrics["prior_miss_rate"] == pytest.approx(missed.mean())
    why = "no normal test image: AUROC and false-alarm rate cannot be measured"
    assert re.search(rf"^  not measured +{why}$", printed, re.MULTILINE)
    rate = format_rate(int(missed.sum()), 5)
    told = f"{rate.share} missed {rate.in_brackets}"
    assert f"false alarms 5% if scores follow the prior; {told}" in printed
    assert f"{why[0].upper()}{why[1:]}." in (workdir / "report.html").read_text()


def test_without_test_images_thresholds_remain(
    main: Main, evaluate: Callable[..., Evaluated], tmp_path: Path
) -> None:
    workdir, metrics, scores, printed = evaluate(lambda path: False)
    assert metrics.keys() == COMMON
    assert (metrics["n_test_normal"], metrics["n_test_anomaly"], scores) == (0, 0, [])
    header = (workdir / "eval" / "scores.csv").read_text()
    columns = ["path", "label", "defect", "score", "severity", "p_value", "is_anomaly", "reason"]
    assert header == ",".join(f'"{column}"' for column in columns) + "\n"
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


Rows = list[dict[str, str]]


@pytest.fixture
def evaluate_core(
    main: Main, trained_core: Path, tmp_path: Path
) -> Callable[..., tuple[Path, dict[str, Any], Rows, str, str]]:
    """Evaluates the finished run of DevCore with 30 % false alarms allowed, and more alarms.

    Its argument changes the content of learned.json and split.json. Returns the workdir, the
    content of metrics.json, the rows of scores.csv, and what the command printed and logged.
    """

    def evaluate_core(
        change: Callable[[dict[str, Any], dict[str, Any]], object] = lambda *_: None,
    ) -> tuple[Path, dict[str, Any], Rows, str, str]:
        copy = tmp_path / "run"
        shutil.copytree(trained_core, copy)
        contents = [
            json.loads((copy / name).read_text()) for name in ("learned.json", "split.json")
        ]
        change(*contents)
        for name, content in zip(("learned.json", "split.json"), contents, strict=True):
            (copy / name).write_text(json.dumps(content))
        flags = ("evaluation.false_alarm_rate=0.3", "evaluation.confidence=0.7")
        result = main("--mode=eval", f"--workdir={copy}", *(f"--config.{flag}" for flag in flags))
        assert result.returncode == 0, result.stderr
        metrics = json.loads((copy / "eval" / "metrics.json").read_text())
        with (copy / "eval" / "scores.csv").open() as file:
            rows = list(csv.DictReader(file))
        return copy, metrics, rows, result.stdout, result.stderr

    return evaluate_core


def test_alarms_have_reasons(evaluate_core: Callable[..., Any]) -> None:
    workdir, metrics, rows, _, _ = evaluate_core()
    threshold = metrics["prior_threshold"]
    assert [row["reason"] != "" for row in rows] == [float(r["score"]) >= threshold for r in rows]
    reasons = {row["reason"] for row in rows}
    assert "" in reasons
    assert len(reasons) > 1
    like = re.compile(r"like the labelled (scratch|stain) \(\d+%\)|like no labelled kind|")
    assert all(like.fullmatch(reason) for reason in reasons)
    report = (workdir / "report.html").read_text()
    assert all(f">{reason}<" in report for reason in reasons)
    # Everything that reads metrics.json: the table of kinds follows from scores.csv.
    for defect, counts in metrics["kinds"].items():
        texts = [row["reason"] for row in rows if row["defect"] == defect]
        assert sum(counts.values()) == len(texts)
        assert counts["no alarm"] == texts.count("")
        assert counts["no labelled kind"] == texts.count("like no labelled kind")
        for kind in counts.keys() - {"no alarm", "no labelled kind"}:
            assert counts[kind] == sum(f"labelled {kind} (" in text for text in texts)
    assert set(metrics["kinds"]) == {row["defect"] for row in rows if row["label"] == "1"}
    assert 'id="kinds">Which kind?</h2>' in report
    told = EventAccumulator(str(workdir / "tensorboard" / "eval")).Reload()
    assert "eval/kind_accuracy" in told.Tags()["scalars"]


def test_the_deviation_network_gives_no_reasons(trained: Path) -> None:
    with (trained / "eval" / "scores.csv").open() as file:
        assert {row["reason"] for row in csv.DictReader(file)} == {""}


def test_the_expected_performance_is_told_everywhere(evaluate_core: Callable[..., Any]) -> None:
    workdir, metrics, _, printed, logged = evaluate_core()
    learned = json.loads((workdir / "learned.json").read_text())
    normal, anomalous = learned["normal_scores"], learned["anomaly_scores"]
    assert len(anomalous) == 3
    threshold = Threshold("calibrated", metrics["calibrated_threshold"], None)
    expected = expected_performance(normal, anomalous, threshold)
    assert "expected_miss_rate" in expected
    assert {name: metrics[name] for name in expected} == expected
    (row,) = re.findall(r"^  expected +(.*), by cross-validation over 3 labels$", printed, re.M)
    number = r"(\d\.\d+) \(\d\.\d\d–\d\.\d\d\), (\d+)% missed \((\d) of 3; \d+–\d+%\)"
    told = re.fullmatch(rf"AUROC {number} at the threshold in force", row)
    assert told is not None
    assert float(told[1]) == pytest.approx(expected["expected_auroc"], abs=0.0051)
    assert float(told[2]) / 100 == pytest.approx(expected["expected_miss_rate"], abs=0.0051)
    assert int(told[3]) == pytest.approx(3 * expected["expected_miss_rate"])
    assert f"expected by cross-validation over 3 labels: {row}" in logged
    assert (
        f"Expected from {len(normal)} normal training images and the 3 labelled anomalies alone, "
        f"by cross-validation: {row} (95% intervals in brackets)."
    ) in (report := (workdir / "report.html").read_text())
    # The section of labelled anomalies counts the same ones.
    assert sum(map(int, re.findall(r"(\d+) would be missed", report))) == int(told[3])


def shown_labelled(workdir: Path) -> list[tuple[str, float, str]]:
    """Returns path, score and kind of the labelled anomalies that a report shows, in order."""
    section = (workdir / "report.html").read_text().split('<h2 id="labelled">')[1]
    section = section[: section.index("</section>")]
    found = re.findall(
        r'class="path" title="(.*?)".*?<span>score (.*?)</span>.*?"class">(.*?)<', section, re.S
    )
    assert section.count('alt="heat map"') == len(found)
    return [(path, float(score), kind) for path, score, kind in found]


def test_the_labelled_anomalies_are_shown_with_cross_validated_scores(
    trained_core: Path, parts: Path
) -> None:
    labelled = json.loads((trained_core / "split.json").read_text())["train_anomaly"]
    scores = json.loads((trained_core / "learned.json").read_text())["anomaly_scores"]
    found = shown_labelled(trained_core)
    assert sorted(path for path, _, _ in found) == labelled
    for path, score, kind in found:
        assert kind == Path(path).parent.name
        assert score == pytest.approx(scores[labelled.index(path)], rel=6e-4)
    page = (trained_core / "report.html").read_text()
    assert "Each score is cross-validated" in page
    assert f"<h1>{parts.name}</h1>" in page
    assert f"<title>{parts.name}</title>" in page


def test_the_papers_network_has_seen_the_labelled_anomalies(trained: Path, parts: Path) -> None:
    found = shown_labelled(trained)
    assert len(found) == 3
    detector = Detector.restore(trained)
    scores = detector.score([parts / path for path, _, _ in found]).scores
    np.testing.assert_allclose([score for _, score, _ in found], scores, rtol=6e-4)
    assert "which has seen the pictures" in (trained / "report.html").read_text()


def test_the_expected_performance_needs_no_test_image(evaluate_core: Callable[..., Any]) -> None:
    _, metrics, rows, printed, _ = evaluate_core(lambda _, split: split.update(test=[]))
    assert rows == []
    assert 0 <= metrics["expected_auroc_low"] <= metrics["expected_auroc"] <= 1
    assert "by cross-validation over 3 labels" in printed


def test_one_label_gives_no_expectation(
    main: Main, tiny_core: tuple[str, ...], tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    result = main(*tiny_core, "--config.dataset.n_anomaly=1", f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    metrics = json.loads((workdir / "eval" / "metrics.json").read_text())
    assert not [name for name in metrics if "expected" in name or "estimate" in name]
    assert "cross-validation" not in result.stdout + result.stderr
    assert "at least two are needed" in (workdir / "report.html").read_text()
