"""Prediction: which images are found, which files are written, and resuming after a kill."""

from __future__ import annotations

import csv
import dataclasses
import html
import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from devnet_jax import Detector
from devnet_jax.config import Config, DatasetConfig, EvaluationConfig, LossConfig, ModelConfig
from devnet_jax.data.decode import load_image
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.errors import UserError
from devnet_jax.inference.scores import Scores
from devnet_jax.models.build import make_variables
from devnet_jax.prediction import predict
from devnet_jax.prediction.inputs import find_inputs
from devnet_jax.prediction.progress import FileResult, Progress
from devnet_jax.report.digits import format_rate
from devnet_jax.runtime.workdir import Workdir
from tests import fork_server
from tests.conftest import BACKBONE, IMAGE_SIZE, Main, environment

SQUARE = Preprocessing(IMAGE_SIZE, IMAGE_SIZE)

CONFIG = Config(
    dataset=DatasetConfig(image_size=IMAGE_SIZE),
    model=ModelConfig(backbone=BACKBONE, n_scales=1, pretrained="none"),
    evaluation=EvaluationConfig(batch_size=4),
)


@pytest.fixture(scope="module")
def detector(parts: Path) -> Detector:
    """An untrained network that raises an alarm for about half of the parts."""
    detector = Detector(CONFIG, make_variables(CONFIG), step=0)
    paths = sorted(parts.rglob("*.png"))
    images = np.stack([load_image(path.read_bytes(), "", SQUARE) for path in paths])
    confidence = stats.norm.cdf(np.median(detector.score(images).scores))
    return with_evaluation(detector, confidence=float(confidence))


def with_evaluation(detector: Detector, **settings: Any) -> Detector:
    evaluation = dataclasses.replace(detector.config.evaluation, **settings)
    config = dataclasses.replace(detector.config, evaluation=evaluation)
    return dataclasses.replace(detector, config=config)


COLUMNS = (
    "path", "score", "severity", "p_value", "is_anomaly", "threshold", "reason", "odd", "error"
)  # fmt: skip


def read_page(folder: Path) -> str:
    """Returns the report of a folder, without the tags of less conspicuous text."""
    return re.sub("</?small>", "", (folder / "report.html").read_text())


def read_table(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as table:
        rows = list(csv.DictReader(table))
    assert all(set(row) == set(COLUMNS) for row in rows)
    return rows


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def write_images(folder: Path, names: Sequence[str | bytes]) -> list[Path]:
    rng = np.random.default_rng(3)
    paths = [folder / os.fsdecode(name) for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            pixels = rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file, "PNG")
    return paths


def count_scored(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """Patches `Detector.score` to count its images.

    Args:
      monkeypatch: fixture.
      stop_after: number of calls after which `KeyboardInterrupt` is raised; by default never.

    Returns:
      A list that grows by the number of images of each call.
    """
    counts: list[int] = []
    score = Detector.score

    def counting(detector: Detector, images: np.ndarray) -> Scores:
        if len(counts) == stop_after:
            raise KeyboardInterrupt
        counts.append(len(images))
        return score(detector, images)

    monkeypatch.setattr(Detector, "score", counting)
    return counts


# Output


def test_the_table_matches_the_detector(detector: Detector, parts: Path, tmp_path: Path) -> None:
    prediction = predict(detector, [str(parts)], str(tmp_path))
    rows = read_table(tmp_path / "predictions.csv")
    assert [row["path"] for row in rows] == sorted(map(str, parts.rglob("*.png")))
    images = np.stack([load_image(Path(row["path"]).read_bytes(), "", SQUARE) for row in rows])
    scores = np.array([float(row["score"]) for row in rows])
    np.testing.assert_allclose(scores, detector.score(images).scores, rtol=1e-4, atol=1e-5)
    p_values = [float(row["p_value"]) for row in rows]
    np.testing.assert_allclose(p_values, stats.norm.sf(scores), rtol=1e-5)
    threshold = stats.norm.ppf(detector.config.evaluation.confidence)
    assert all(float(row["threshold"]) == pytest.approx(threshold) for row in rows)
    alarms = [row["is_anomaly"] for row in rows]
    assert alarms == ["1" if score >= threshold else "0" for score in scores]
    assert 0 < alarms.count("1") < len(alarms)
    n_alarms = alarms.count("1")
    described = f"{n_alarms} of 22 scored ({format_rate(n_alarms, 22).share})"
    assert described in str(prediction)
    assert described in read_page(tmp_path)
    assert f"score {threshold:.4g}, the prior's" in str(prediction)
    assert not any(row["reason"] or row["error"] for row in rows)
    assert prediction.n_images == len(rows) == 22
    assert prediction.n_alarms == alarms.count("1")
    assert prediction.n_unreadable == 0
    assert str(tmp_path / "report.html") in str(prediction)


@pytest.fixture(scope="module")
def core(trained_core: Path) -> Detector:
    """A trained DevCore that raises an alarm for some of the parts."""
    return with_evaluation(Detector.restore(trained_core), confidence=0.7)


def test_each_page_of_a_file_is_a_picture(detector: Detector, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pages = [rng.integers(0, 256, (30, 40, 3), dtype=np.uint8) for _ in range(5)]
    first, *others = map(Image.fromarray, pages)
    stack, damaged = tmp_path / "in" / "a" / "stack.TIF", tmp_path / "in" / "damaged.tif"
    stack.parent.mkdir(parents=True)
    first.save(stack, "TIFF", save_all=True, append_images=others)
    damaged.write_bytes(stack.read_bytes()[:-2000])  # without the tags of its last pages
    first.save(tmp_path / "in" / "hash#2.png")
    out = tmp_path / "out"
    predict(detector, [str(tmp_path / "in")], str(out))
    rows = {Path(row["path"]).name: row for row in read_table(out / "predictions.csv")}
    names = [f"stack.TIF#{n}" for n in range(1, 6)]
    assert rows.keys() >= {*names, "hash#2.png"}
    expected = detector.score(pages).scores
    scores = [float(rows[name]["score"]) for name in (*names, "hash#2.png")]
    np.testing.assert_allclose(scores, [*expected, expected[0]], rtol=1e-5)
    assert {f"a/{name}.jpg" for name in names} < files_in(out / "overlays")
    assert any(name.startswith("damaged.tif") and row["error"] for name, row in rows.items())
    path = f"{stack}#4"
    assert detector.score(path).scores[0] == pytest.approx(expected[3], rel=1e-5)
    with pytest.raises(UserError, match=r"stack\.TIF' has 5 pages: save its pages .*#5"):
        detector.score(stack)


def test_alarms_have_reasons(
    core: Detector, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    apply = Detector._apply
    monkeypatch.setattr(Detector, "_apply", lambda *arguments: calls.append(1) or apply(*arguments))
    predict(core, [str(parts)], str(tmp_path))
    assert len(calls) == 3  # chunks of 8 images: the scores' maps are the explanations
    rows = read_table(tmp_path / "predictions.csv")
    reasons = [row["reason"] for row in rows]
    assert reasons == core.score([row["path"] for row in rows]).reasons
    assert [row["is_anomaly"] for row in rows] == [str(int(reason != "")) for reason in reasons]
    assert 0 < reasons.count("") < len(rows)
    report = (tmp_path / "report.html").read_text()
    for reason in {*reasons} - {""}:
        assert report.count(f'<span class="reason">{reason}</span>') == reasons.count(reason)


def test_the_report_knows_the_kinds_of_alarms_and_the_folder_of_relative_paths(
    core: Detector, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(parts.parent)
    names = ("cut", "cut, deep")  # the first is the beginning of the second
    assert len(core.kinds) == len(names)
    predict(dataclasses.replace(core, kinds=names), [parts.name], str(tmp_path))
    report = (tmp_path / "report.html").read_text()
    pictures = re.findall(r'data-picture="([^"]*)"', report)
    kinds = dict(json.loads(html.unescape(picture)) for picture in pictures)
    reasons = {row["path"]: row["reason"] for row in read_table(tmp_path / "predictions.csv")}
    assert kinds.keys() == reasons.keys()
    assert {*kinds.values()} > {""}
    for path, kind in kinds.items():
        begins = [name for name in names if reasons[path].startswith(f"like the labelled {name}")]
        assert kind == (begins[-1] if begins else "")
    assert f"--config.dataset.manual_dir={parts.parent}<" in report
    predict(core, [str(parts)], str(tmp_path / "absolute"))
    assert "manual_dir=" not in (tmp_path / "absolute" / "report.html").read_text()


def test_reasons_survive_an_interruption(
    core: Detector, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        count_scored(patch, stop_after=2)
        with pytest.raises(KeyboardInterrupt):
            predict(core, [str(parts)], str(tmp_path))
    with monkeypatch.context() as patch:
        counts = count_scored(patch)
        predict(core, [str(parts)], str(tmp_path))
        assert sum(counts) == 22 - 16
    rows = read_table(tmp_path / "predictions.csv")
    reasons = [row["reason"] for row in rows]
    assert any(reasons[:16])
    assert reasons == core.score([row["path"] for row in rows]).reasons


def test_alarms_are_decided_by_the_scores_as_written(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "in", ["1.png", "2.png"])
    score = np.float32(0.1)
    assert float(score) > 0.1  # the float32 value differs from its decimal form "0.1"
    monkeypatch.setattr(
        Detector,
        "score",
        lambda _, images: Scores(
            np.full(len(images), score),
            np.zeros((len(images), 1, 1)),
            reasons=[""] * len(images),
            odd=[""] * len(images),
        ),
    )
    between = stats.norm.cdf((0.1 + float(score)) / 2)
    cut = with_evaluation(detector, confidence=float(between), overlays="anomalous")
    threshold = cut.thresholds[0].value
    assert 0.1 < threshold < float(score)
    prediction = predict(cut, [str(tmp_path / "in")], str(tmp_path / "out"))
    for row in read_table(tmp_path / "out" / "predictions.csv"):
        assert (row["score"], row["is_anomaly"]) == ("0.1", "0")
        assert float(row["threshold"]) == threshold
    assert (prediction.n_alarms, prediction.overlays) == (0, None)
    assert "0 of 2 scored (0%)" in read_page(tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "overlaid"),
    [
        ({"overlays": "all"}, "01"),
        ({"overlays": "anomalous"}, "1"),
        ({"overlays": "none"}, ""),
        ({"explanation": "none"}, ""),
        ({"explanation": "none", "overlays": "anomalous"}, ""),
    ],
)
def test_which_images_get_an_overlay(
    detector: Detector, parts: Path, tmp_path: Path, settings: dict[str, str], overlaid: str
) -> None:
    predict(detector, [str(parts / "test")], str(tmp_path))
    predict(with_evaluation(detector, **settings), [str(parts / "test")], str(tmp_path))
    expected = {"predictions.csv", "report.html"}
    for row in read_table(tmp_path / "predictions.csv"):
        if row["is_anomaly"] in overlaid:
            expected.add(f"overlays/{Path(row['path']).relative_to(parts / 'test')}.jpg")
    assert files_in(tmp_path) == expected  # overlays of the first prediction are deleted
    for name in expected - {"predictions.csv", "report.html"}:
        with Image.open(tmp_path / name) as overlay:
            assert (overlay.format, overlay.size) == ("JPEG", (IMAGE_SIZE, IMAGE_SIZE))


def test_a_loss_without_a_prior_gives_scores_only(
    detector: Detector, parts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = dataclasses.replace(CONFIG.dataset, calibration=3)
    config = dataclasses.replace(detector.config, loss=LossConfig(name="bce"), dataset=dataset)
    without = dataclasses.replace(detector, config=config)
    prediction = predict(without, [str(parts / "test" / "stain")], str(tmp_path))
    assert prediction.n_alarms is None
    for row in read_table(tmp_path / "predictions.csv"):
        assert (row["p_value"], row["threshold"], row["is_anomaly"]) == ("", "", "")
        assert np.isfinite(float(row["score"]))
    report = (tmp_path / "report.html").read_text()
    for warning in ("No threshold: ", "normal images held out, not 0"):
        assert report.count(warning) == 1
    assert [record.message[:13] for record in caplog.records] == ["no threshold:"]
    with pytest.raises(UserError, match="overlays=anomalous: there is no threshold"):
        predict(with_evaluation(without, overlays="anomalous"), [str(parts)], str(tmp_path))
    calibrated = dataclasses.replace(without, calibration_scores=np.full(19, -9, np.float32))
    predict(calibrated, [str(parts / "test" / "stain")], str(tmp_path))
    assert "o threshold: " not in (tmp_path / "report.html").read_text()
    for row in read_table(tmp_path / "predictions.csv"):
        assert (float(row["p_value"]), row["is_anomaly"]) == (0.05, "1")  # above all 19
        assert float(row["threshold"]) == pytest.approx(-9)


NAMES = (
    b"a b.png",
    b"\"double\" and 'single', comma.png",
    b"<script>alert(1)<\xe2\x81\x84script>.png",
    b"&amp;.png",
    b"new\nline.png",
    b"carriage\rreturn.png",
    b"not utf-8 \xff\x80.png",
    b"=1+1.png",
    b"~home.png",
    b"part[1].png",
    b"UPPER.PNG",
    b"no suffix",
    b"l" * 250 + b".png",
)


def test_unusual_file_names(detector: Detector, tmp_path: Path) -> None:
    paths = write_images(tmp_path / "in", NAMES)
    prediction = predict(detector, [str(tmp_path / "in")], str(tmp_path / "out"))
    assert (prediction.n_images, prediction.n_unreadable) == (len(NAMES), 0)
    rows = read_table(tmp_path / "out" / "predictions.csv")
    assert {row["path"] for row in rows} == set(map(str, paths))
    assert len(files_in(tmp_path / "out" / "overlays")) == len(NAMES)
    assert b"not utf-8 \xff\x80.png" in (tmp_path / "out" / "predictions.csv").read_bytes()
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in report
    assert "&lt;script&gt;alert" in report


def test_no_cell_is_a_formula(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("=1+1.png", "+a.png", "-b.png", "@c.png", "\td.png", "\re.png", "=cmd|'x'!A0.png")
    write_images(tmp_path, names)
    monkeypatch.chdir(tmp_path)
    predict(detector, ["."], str(tmp_path / "out"))
    rows = read_table(tmp_path / "out" / "predictions.csv")
    assert {row["path"] for row in rows} == {f"./{name}" for name in names}
    for row in rows:
        assert Path(row["path"]).is_file()
        float(row["score"])
        assert not row["reason"].startswith(("=", "+", "-", "@", "\t", "\r"))


def test_an_unreadable_image_gets_a_row_with_its_error(detector: Detector, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    readable = write_images(folder, ["a.png", "z.png"])
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    Image.new("L", (20000, 20000)).save(folder / "huge.png")
    # Sparse files, which take no disk space.
    np.lib.format.open_memmap(folder / "wide.npy", "w+", np.bool_, (14000, 14000))
    (folder / "vast.png").touch()
    os.truncate(folder / "vast.png", 2**40)
    frames = [Image.new("L", (20, 20), value) for value in (0, 255)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    (folder / "text.png").write_text("no image")
    (folder / "empty.png").touch()
    (folder / "link.png").symlink_to("nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (folder / "scan.DCM").write_bytes(bytes(128) + b"DICM" + bytes(100))
    (folder / "notes.txt").write_text("no image")
    (folder / "truncated.png").write_bytes(readable[0].read_bytes()[:200])
    prediction = predict(detector, [str(folder)], str(tmp_path / "out"))
    rows = {Path(row["path"]).name: row for row in read_table(tmp_path / "out" / "predictions.csv")}
    errors = {name: row["error"] for name, row in rows.items() if row["error"]}
    too_large = {"huge.png", "wide.npy", "vast.png"}
    special = {"link.png", "loop.png", "pipe.png", "zero.png"}
    other_types = {"phone.heic", "scan.DCM"}
    damaged = {"text.png", "empty.png", "truncated.png"}
    assert set(errors) == too_large | special | other_types | damaged
    assert all("convert it to PNG" in errors[name] for name in other_types)
    assert all(name in error for name, error in errors.items())
    assert all("make it smaller" in errors[name] for name in too_large)
    for name, row in rows.items():
        if name in errors:
            assert [row[column] for column in COLUMNS[1:7]] == [""] * 6
        else:
            assert np.isfinite(float(row["score"]))
    first = load_image((folder / "animated.gif").read_bytes(), "", SQUARE)
    assert first.max() == 0
    expected = float(detector.score(first[None]).scores[0])
    assert float(rows["animated.gif"]["score"]) == pytest.approx(expected, rel=1e-4)
    assert (prediction.n_images, prediction.n_unreadable) == (16, 12)
    report = (tmp_path / "out" / "report.html").read_text()
    assert all(name in report for name in rows)


def test_a_large_image_is_read_without_a_warning(
    detector: Detector, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "in").mkdir()
    Image.new("1", (10000, 10000)).save(tmp_path / "in" / "large.png")
    prediction = predict(detector, [str(tmp_path / "in")], str(tmp_path / "out"))
    assert prediction.n_unreadable == 0
    assert not [warning for warning in recwarn if "Bomb" in warning.category.__name__]


def test_without_readable_images_only_the_table_is_written(
    detector: Detector, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "text.png").write_text("no image")
    prediction = predict(detector, [str(tmp_path / "in")], str(tmp_path / "out"))
    assert (prediction.n_images, prediction.n_unreadable, prediction.report) == (1, 1, None)
    assert (prediction.n_alarms, prediction.overlays) == (None, None)
    assert "alarms" not in str(prediction)
    assert files_in(tmp_path / "out") == {"predictions.csv"}


# Inputs


def find(folder: Path, *arguments: str | Path) -> list[str]:
    inputs = find_inputs(list(map(str, arguments)), output=folder / "out")
    return [str(path.relative_to(folder)) for path in inputs.paths]


def test_files_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["b/2.png", "b/c/3.JPG", "a.tif", "b/.hidden.png", "b/.svn/4.png", "part[1].png"]
    names += ["b/notes.txt", "b/print.pdf", "b/array.npy", "b/scan", "out/overlays/a.png.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    below = ["b/2.png", "b/array.npy", "b/c/3.JPG", "b/scan"]
    assert find(tmp_path, tmp_path / "b") == below
    assert find(tmp_path, tmp_path) == ["a.tif", *below, "part[1].png"]
    assert find(tmp_path, tmp_path / "b" / "notes.txt") == [
        "b/notes.txt"
    ]  # a file given by its name
    assert find(tmp_path, tmp_path / "b" / "*.png") == ["b/2.png"]
    assert find(tmp_path, tmp_path / "**" / "*.JPG") == ["b/c/3.JPG"]
    assert find(tmp_path, tmp_path / "?") == below
    assert find(tmp_path, tmp_path / "part[1].png") == ["part[1].png"]
    # Each image is listed once, even if it is found several times and through links.
    (tmp_path / "link.png").symlink_to("a.tif")
    (tmp_path / "d").symlink_to("b")
    (tmp_path / "b" / "loop").symlink_to("..")
    assert find(tmp_path, tmp_path, tmp_path / "b", tmp_path / "*.tif") == [
        "a.tif",
        *below,
        "part[1].png",
    ]
    monkeypatch.chdir(tmp_path / "b")
    inputs = find_inputs(["../a.tif", "c"], output=tmp_path / "none")
    assert list(map(str, inputs.paths)) == ["../a.tif", "c/3.JPG"]
    assert [inputs.name(path) for path in inputs.paths] == ["a.tif", "b/c/3.JPG"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_inputs(["~/b/*.png"], output=tmp_path / "none").paths == [tmp_path / "b" / "2.png"]


def test_what_machines_make_is_no_input(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").touch()
    for folder in ("", "a"):
        for name in ("@eaDir/1.png", "#recycle/1.png", ".cache/1.png", "Thumbs.db", "._1.png"):
            path = tmp_path / folder / name
            path.parent.mkdir(exist_ok=True)
            path.touch()
    for argument in ("", "*", "a", "*/*", "**/*.png", "a/*.png"):
        assert find(tmp_path, tmp_path / argument) == ["a/1.png"]
    assert re.search(
        r"--input=\S+: left out .*: #recycle \(2\), \._\* \(2\), .*, Thumbs.db \(2\)$",
        caplog.messages[0],
    )
    # A name that is written out is meant.
    assert find(tmp_path, tmp_path / "@eaDir") == ["@eaDir/1.png"]
    assert find(tmp_path, tmp_path / "?" / "@eaDir" / "*") == ["a/@eaDir/1.png"]


def write_stack(file: Path, n_pages: int = 3) -> Path:
    first, *others = (Image.new("L", (8, 8), value) for value in range(n_pages))
    first.save(file, save_all=True, append_images=others)
    return file


def test_a_page_is_given_by_the_name_in_the_table(tmp_path: Path) -> None:
    folder = tmp_path / "a[1]"
    folder.mkdir()
    stack = write_stack(folder / "stack.tif")
    assert find(folder, f"{stack}#2") == ["stack.tif#2"]
    # Each page is listed once.
    pages = [f"stack.tif#{n}" for n in (1, 2, 3)]
    assert sorted(find(folder, f"{stack}#2", stack)) == pages
    assert find_inputs([f"{stack}#2"], output=tmp_path / "out").folder == folder
    Image.new("L", (8, 8)).save(folder / "one.png")
    for argument, message in {
        f"{stack}#4": r"stack\.tif#4: no such page: '.*stack\.tif' has 3 pages",
        f"{folder}/one.png#1": "'.*one.png' is one picture",
        f"{tmp_path}/two.tif#1": "no such file or folder",
    }.items():
        with pytest.raises(UserError, match=message):
            find(folder, argument)


def test_a_page_with_the_name_of_another_file_is_refused(tmp_path: Path) -> None:
    stack = write_stack(tmp_path / "stack.tif")
    Image.new("L", (8, 8)).save(tmp_path / "stack.tif#3", "PNG")
    for argument in (tmp_path, stack, tmp_path / "*"):
        with pytest.raises(UserError, match=r"stack\.tif#3' is a file, and .* page 3 .*: rename"):
            find(tmp_path, argument)


def test_files_of_other_types_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for name in ("a.png", "trail.png ", *(f"v.{n}" for n in range(10, 21))):
        (tmp_path / name).touch()
    assert find(tmp_path, tmp_path) == ["a.png"]
    (message,) = caplog.messages
    assert re.fullmatch(r"files ignored .*: 12: 'trail\.png ', 'v\.10', .* and 2 more", message)


def test_no_such_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to("/nowhere/x")
    (tmp_path / "loop").symlink_to("loop")
    for argument, message in {
        "nope": "nope: no such file or folder",
        "nope*.png": r"nope\*\.png: nothing matches",
        "empty": "empty: contains no image$",
        "texts": r"texts: contains no image \(files of other types: 1\)",
        "pipe": "pipe: it is a pipe, not a file; give",
        "gone": "gone: it is a link to '/nowhere/x', which does not exist; give",
        "loop": "loop: it is a link that leads back to itself; give",
        "texts/**.png": r"slashes, as in .*/texts/\*\*/\*\.png$",
    }.items():
        with pytest.raises(UserError, match=message):
            find(tmp_path, tmp_path / argument)
    for arguments in ([], [""]):
        with pytest.raises(UserError, match="--input is missing"):
            find_inputs(arguments, output=tmp_path)


def test_output_of_predictions_is_not_an_input(
    detector: Detector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    write_images(tmp_path, ["1.png", "overlays of mine/2.png", "mine/overlays/3.png"])
    images = [str(tmp_path / name) for name in ("1.png", "mine/overlays/3.png")]
    images.append(str(tmp_path / "overlays of mine/2.png"))
    for _ in range(2):
        predict(detector, [str(tmp_path)], str(tmp_path))
        table = read_table(tmp_path / "predictions.csv")
        assert [row["path"] for row in table] == images
    assert not caplog.messages  # the prediction's own output is ignored silently
    # Output of another prediction is ignored, too, unless its folder is given.
    other = predict(detector, [str(tmp_path), str(tmp_path / "*")], str(tmp_path / "other"))
    assert other.n_images == 3
    assert "overlays of other predictions ignored: 3" in caplog.messages
    asked = predict(detector, [str(tmp_path / "overlays")], str(tmp_path / "other"))
    assert asked.n_images == 3
    with pytest.raises(UserError, match="contains no image"):
        predict(detector, [str(tmp_path / "overlays")], str(tmp_path))


def test_overlays_of_an_earlier_prediction_are_logged(
    detector: Detector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    paths = write_images(tmp_path / "in", ["1.png", "2.png", "3.png"])
    for n_earlier in (0, 2):
        predict(detector, list(map(str, paths[n_earlier:])), str(tmp_path / "out"))
        messages = [message for message in caplog.messages if "earlier prediction" in message]
        endings = [message.endswith(f"earlier prediction: {n_earlier}") for message in messages]
        assert endings == [True] * (n_earlier > 0)
    assert len(files_in(tmp_path / "out" / "overlays")) == 3


def test_each_overlay_has_its_own_path(detector: Detector, tmp_path: Path) -> None:
    names = ["a.png", "a.png.jpg/b.png", "a.png.jpg_/b.png", "A.PNG.JPG/b.png", "b", "b.jpg/c"]
    names.append(f"{'l' * 250}.jpg/a.png")
    write_images(tmp_path / "in", names)
    for _ in range(2):
        predict(detector, [str(tmp_path / "in")], str(tmp_path / "out"))
        assert len(files_in(tmp_path / "out" / "overlays")) == len(names)


def test_the_folder_of_a_run_is_refused_as_output(detector: Detector, tmp_path: Path) -> None:
    write_images(tmp_path / "in", ["1.png"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is the folder of a run"):
        predict(detector, [str(tmp_path / "in")], str(tmp_path / "out"))
    assert files_in(tmp_path / "out") == {"config.json"}


# Interruptions


def test_an_interrupted_prediction_is_resumed(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_images(tmp_path / "in", [f"{i:02}.png" for i in range(30)])
    arguments = [str(tmp_path / "in")], str(tmp_path / "out")
    with monkeypatch.context() as patch:
        count_scored(patch, stop_after=2)
        with pytest.raises(KeyboardInterrupt):
            predict(detector, *arguments)
    assert not (tmp_path / "out" / "predictions.csv").exists()
    # Meanwhile, of the 16 scored images two are changed (one keeps its size and time), one is
    # touched and one is removed; a new image is added.
    shutil.copyfile(paths[20], paths[3])
    shutil.copy2(paths[6], tmp_path / "same size and time")
    (tmp_path / "same size and time").rename(paths[6])
    os.utime(paths[4])
    paths[5].unlink()
    write_images(tmp_path / "in", ["00a.png"])
    with monkeypatch.context() as patch:
        counts = count_scored(patch)
        predict(detector, *arguments)
        assert sum(counts) == 30 - 16 + 4
    resumed = read_table(tmp_path / "out" / "predictions.csv")
    assert [row["path"] for row in resumed] == sorted(map(str, (tmp_path / "in").iterdir()))
    # A further run starts again and gives the same scores.
    with monkeypatch.context() as patch:
        counts = count_scored(patch)
        predict(detector, *arguments)
        assert sum(counts) == 30
    for row, other in zip(resumed, read_table(tmp_path / "out" / "predictions.csv"), strict=True):
        assert row["path"] == other["path"]
        assert float(row["score"]) == pytest.approx(float(other["score"]), rel=1e-4)


def test_a_prediction_is_not_resumed_with_another_detector(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "in", [f"{i:02}.png" for i in range(12)])
    detector = with_evaluation(detector, explanation="none")
    other_weights = make_variables(dataclasses.replace(CONFIG, seed=1))
    others = {
        "weights": dataclasses.replace(detector, variables=other_weights),
        "threshold": with_evaluation(detector, confidence=0.99),
        "overlays": with_evaluation(detector, overlays="anomalous"),
        "same but for the batch": with_evaluation(detector, batch_size=3),
    }
    for change, other in others.items():
        output = str(tmp_path / change)
        with monkeypatch.context() as patch:
            count_scored(patch, stop_after=1)
            with pytest.raises(KeyboardInterrupt):
                predict(detector, [str(tmp_path / "in")], output)
        with monkeypatch.context() as patch:
            counts = count_scored(patch)
            predict(other, [str(tmp_path / "in")], output)
        assert sum(counts) == (4 if "same" in change else 12), change


def test_strict_stops_and_keeps_earlier_results(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_images(tmp_path / "in", [f"{i:02}.png" for i in range(20)])
    good = paths[9].read_bytes()
    paths[9].write_text("no image")
    paths[12].write_text("no image")
    arguments = [str(tmp_path / "in")], str(tmp_path / "out")
    with pytest.raises(UserError, match=r"09\.png"):
        predict(detector, *arguments, strict=True)
    assert not (tmp_path / "out" / "predictions.csv").exists()
    paths[9].write_bytes(good)
    counts = count_scored(monkeypatch)
    assert predict(detector, *arguments).n_unreadable == 1
    assert sum(counts) == 20 - 8 - 1


def test_a_damaged_database_is_replaced(detector: Detector, tmp_path: Path) -> None:
    write_images(tmp_path / "in", ["1.png"])
    for content in (b"", b"no database", b"SQLite format 3\0" + bytes(5000)):
        (tmp_path / "out" / ".progress").mkdir(parents=True)
        (tmp_path / "out" / ".progress" / "results.sqlite").write_bytes(content)
        assert predict(detector, [str(tmp_path / "in")], str(tmp_path / "out")).n_images == 1
        assert not (tmp_path / "out" / ".progress").exists()


def test_a_database_damaged_in_the_middle_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "results.sqlite"
    progress = Progress(path, "one")
    results = [FileResult(f"{i:04}.png", f"{i}", 1.25, "", "") for i in range(2000)]
    progress.add(results)
    progress.close()
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + b"\xff" * 8192 + content[middle + 8192 :])
    progress = Progress(path, "one")
    assert not any(progress.get(result.name) for result in results)
    progress.add(results)
    assert progress.get("1999.png") == results[1999]
    progress.remove()
    assert [str(path) in message and "damaged" in message for message in caplog.messages] == [True]


def test_a_second_process_is_refused(detector: Detector, tmp_path: Path) -> None:
    write_images(tmp_path / "in", ["1.png"])
    arguments = [str(tmp_path / "in")], str(tmp_path / "out")
    with (
        Workdir(tmp_path / "out" / ".progress").lock(),
        pytest.raises(UserError, match=rf"={tmp_path}/out: another process is at work there"),
    ):
        predict(detector, *arguments)
    assert predict(detector, *arguments).n_images == 1


def test_progress_returns_the_stored_results(tmp_path: Path) -> None:
    results = [
        FileResult("a.png", f"5 {2**64}", 1.25, "like the labelled Schramme é", ""),
        FileResult("\udcff\n.png", "", None, "", "cannot read '\udcff\n.png'"),
        FileResult("b.png", "5 3", -0.1, "like the labelled kr\udce4tzer", ""),
    ]
    path = tmp_path / "a #?%\udcff.sqlite"
    progress = Progress(path, "one")
    progress.add([FileResult("b.png", "1", None, "", "damaged")])
    progress.add(results)
    progress.close()
    progress = Progress(path, "one")
    assert [progress.get(result.name) for result in results] == results
    assert progress.get("c.png") is None
    progress.close()
    progress = Progress(path, "two")
    assert progress.get("a.png") is None
    progress.remove()
    assert not list(tmp_path.iterdir())


def test_results_of_any_number_of_processes_are_reused(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "in", [f"{i:02}.png" for i in range(30)])
    arguments = [str(tmp_path / "in")], str(tmp_path / "out")
    progress = tmp_path / "out" / ".progress"
    for index in (7, 2):  # databases as left by killed processes of these ranks
        with monkeypatch.context() as patch:
            count_scored(patch, stop_after=1)
            with pytest.raises(KeyboardInterrupt):
                predict(detector, *arguments)
        (progress / "results-00000.sqlite").rename(progress / f"results-{index:05}.sqlite")
    with monkeypatch.context() as patch:
        counts = count_scored(patch)
        predict(detector, *arguments)
    assert sum(counts) == 30 - 2 * 8
    rows = read_table(tmp_path / "out" / "predictions.csv")
    assert [row["path"] for row in rows] == sorted(map(str, (tmp_path / "in").iterdir()))
    assert not progress.exists()


# The command line


def test_the_command_line(main: Main, trained: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "in", NAMES)
    (tmp_path / "other.png").write_text("no image")
    flags = ("--mode=predict", f"--workdir={trained}", f"--output={tmp_path / 'out'}")
    result = main(*flags, f"--input={tmp_path / 'in'}")
    assert result.returncode == 0, result.stderr
    assert str(tmp_path / "out" / "predictions.csv") in result.stdout
    rows = read_table(tmp_path / "out" / "predictions.csv")
    detector = Detector.restore(trained)
    pixels = np.stack([load_image(path.read_bytes(), "", SQUARE) for path in images])
    scores = dict(zip(map(str, images), detector.score(pixels).scores, strict=True))
    for row in rows:
        assert float(row["score"]) == pytest.approx(scores[row["path"]], rel=1e-4, abs=1e-5)

    both = (f"--input={tmp_path / 'in'}", f"--input={tmp_path / 'other.png'}")
    result = main(*flags, *both)
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"1 of {len(NAMES) + 1} images could not be read" in errors[0]
    assert len(read_table(tmp_path / "out" / "predictions.csv")) == len(NAMES) + 1

    strict = main(*flags, *both, "--strict")
    assert strict.returncode == 1
    assert "error: image '" in strict.stderr
    assert "other.png' is damaged: its content is of no image type" in strict.stderr
    assert "Traceback" not in strict.stderr + result.stderr


def test_a_killed_prediction_is_resumed(trained: Path, tmp_path: Path) -> None:
    names = [f"{i:03}.png" for i in range(200)]
    write_images(tmp_path / "in", names)
    out = tmp_path / "out"
    command = ["-m", "devnet_jax.main", "--mode=predict", f"--workdir={trained}"]
    command += [f"--input={tmp_path / 'in'}", f"--output={out}"]
    process = fork_server.start(command, environment())
    while len(list(out.glob("overlays/*.jpg"))) < 60:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (out / "predictions.csv").exists()
    for overlay in out.glob("overlays/*.jpg"):
        with Image.open(overlay) as image:
            image.load()  # raises if the file is incomplete
    result = fork_server.run(command, environment())
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "already have a score" in line]
    done, _, total, *_ = line.split()
    assert 60 - 8 <= int(done) < int(total) == 200
    rows = read_table(out / "predictions.csv")
    assert [Path(row["path"]).name for row in rows] == names
    assert all(row["score"] for row in rows)
    overlays = {f"overlays/{name}.jpg" for name in names}
    assert files_in(out) == {"predictions.csv", "report.html"} | overlays
