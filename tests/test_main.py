"""Tests of the command line: exit statuses, files, messages."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from devnet_jax import Detector
from devnet_jax.data.decode import load_image
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.errors import UserError
from devnet_jax.export.read import ExportedDetector
from devnet_jax.report.digits import format_rate
from devnet_jax.runtime.workdir import Workdir
from tests import fork_server
from tests.conftest import IMAGE_SIZE, Main, environment, make_parts, refused
from tests.saved_runs import parameters

SQUARE = Preprocessing(IMAGE_SIZE, IMAGE_SIZE)


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained workdir that a test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def read_scores(workdir: Path) -> list[dict[str, str]]:
    with (workdir / "eval" / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def test_what_a_run_prints(trained: Path) -> None:
    out, err = ((trained.parent / name).read_text() for name in ("stdout", "stderr"))
    assert "AUROC" in out
    assert str(trained / "report.html") in out
    # configs/folder.py holds out a fifth of 9 normal images.
    assert "at most 33.3% false alarms, the nearest rate that 2 images allow" in err
    assert "5% needs 19 normal images held out, not 2" in err


def test_what_a_run_leaves(trained: Path, parts: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names == {
        "config.json",
        "split.json",
        "checkpoints",
        "calibration.json",
        "ordinary.json",
        "metrics.jsonl",
        "tensorboard",
        "eval",
        "report.html",
    }
    assert not [path for path in trained.rglob("*") if path.name.endswith(".tmp")]
    assert list((trained / "tensorboard").iterdir())

    rows = read_scores(trained)
    split = json.loads((trained / "split.json").read_text())
    assert [row["path"] for row in rows] == split["test"]
    assert len(rows) == 5 + 8 - 3  # test images without the three labelled anomalies
    for row in rows:
        assert (parts / row["path"]).is_file()
        assert row["defect"] == row["path"].split("/")[1]
        assert row["label"] == str(int(row["defect"] != "good"))

    labels = [int(row["label"]) for row in rows]
    scores = [float(row["score"]) for row in rows]
    metrics = json.loads((trained / "eval" / "metrics.json").read_text())
    assert (metrics["n_test_normal"], metrics["n_test_anomaly"]) == (5, 5)
    assert metrics["image_auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert metrics["image_ap"] == pytest.approx(average_precision_score(labels, scores))
    assert metrics["prior_threshold"] == pytest.approx(1.6449, abs=1e-4)

    page = (trained / "report.html").read_text()
    shown = dict(re.findall(r'data-live="(\w+)">([^<]*)<', page))
    alarms = np.array(scores) >= metrics["calibrated_threshold"]
    assert shown["false_alarms"] == str(np.sum(alarms & (np.array(labels) == 0)))
    assert shown["missed"] == str(np.sum(~alarms & (np.array(labels) == 1)))
    missed = format_rate(metrics["calibrated_n_missed"], metrics["n_test_anomaly"])
    assert (shown["miss_rate"], shown["miss_rate_counts"]) == (missed.share, missed.in_brackets)
    assert all(row["path"] in page for row in rows)


def test_eval_restores_to_the_same_scores_bit_for_bit(
    main: Main, trained: Path, copy: Path
) -> None:
    shutil.rmtree(copy / "eval")
    result = main("--mode=eval", f"--workdir={copy}")
    assert result.returncode == 0, result.stderr
    for name in ("scores.csv", "metrics.json"):
        assert (copy / "eval" / name).read_bytes() == (trained / "eval" / name).read_bytes()


def test_a_threshold_is_calibrated_and_belongs_to_the_checkpoint(
    main: Main, copy: Path, parts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = main("--mode=eval", f"--workdir={copy}", "--config.evaluation.false_alarm_rate=0.4")
    assert result.returncode == 0, result.stderr
    metrics = json.loads((copy / "eval" / "metrics.json").read_text())
    held_out = json.loads((copy / "split.json").read_text())["calibration"]
    detector = Detector.restore(copy)
    images = np.stack([load_image((parts / path).read_bytes(), path, SQUARE) for path in held_out])
    expected = detector.score(images).scores
    np.testing.assert_allclose(detector.calibration_scores, expected, rtol=1e-4, atol=1e-5)
    # ⌊0.4 · (2 + 1)⌋ = 1: the threshold lies just above the larger score.
    assert metrics["calibrated_threshold"] == pytest.approx(expected.max(), rel=1e-4, abs=1e-5)
    scores = {label: [] for label in "01"}
    for row in read_scores(copy):
        scores[row["label"]].append(float(row["score"]) >= metrics["calibrated_threshold"])
    assert metrics["calibrated_false_alarm_rate"] == pytest.approx(np.mean(scores["0"]))
    assert metrics["calibrated_miss_rate"] == pytest.approx(1 - np.mean(scores["1"]))

    assert detector.threshold is not None
    assert detector.threshold.kind == "calibrated"
    assert detector.threshold.false_alarm_rate == 0.4  # kept in config.json
    assert detector.threshold.value == metrics["calibrated_threshold"]
    calibration = json.loads((copy / "calibration.json").read_text())
    (copy / "calibration.json").write_text(json.dumps({**calibration, "step": 3}))
    assert len(Detector.restore(copy).calibration_scores) == 0  # they belong to other weights
    (copy / "calibration.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds no calibration; run --mode=eval"):
        Detector.restore(copy)
    (copy / "calibration.json").write_text('{"step": 4, "scores": [NaN, 1.0]}')
    with pytest.raises(UserError, match="not finite; run --mode=eval"):
        Detector.restore(copy)
    (copy / "calibration.json").unlink()
    with caplog.at_level(logging.WARNING):
        Detector.restore(copy)
    assert "calibration.json is missing: the threshold is not calibrated" in caplog.text
    (copy / "calibration.json").write_text("{}")
    assert main("--mode=eval", f"--workdir={copy}").returncode == 0  # as the warning advises
    np.testing.assert_array_equal(
        Detector.restore(copy).calibration_scores, detector.calibration_scores
    )


def test_no_image_is_dropped_whatever_the_batch_and_the_devices(main: Main, copy: Path) -> None:
    before = read_scores(copy)
    # 10 images, 4 devices, batches of 7: none divides another.
    settings = ("--config.evaluation.batch_size=7", "--config.evaluation.explanation=none")
    result = main("--mode=eval", f"--workdir={copy}", *settings, devices=4)
    assert result.returncode == 0, result.stderr
    after = read_scores(copy)
    assert [row["path"] for row in after] == [row["path"] for row in before]
    # Other batch shapes sum in another order: differences are float32 rounding.
    np.testing.assert_allclose(
        [float(row["score"]) for row in after],
        [float(row["score"]) for row in before],
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_detector_scores_as_the_command_line_does(trained: Path, parts: Path) -> None:
    detector = Detector.restore(trained)
    rows = read_scores(trained)
    paths = [row["path"] for row in rows]
    images = np.stack([load_image((parts / path).read_bytes(), path, SQUARE) for path in paths])
    scores, maps = detector.score(images)[:2]
    np.testing.assert_allclose(scores, [float(row["score"]) for row in rows], rtol=1e-4, atol=1e-5)
    assert maps.shape == (10, 1, 1)
    # With a single position, the score is its absolute value.
    np.testing.assert_allclose(scores, np.abs(maps[:, 0, 0]), rtol=1e-6)
    of_files = detector.score([parts / path for path in paths])
    np.testing.assert_array_equal(of_files.scores, scores)


def test_a_killed_run_leaves_whole_files_and_goes_on(
    trained: Path, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    command = ["-m", "devnet_jax.main", *tiny, f"--workdir={workdir}"]
    # On the same number of devices as the reference run.
    process = fork_server.start(command, environment(devices=1))
    while not (workdir / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.wait()
    for name in ("config.json", "split.json"):
        assert json.loads((workdir / name).read_text())
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)
    again = fork_server.run(command, environment(devices=1))
    assert again.returncode == 0, again.stderr
    assert (workdir / "eval/scores.csv").read_bytes() == (trained / "eval/scores.csv").read_bytes()
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 2
    assert not list(workdir.rglob("*.tmp"))


def test_an_unfinished_run_says_so(main: Main, trained: Path, tmp_path: Path) -> None:
    """The last checkpoint is missing, as after a kill; no mode takes the run for finished."""
    workdir = Path(shutil.copytree(trained, tmp_path / "run"))
    warning = "the run has done step 2 of 4: run --mode=train again to finish it"
    finished = main("--mode=eval", f"--workdir={workdir}")
    assert "the run has done step" not in finished.stderr
    assert "last_step" not in json.loads((workdir / "eval/metrics.json").read_text())
    shutil.rmtree(workdir / "checkpoints" / "4")
    for flags in (
        ("--mode=eval",),
        ("--mode=export", f"--output={tmp_path / 'model.devnet'}"),
    ):
        result = main(*flags, f"--workdir={workdir}")
        assert result.returncode == 0, result.stderr
        assert result.stderr.count(warning) == 1
    results = json.loads((workdir / "eval/metrics.json").read_text())
    assert [results[name] for name in ("step", "newest_step", "last_step")] == [2, 2, 4]
    assert f"T{warning[1:]}." in (workdir / "report.html").read_text()


def test_a_resumed_run_ends_like_one_that_was_never_stopped(
    main: Main, trained: Path, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    resumed = tmp_path / "resumed"
    first = main(*tiny, f"--workdir={resumed}", "--config.train.epochs=1")
    assert first.returncode == 0, first.stderr
    halfway = parameters(resumed)
    # Without --config: the settings are in the workdir.
    second = main(f"--workdir={resumed}", "--config.train.epochs=2")
    assert second.returncode == 0, second.stderr
    ours, theirs = parameters(resumed), parameters(trained)
    assert any(not np.array_equal(ours[name], value) for name, value in halfway.items())
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    assert (resumed / "eval/scores.csv").read_text() == (trained / "eval/scores.csv").read_text()

    def logged(workdir: Path) -> list[tuple[int, float]]:
        records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        return [(record["step"], record["loss"]) for record in records]

    assert logged(resumed) == logged(trained)
    assert [step for step, _ in logged(trained)] == [2, 4]


def test_the_second_run_on_a_workdir_is_refused(
    main: Main, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    workdir = Workdir(tmp_path / "run")
    with workdir.lock():
        result = main(*tiny, f"--workdir={workdir.path}")
        assert result.returncode == 1
        assert "another process is at work there; wait for it, or choose" in result.stderr
        assert [file.name for file in workdir.path.iterdir()] == [".lock"]
    assert not workdir.path.exists()  # nothing was written to it
    with workdir.lock():
        (workdir.path / "written").touch()
    with workdir.lock():
        pass
    assert (workdir.path / "written").exists()


def test_mvtec_ad_hard_setting_two_scales(
    main: Main, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    raw = tmp_path / "mvtec"
    make_parts(raw / "carpet")
    (raw / "carpet" / "ground_truth" / "scratch").mkdir(parents=True)
    for i in range(4):
        mask = Image.new("L", (48, 40))
        mask.paste(255, (5, 10 + i, 40, 13 + i))
        mask.save(raw / "carpet" / "ground_truth" / "scratch" / f"{i:03}_mask.png")
    workdir = tmp_path / "run"
    result = main(
        "--config=configs/mvtec.py:carpet",
        *tiny[1:],
        f"--workdir={workdir}",
        f"--config.dataset.manual_dir={raw}",
        "--config.dataset.known_class=stain",
        f"--config.dataset.image_size={2 * IMAGE_SIZE}",
        "--config.model.n_scales=2",
        "--config.train.epochs=1",
        "--config.train.steps_per_epoch=3",
    )
    assert result.returncode == 0, result.stderr
    split = json.loads((workdir / "split.json").read_text())
    assert len(split["train_anomaly"]) == 3
    assert all(path.startswith("test/stain/") for path in split["train_anomaly"])
    assert {row["defect"] for row in read_scores(workdir)} == {"good", "scratch"}
    metrics = json.loads((workdir / "eval" / "metrics.json").read_text())
    assert metrics["step"] == 3
    assert metrics["n_pixel_images"] == 5 + 4
    assert (metrics["n_pixel_anomaly"], metrics["n_pixel_vanished"]) == (4, 0)
    for measure in ("auroc_mean", "auroc", "ap", "aupro", "f1_max"):
        assert 0 < metrics[f"pixel_{measure}"] < 1

    explained = main("--mode=explain", f"--workdir={workdir}")
    assert explained.returncode == 0, explained.stderr
    aurocs = []
    for row in read_scores(workdir):
        heat = np.load(workdir / "explain" / "maps" / f"{row['path']}.npy")
        with Image.open(workdir / "explain" / "overlays" / f"{row['path']}.jpg") as overlay:
            assert heat.shape == overlay.size == (2 * IMAGE_SIZE, 2 * IMAGE_SIZE)
        if row["defect"] == "scratch":
            mask_path = row["path"].replace("test/", "ground_truth/").replace(".png", "_mask.png")
            with Image.open(raw / "carpet" / mask_path) as mask:
                small = np.asarray(mask.resize(heat.shape, Image.Resampling.NEAREST)) > 0
            aurocs.append(roc_auc_score(small.ravel(), heat.ravel()))
    assert metrics["pixel_auroc_mean"] == pytest.approx(np.mean(aurocs))


@pytest.mark.parametrize(
    ("arguments", "parts_of_message"),
    [
        (["--config.dataset.manual_dir=/no/such/folder"], ["/no/such/folder", "train/good"]),
        (["--config.dataset.labels=labels.csv"], ["labels.csv'", "name=image_list"]),
        (["--config.dataset.name=image_list"], ["image_list", "set config.dataset.labels"]),
        (["--config.dataset.name=mvtek_ad"], ["mvtek_ad", "did you mean mvtec_ad"]),
        (
            ["--config.dataset.name=mvtec_ad", "--config.dataset.category=carpett"],
            ["carpett", "did you mean carpet"],
        ),
        (["--config.dataset.known_class=skratch"], ["skratch", "did you mean scratch"]),
        (["--config.dataset.n_anomaly=some"], ["n_anomaly = 'some'", "give a number, or all"]),
        (["--config.dataset.n_anomaly=0"], ["n_anomaly = 0", "needs labelled anomalies"]),
        (["--config.model.backbone=resnet19"], ["resnet19", "did you mean resnet18"]),
        (["--config.loss.name=deviatoin"], ["deviatoin", "did you mean deviation"]),
        (["--config.model.topk=1.1"], ["config.model.topk = 1.1", "[0, 1]"]),
        (["--config.model.n_scales=7"], ["n_scales", "64 pixels"]),
        (["--config.train.batchsize=4"], ["config.train.batchsize", "train.batch_size"]),
        (["--config.train.epochs=many"], ["config.train.epochs", "many"]),
        (["--config.model.pretrained=/no/weights.npz"], ["/no/weights.npz"]),
        (["--config=configs/no.py"], ["configs/no.py", "no such"]),
        (["--mode=trian"], ["trian", "train"]),
        (["config.seed=3"], ["config.seed=3", "not a flag"]),
    ],
    ids=lambda value: value[-1].lstrip("-") if isinstance(value, list) else None,
)
def test_a_wrong_request_ends_in_one_line_and_writes_nothing(
    main: Main,
    tiny: tuple[str, ...],
    tmp_path: Path,
    arguments: list[str],
    parts_of_message: list[str],
) -> None:
    workdir = tmp_path / "run"
    refused(main(*tiny, f"--workdir={workdir}", *arguments), *parts_of_message)
    assert not workdir.exists()


def test_a_batch_that_devices_cannot_share(
    main: Main, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    result = main(*tiny, f"--workdir={tmp_path / 'run'}", devices=3)
    refused(result, "config.train.batch_size = 8", "3 devices")
    assert not (tmp_path / "run").exists()


def test_imagenet_weights_without_a_network(
    main: Main, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    # Hugging Face reads the environment when it is imported.
    settings = ("--config.model.pretrained=imagenet", "--config.model.backbone=resnet18")
    result = main(*tiny, f"--workdir={tmp_path / 'run'}", *settings, fork=False)
    refused(result, "as config.model.pretrained")
    assert not (tmp_path / "run").exists()


def test_weights_of_another_backbone(
    main: Main, tiny: tuple[str, ...], tmp_path: Path, shared: Path
) -> None:
    weights = shared / "weights" / "resnet18_imagenet.safetensors"
    result = main(
        *tiny,
        f"--workdir={tmp_path / 'run'}",
        f"--config.model.pretrained={weights}",
        "--config.model.backbone=resnet34",
    )
    refused(result, str(weights), "resnet18")
    assert not (tmp_path / "run").exists()


def harm(folder: Path, how: str) -> None:
    if how == "empty class":
        for path in (folder / "train" / "good").iterdir():
            path.unlink()
    elif how == "truncated":
        path = folder / "test" / "stain" / "002.png"
        path.write_bytes(path.read_bytes()[:-600])
    elif how == "zero bytes":
        (folder / "train" / "good" / "004.png").write_bytes(b"")
    elif how == "mask of another size":
        (folder / "ground_truth" / "scratch").mkdir(parents=True)
        mask = Image.new("L", (48, 41))
        mask.save(folder / "ground_truth" / "scratch" / "001_mask.png")


@pytest.mark.parametrize(
    ("how", "parts_of_message"),
    [
        ("empty class", ["train/good"]),
        ("truncated", ["test/stain/002.png"]),
        ("zero bytes", ["train/good/004.png"]),
        ("mask of another size", ["001_mask.png", "48×41", "48×40"]),
    ],
)
def test_a_bad_folder_of_pictures(
    main: Main, tiny: tuple[str, ...], tmp_path: Path, how: str, parts_of_message: list[str]
) -> None:
    folder = make_parts(tmp_path / "parts")
    harm(folder, how)
    data_dir = tmp_path / "data"
    result = main(
        *tiny,
        f"--workdir={tmp_path / 'run'}",
        f"--config.dataset.manual_dir={folder}",
        f"--config.dataset.data_dir={data_dir}",
    )
    refused(result, *parts_of_message)
    assert not (tmp_path / "run").exists()
    assert not list(data_dir.rglob("*.array_record*"))


def test_files_that_are_no_images_are_counted_and_at_verbosity_named(
    main: Main, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    folder = make_parts(tmp_path / "parts")
    (folder / "train" / "good" / "notes.txt").write_text("taken on Monday")
    result = main(
        *tiny,
        f"--workdir={tmp_path / 'run'}",
        f"--config.dataset.manual_dir={folder}",
        "--config.dataset.known_class=skratch",  # stops the run after the folder is read
        "--verbosity=1",
    )
    refused(result, "skratch")
    assert "1 file" in result.stderr
    assert "notes.txt" in result.stderr


def test_names_of_all_kinds_in_all_modes(
    main: Main, tiny_core: tuple[str, ...], tmp_path: Path
) -> None:
    folder = make_parts(tmp_path / "parts \udcff\n%s")
    odd = ("kr\udce4tzer \n1", "检" * 82 + ".png", "gut_\udce4.png", "=1+1\r\u202e.png")
    (folder / "test/stain").rename(folder / "test" / odd[0])
    for place in ("train/good", "test/good", f"test/{odd[0]}"):
        for n, name in enumerate(odd[1:]):
            (folder / place / f"{n:03}.png").rename(folder / place / name)
    run = tmp_path / "run"
    given = (f"--config.dataset.manual_dir={folder}", f"--config.dataset.data_dir={tmp_path}/data")
    for arguments in (
        (*tiny_core, *given),
        ("--mode=explain",),
        ("--mode=predict", f"--input={folder}", f"--output={tmp_path / 'out'}"),
        ("--mode=export", f"--output={tmp_path / 'model.devnet'}"),
    ):
        result = main(f"--workdir={run}", *arguments)
        assert result.returncode == 0, result.stderr
        assert "since the run began" not in result.stderr
    split = json.loads((run / "split.json").read_text())
    assert odd[0] in split["trained_classes"]
    names = {(f"test/{place}/{name}") for place in ("good", odd[0]) for name in odd[1:]}
    assert names <= {*split["test"], *split["train_anomaly"]}
    for file, encoded in (("eval/scores.csv", "gut_\udce4.png"), ("report.html", "gut_\\udce4")):
        assert encoded in (run / file).read_bytes().decode("utf-8", "surrogateescape")
    n_maps = len([*(run / "explain/maps").rglob("*.npy")])
    assert n_maps == len([*(run / "explain/overlays").rglob("*.jpg")]) == len(split["test"])
    table = (tmp_path / "out/predictions.csv").read_bytes()
    assert b"/gut_\xe4.png" in table
    detector = ExportedDetector.load(tmp_path / "model.devnet")
    assert odd[0] in detector.kinds
    assert odd[0] in detector.card["tested_classes"]
    refused(
        main(*tiny_core, *given, f"--workdir={tmp_path / odd[0]}"), r"kr\udce4tzer \n1", "not valid"
    )


@pytest.mark.skipif(os.name == "nt", reason="a file in the way is how POSIX refuses a folder")
def test_a_workdir_that_cannot_be_made(main: Main, tiny: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = main(*tiny, f"--workdir={tmp_path / 'file' / 'run'}")
    refused(result, str(tmp_path / "file"), "not a folder")


def test_a_workdir_without_a_run(main: Main, tmp_path: Path) -> None:
    refused(main("--mode=eval", f"--workdir={tmp_path}"), str(tmp_path), "no run is there")
    refused(main("--mode=eval"), "--workdir is missing")


def test_settings_that_make_resuming_wrong_are_named(main: Main, copy: Path) -> None:
    result = main(
        f"--workdir={copy}", "--config.seed=7", "--config.model.topk=0.5", "--config.train.epochs=9"
    )
    refused(result, "config.seed is 7, was 42", "config.model.topk is 0.5, was 0.1")
    assert "epochs" not in result.stderr


def test_an_image_of_the_split_that_is_gone(main: Main, copy: Path, tmp_path: Path) -> None:
    folder = make_parts(tmp_path / "parts")
    (folder / "test" / "good" / "001.png").unlink()
    result = main(
        "--mode=eval",
        f"--workdir={copy}",
        f"--config.dataset.manual_dir={folder}",
        f"--config.dataset.data_dir={tmp_path / 'data'}",
    )
    refused(result, "test/good/001.png", "no longer in data set")


def test_a_checkpoint_that_is_missing(main: Main, copy: Path) -> None:
    shutil.rmtree(copy / "checkpoints")
    refused(main("--mode=eval", f"--workdir={copy}"), str(copy / "checkpoints"), "no checkpoint")


def test_a_checkpoint_of_another_architecture(main: Main, copy: Path) -> None:
    settings = json.loads((copy / "config.json").read_text())
    settings["model"]["backbone"] = "resnet18"
    (copy / "config.json").write_text(json.dumps(settings))
    result = main("--mode=eval", f"--workdir={copy}")
    refused(result, "checkpoints/4", "config.model.backbone is 'resnet18', was 'alexnet'")


def test_fewer_epochs_than_were_done(main: Main, copy: Path) -> None:
    refused(main(f"--workdir={copy}", "--config.train.epochs=1"), "epochs = 1", "already done 2")
    assert json.loads((copy / "config.json").read_text())["train"]["epochs"] == 2


def test_pictures_that_changed_after_training(main: Main, copy: Path, tmp_path: Path) -> None:
    folder = make_parts(tmp_path / "parts")
    for n_changed in range(2):  # equal images in new files are no change
        result = main("--mode=eval", f"--workdir={copy}", f"--config.dataset.manual_dir={folder}")
        assert result.returncode == 0, result.stderr
        assert result.stderr.count("has changed since the run began") == n_changed
        shutil.copyfile(folder / "train/good/001.png", folder / "train/good/000.png")


def test_checkpoints_without_settings_are_not_trained_over(
    main: Main, tiny: tuple[str, ...], copy: Path
) -> None:
    (copy / "config.json").unlink()
    refused(main(*tiny, f"--workdir={copy}"), "holds checkpoints but no config.json")


def test_a_damaged_settings_file(main: Main, copy: Path) -> None:
    (copy / "config.json").write_text('{"seed": 4')
    refused(main("--mode=eval", f"--workdir={copy}"), "config.json", "cannot be read")


def test_a_damaged_checkpoint_is_passed_over(main: Main, copy: Path) -> None:
    def damage(checkpoint: str) -> None:
        files = [path for path in (copy / "checkpoints" / checkpoint).rglob("*") if path.is_file()]
        path = max(files, key=lambda path: path.stat().st_size)
        path.write_bytes(path.read_bytes()[:-1])

    damage("4")
    result = main("--mode=eval", f"--workdir={copy}")
    assert result.returncode == 0, result.stderr
    assert "checkpoints/4: checkpoint skipped" in result.stderr
    assert json.loads((copy / "eval" / "metrics.json").read_text())["step"] == 2
    damage("2")
    refused(main("--mode=eval", f"--workdir={copy}"), "checkpoints/4: the checkpoint is damaged")
