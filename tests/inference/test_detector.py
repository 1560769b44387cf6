"""Tests of `Detector`: training from a folder, loading, and names of settings."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from devnet_jax import Detector
from devnet_jax.config import Config, for_folder, for_list, full_name, with_settings
from devnet_jax.errors import UserError
from devnet_jax.evaluation.explain import explain
from devnet_jax.inference import forward
from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.runtime import progress
from devnet_jax.runtime.workdir import Workdir
from tests.conftest import CORE_SETTINGS, IMAGE_SIZE, REPOSITORY, TINY_SETTINGS

PARTS = ("train_normal", "train_anomaly", "calibration", "test")


def test_trained_from_a_folder(parts: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    settings = {**TINY_SETTINGS, **CORE_SETTINGS, "data_dir": str(tmp_path / "data")}
    del settings["model.detector"]  # devcore is the default for a folder
    detector = Detector.train(parts, workdir, **settings)
    assert detector.step == 5
    assert detector.kinds
    assert len(detector.calibration_scores) == 2  # a fifth of nine
    assert (workdir / "report.html").exists()
    told = EventAccumulator(str(workdir / "tensorboard" / "eval"), {"images": 0}).Reload()
    metrics = json.loads((workdir / "eval" / "metrics.json").read_text())
    (auroc,) = told.Scalars("eval/image_auroc")
    assert (auroc.step, auroc.value) == (5, pytest.approx(metrics["image_auroc"]))
    classes = Counter(tag.split("/")[0] for tag in told.Tags()["images"])
    assert classes["good"] == 3  # of five
    assert 1 <= classes["scratch"] <= 3
    (strip,) = told.Images(told.Tags()["images"][0])
    pixels = np.asarray(Image.open(io.BytesIO(strip.encoded_image_string)))
    assert pixels.shape == (IMAGE_SIZE, 3 * IMAGE_SIZE, 3)
    assert pixels[:, : 2 * IMAGE_SIZE].std() > 0  # the image, and its map
    assert pixels[:, 2 * IMAGE_SIZE :].max() == 0  # no mask

    image = next((parts / "test" / "scratch").iterdir())
    again = Detector.load(workdir)
    np.testing.assert_array_equal(detector.score(image).scores, again.score(image).scores)
    again.explain(image).overlay.save(tmp_path / "where.png")
    assert (tmp_path / "where.png").stat().st_size > 100


def test_trained_from_a_list_that_grows(
    parts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It shows its progress, unless it is told not to."""
    monkeypatch.setattr(progress, "_SAID_AFTER", 0.0)  # however short a phase is
    # Good pictures by relative paths, which lead out of the list's folder; defects by absolute.
    pictures = {
        os.path.relpath(file, tmp_path) if file.parent.name == "good" else str(file): file
        for file in sorted(parts.rglob("*.png"))
    }
    rows = [f"{path},{file.parent.name}" for path, file in pictures.items()]
    labels, workdir = tmp_path / "labels.csv", tmp_path / "run"
    settings = {**TINY_SETTINGS, **CORE_SETTINGS, "data_dir": str(tmp_path / "data")}
    labels.write_text("\n".join(["path,defect", *rows[:-2]]))
    Detector.train(labels, workdir, **settings)
    assert "fitting the head: 6 fits" in capsys.readouterr().err
    before = json.loads((workdir / "split.json").read_text())
    listed = list(pictures)
    assert {path for part in PARTS for path in before[part]} == set(listed[:-2])

    labels.write_text("\n".join(["path,defect", *rows]))
    Detector.train(str(labels), workdir, verbose=False, **settings)
    assert "fitting the head" not in capsys.readouterr().err
    after = json.loads((workdir / "split.json").read_text())
    assert all(set(before[part]) <= set(after[part]) for part in PARTS)
    assert {path for part in PARTS for path in after[part]} == set(listed)

    config = with_settings(for_list(labels), {full_name(k): v for k, v in settings.items()})
    explain(config, Workdir(workdir))
    maps = list((workdir / "explain" / "maps").rglob("*.npy"))
    assert len(maps) == len(after["test"])  # not beside the pictures


@pytest.mark.parametrize(
    ("config", "settings", "location"),
    [("folder", for_folder, "manual_dir"), ("image_list", for_list, "labels")],
)
def test_settings_from_python_are_those_of_the_config(
    parts: Path, config: str, settings: Callable[[Path], Config], location: str
) -> None:
    namespace: dict[str, object] = {}
    exec((REPOSITORY / "configs" / f"{config}.py").read_text(), namespace)
    file = Config.from_dict(namespace["get_config"]())  # type: ignore[operator]
    assert settings(parts) == with_settings(file, {f"dataset.{location}": str(parts)})


def test_the_deviation_network_on_a_folder_has_its_own_image_size(parts: Path) -> None:
    config = for_folder(parts)
    assert (config.model.detector, config.dataset.image_size) == ("devcore", 224)
    config = with_settings(config, {"model.detector": "devnet"})
    assert (config.dataset.image_size, config.evaluation.explanation) == (448, "gradient")
    small = with_settings(for_folder(parts), {"dataset.image_size": 96})
    assert with_settings(small, {"model.detector": "devnet"}).dataset.image_size == 96


def test_names_of_settings() -> None:
    assert full_name("n_anomaly") == "dataset.n_anomaly"
    assert full_name("seed") == "seed"
    assert full_name("train.batch_size") == "train.batch_size"
    with pytest.raises(UserError, match=r"train\.batch_size and evaluation\.batch_size"):
        full_name("batch_size")
    with pytest.raises(UserError, match="did you mean"):
        full_name("n_anomally")
    with pytest.raises(UserError, match="a group"):
        full_name("train")


def test_one_picture_is_computed_as_one_by_a_program_and_as_a_batch_in_a_run(
    trained: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []

    def score_images(model: Any, variables: Any, images: Any) -> Any:
        computed.append(len(images))
        return forward.score_images(model, variables, images)

    monkeypatch.setattr("devnet_jax.inference.detector.score_images", score_images)
    picture = parts / "test" / "stain" / "000.png"
    in_a_run = TrainedDetector.restore(trained).score(picture).scores
    np.testing.assert_allclose(Detector.load(trained).score(picture).scores, in_a_run, rtol=1e-4)
    assert computed == [TINY_SETTINGS["evaluation.batch_size"], 1]
