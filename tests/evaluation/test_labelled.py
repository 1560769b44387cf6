"""Tests of evaluating a run or an exported file on a labelled folder or list."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import roc_auc_score

from tests.conftest import Main, refused


def read_scores(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "scores.csv").open() as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def read_metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def test_a_run_on_its_own_folder(
    main: Main, trained_core: Path, parts: Path, tmp_path: Path
) -> None:
    """Test pictures have the scores that the run gave them; those that trained are counted."""
    before = {file: file.stat().st_mtime_ns for file in trained_core.rglob("*")}
    flags = ("--mode=eval", f"--workdir={trained_core}", f"--input={parts}")
    result = main(*flags, f"--output={tmp_path / 'out'}")
    assert result.returncode == 0, result.stderr
    assert before == {file: file.stat().st_mtime_ns for file in trained_core.rglob("*")}
    scores, of_run = read_scores(tmp_path / "out"), read_scores(trained_core / "eval")
    assert len(scores) == 22
    for path, row in of_run.items():
        assert row["label"] == scores[path]["label"]
        assert float(row["score"]) == pytest.approx(float(scores[path]["score"]), abs=1e-4)
    metrics, own = read_metrics(tmp_path / "out"), read_metrics(trained_core / "eval")
    split = json.loads((trained_core / "split.json").read_text())
    n_trained = len(split["train_normal"]) + len(split["train_anomaly"])
    assert metrics["n_test_duplicates"] == n_trained == 10
    assert (metrics["n_test_normal"], metrics["n_test_anomaly"]) == (14, 8)
    assert metrics["step"] == own["step"]
    labels = [int(row["label"]) for row in scores.values()]
    values = [float(row["score"]) for row in scores.values()]
    assert metrics["image_auroc"] == pytest.approx(roc_auc_score(labels, values))
    # The threshold is that of the run.
    assert metrics["prior_threshold"] == own["prior_threshold"]
    assert "10 of 22 pictures equal training images" in result.stderr
    assert "10 of them are also training images" in result.stdout
    assert "10 test images are identical" in (tmp_path / "out" / "report.html").read_text()


def test_a_file_and_its_run_agree_on_a_folder_and_a_list(
    main: Main, trained_core: Path, exported_core: Path, parts: Path, tmp_path: Path
) -> None:
    for name in ("good", "scratch"):
        shutil.copytree(parts / "test" / name, tmp_path / "new" / name.replace("good", "OK"))
    masks = tmp_path / "new" / "ground_truth" / "scratch"
    masks.mkdir(parents=True)
    shutil.copy(parts / "test" / "stain" / "000.png", masks / "000_mask.png")
    rows = [
        f"{file.relative_to(tmp_path)},{kind},{mask}"
        for kind, folder in (("", "OK"), ("scratch", "scratch"))
        for file in sorted((tmp_path / "new" / folder).iterdir())
        for mask in [
            "new/ground_truth/scratch/000_mask.png" * (file.parent.name + file.stem == "scratch000")
        ]
    ]
    table = tmp_path / "labels.csv"
    labelled = [row.replace(",,", ",good,") for row in rows]
    table.write_text("\n".join(["path,defect,mask", *labelled, "new/unlooked.png,,"]))
    found = {}
    for name, detector, given in (
        ("run", trained_core, tmp_path / "new"),
        ("file", exported_core, tmp_path / "new"),
        ("list", exported_core, table),
    ):
        out = tmp_path / name
        result = main("--mode=eval", f"--workdir={detector}", f"--input={given}", f"--output={out}")
        assert result.returncode == 0, result.stderr
        found[name] = read_metrics(out), list(read_scores(out).values()), result
    (run, run_rows, _), (file, file_rows, of_file), (of_list, list_rows, _) = found.values()
    assert "pixel_auroc_mean" in run
    assert run.pop("n_test_duplicates") >= 0
    assert run.pop("kinds") == file["kinds"]
    assert run == pytest.approx({k: v for k, v in file.items() if k != "kinds"}, abs=1e-4)
    assert of_list == file
    assert [row["reason"] for row in run_rows] == [row["reason"] for row in file_rows]
    assert [row["score"] for row in list_rows] == [row["score"] for row in file_rows]
    assert [row["path"] for row in list_rows] == [f"new/{row['path']}" for row in file_rows]
    assert "is not known which pictures the detector has learned from" in of_file.stderr
    page = (tmp_path / "file" / "report.html").read_text()
    assert "</code> with <code>--mode=export</code>, which makes a new file" in page
    assert "keeps it for all commands" not in page
    assert "not known which pictures" in page
    assert page.count('<li class="card"') >= 9


def test_good_pictures_alone_leave_measures_out(
    main: Main, exported_core: Path, parts: Path, tmp_path: Path
) -> None:
    shutil.copytree(parts / "test" / "good", tmp_path / "new" / "good")
    flags = ("--mode=eval", f"--workdir={exported_core}", f"--output={tmp_path / 'out'}")
    result = main(*flags, f"--input={tmp_path / 'new'}")
    assert result.returncode == 0, result.stderr
    metrics = read_metrics(tmp_path / "out")
    assert "image_auroc" not in metrics
    assert 0 <= metrics["prior_false_alarm_rate"] <= 1
    assert "no anomalous test image" in result.stdout


def test_a_run_whose_data_is_gone(
    main: Main, trained_core: Path, parts: Path, tmp_path: Path
) -> None:
    """It evaluates, and says that it cannot tell which pictures it trained on."""
    gone = f"--config.dataset.manual_dir={tmp_path / 'gone'}"
    flags = ("--mode=eval", f"--workdir={trained_core}", gone, f"--output={tmp_path / 'out'}")
    result = main(*flags, f"--input={parts}")
    assert result.returncode == 0, result.stderr
    assert "cannot be opened" in result.stderr
    assert "n_test_duplicates" not in read_metrics(tmp_path / "out")
    refused(main(*flags, f"--input={parts}", "--config.model.topk=0.2"), "other settings", "topk")


def test_wrong_requests_end_in_one_line_and_write_nothing(
    main: Main, trained_core: Path, exported_core: Path, parts: Path, tmp_path: Path
) -> None:
    run, file = (("--mode=eval", f"--workdir={path}") for path in (trained_core, exported_core))
    out, given = f"--output={tmp_path / 'out'}", f"--input={parts}"
    refused(main(*file), "an exported file has no test images", "--input")
    threshold = "--config.evaluation.threshold=4"
    refused(
        main(*file, given, out, threshold), threshold[:-2], "an exported file keeps its settings"
    )
    refused(main(*run, given), "--output is missing")
    refused(main(*run, out), "--output goes with --input")
    refused(main(*run, given, given, out), "--input is given 2 times")
    refused(main(*run, f"--input={tmp_path / 'no'}", out), "no such folder or list")
    refused(main(*run, f"--input={parts / 'test' / 'good'}", out), "pictures lie directly in")
    refused(main(*run, given, f"--output={trained_core}"), "is the folder of a run")
    refused(main(*file, given, out, "--config=configs/folder.py"), "leave --config out")
    refused(main(*run, given, out, "--against=x"), "--against goes with --mode=compare")
    assert not (tmp_path / "out").exists()
