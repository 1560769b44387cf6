"""Tests of DevCore's runs: repeated, with few labels or none, on several devices and processes."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from devnet_jax import Detector
from devnet_jax.config import Config, with_settings
from devnet_jax.errors import UserError
from devnet_jax.models import to_torch_state_dict
from devnet_jax.models.build import abstract_variables, make_model, make_variables
from devnet_jax.models.devcore import COMPONENTS, DevCore
from devnet_jax.runtime.workdir import Workdir, read_config
from devnet_jax.training.devcore import FittedDevCore, fit_devcore
from devnet_jax.training.frozen import FeatureReader, FrozenNetwork, frozen_features
from tests.conftest import CORE_SETTINGS, IMAGE_SIZE, TINY_SETTINGS, Main
from tests.data.test_store import ArrayReader
from tests.distributed.test_cluster import run as run_processes
from tests.saved_runs import parameters


def train(main: Main, flags: tuple[str, ...], workdir: Path, *more: str, devices: int = 1) -> str:
    """Trains a run; returns what it has printed."""
    result = main(*flags, f"--workdir={workdir}", *more, devices=devices)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def scores(file: Path) -> dict[str, float]:
    with file.open(newline="") as lines:
        return {row["path"]: float(row["score"]) for row in csv.DictReader(lines)}


def assert_equal(workdir: Path, other: Path) -> None:
    """Compares all variables of two runs bit by bit."""
    ours, theirs = parameters(workdir), parameters(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


@pytest.fixture
def folder(parts: Path, tmp_path: Path) -> Callable[..., tuple[str, ...]]:
    """Copies some kinds of images of `parts`; returns the flags that name the copy."""

    def copy(*kinds: str, n_good: int | None = None) -> tuple[str, ...]:
        images = tmp_path / "images"
        for kind in kinds:
            for file in sorted((parts / kind).iterdir())[: n_good if "train" in kind else None]:
                (images / kind).mkdir(parents=True, exist_ok=True)
                shutil.copy(file, images / kind)
        return (
            f"--config.dataset.manual_dir={images}",
            f"--config.dataset.data_dir={tmp_path / 'data'}",
        )

    return copy


def test_a_run_writes_what_it_has_learned(trained_core: Path) -> None:
    learned = json.loads((trained_core / "learned.json").read_text())
    split = json.loads((trained_core / "split.json").read_text())
    assert learned["step"] == 5
    assert learned["kinds"] == sorted({Path(path).parent.name for path in split["train_anomaly"]})
    assert tuple(learned["weights"]) == COMPONENTS
    assert all(weight >= 0 for weight in learned["weights"].values())
    assert len(learned["normal_scores"]) == len(split["train_normal"])
    assert len(learned["anomaly_scores"]) == len(split["train_anomaly"]) == 3
    assert not (trained_core / "metrics.jsonl").exists()
    assert [path.name for path in (trained_core / "checkpoints").iterdir()] == ["5"]
    metrics = json.loads((trained_core / "eval" / "metrics.json").read_text())
    assert metrics["step"] == 5
    assert 0 <= metrics["image_auroc"] <= 1
    assert Detector.restore(trained_core).kinds == tuple(learned["kinds"])


def test_the_variables_have_the_shapes_of_the_settings(trained_core: Path) -> None:
    detector = Detector.restore(trained_core)
    expected = abstract_variables(read_config(Workdir(trained_core)))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), detector.variables) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), expected
    )


def test_evaluating_again_writes_the_same_files(
    main: Main, trained_core: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained_core, copy)
    shutil.rmtree(copy / "eval")
    result = main("--mode=eval", f"--workdir={copy}")
    assert result.returncode == 0, result.stderr
    for name in ("metrics.json", "scores.csv"):
        assert (copy / "eval" / name).read_bytes() == (trained_core / "eval" / name).read_bytes()


def test_training_again_gives_the_same_detector(
    main: Main, tiny_core: tuple[str, ...], trained_core: Path, tmp_path: Path
) -> None:
    train(main, tiny_core, tmp_path / "run")
    assert_equal(tmp_path / "run", trained_core)
    learned = (tmp_path / "run" / "learned.json").read_bytes()
    assert learned == (trained_core / "learned.json").read_bytes()


def test_a_finished_run_is_not_trained_again(
    main: Main, tiny_core: tuple[str, ...], trained_core: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained_core, copy)
    before = (copy / "learned.json").stat().st_mtime_ns
    printed = train(main, tiny_core, copy)
    assert (copy / "learned.json").stat().st_mtime_ns == before
    assert "comparing" not in printed
    assert_equal(copy, trained_core)
    changed = main(*tiny_core, f"--workdir={copy}", "--config.devcore.memory_size=65")
    assert changed.returncode == 1
    assert "config.devcore.memory_size is 65, was 64" in changed.stderr.splitlines()[-1]


def test_without_labelled_anomalies(main: Main, tiny_core: tuple[str, ...], tmp_path: Path) -> None:
    train(main, tiny_core, tmp_path, "--config.dataset.n_anomaly=0")
    learned = json.loads((tmp_path / "learned.json").read_text())
    assert (learned["step"], learned["kinds"], learned["anomaly_scores"]) == (1, [], [])
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["step"] == 1
    assert 0 <= metrics["image_auroc"] <= 1
    assert len(scores(tmp_path / "eval" / "scores.csv")) == 5 + 8
    params = Detector.restore(tmp_path).variables["params"]
    assert not np.any(params["position_head"]["direction"])
    assert not np.any(params["image_head"]["coarse"]["direction"])


@pytest.mark.parametrize("n_anomaly", [1, 2])
def test_with_few_labelled_anomalies(
    main: Main, tiny_core: tuple[str, ...], tmp_path: Path, n_anomaly: int
) -> None:
    train(main, tiny_core, tmp_path, f"--config.dataset.n_anomaly={n_anomaly}")
    learned = json.loads((tmp_path / "learned.json").read_text())
    assert len(learned["kinds"]) in range(1, n_anomaly + 1)
    # A single label cannot be left out.
    assert len(learned["anomaly_scores"]) == (0 if n_anomaly == 1 else 2)


def test_a_folder_of_good_images_alone(
    main: Main,
    tiny_core: tuple[str, ...],
    folder: Callable[..., tuple[str, ...]],
    parts: Path,
    tmp_path: Path,
) -> None:
    workdir, output = tmp_path / "run", tmp_path / "predicted"
    train(main, tiny_core, workdir, *folder("train/good"), "--config.dataset.n_anomaly=0")
    assert (workdir / "calibration.json").exists()
    result = main(
        "--mode=predict", f"--workdir={workdir}", f"--input={parts / 'test'}", f"--output={output}"
    )
    assert result.returncode == 0, result.stderr
    with (output / "predictions.csv").open(newline="") as lines:
        assert len(list(csv.DictReader(lines))) == 5 + 8


def test_one_good_image_is_too_few(
    main: Main,
    tiny_core: tuple[str, ...],
    folder: Callable[..., tuple[str, ...]],
    tmp_path: Path,
) -> None:
    flags = folder("train/good", n_good=1)
    more = ("--config.dataset.n_anomaly=0", "--config.dataset.calibration=0")
    result = main(*tiny_core, f"--workdir={tmp_path / 'run'}", *flags, *more)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith(
        "error: normal images for training: 1; the memory"
    )
    assert not (tmp_path / "run").exists()


def test_explaining_and_predicting(
    main: Main, trained_core: Path, parts: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained_core, copy)
    result = main("--mode=explain", f"--workdir={copy}")
    assert result.returncode == 0, result.stderr
    assert list((copy / "explain").rglob("*.npy"))
    output = tmp_path / "predicted"
    result = main(
        "--mode=predict", f"--workdir={copy}", f"--input={parts / 'test'}", f"--output={output}"
    )
    assert result.returncode == 0, result.stderr
    with (output / "predictions.csv").open(newline="") as lines:
        predicted = {row["path"]: float(row["score"]) for row in csv.DictReader(lines)}
    tested = scores(trained_core / "eval" / "scores.csv")
    for path, score in tested.items():
        (found,) = (value for name, value in predicted.items() if name.endswith(path[4:]))
        assert found == pytest.approx(score, rel=1e-5)


@pytest.fixture
def fit_with_weights(tmp_path: Path) -> Callable[[float], FittedDevCore | None]:
    """Fits DevCore to noise, with the random weights of a backbone times a factor."""

    def fit(factor: float) -> FittedDevCore | None:
        settings = {**TINY_SETTINGS, **CORE_SETTINGS, "dataset.n_anomaly": 2}
        network = make_variables(with_settings(Config(), {**TINY_SETTINGS, "seed": 1}))
        state = {k: factor * v for k, v in to_torch_state_dict(network).items()}
        weights = tmp_path / "weights.npz"
        np.savez(weights, **{k: v for k, v in state.items() if not k.startswith("conv.")})
        config = with_settings(Config(), {**settings, "model.pretrained": str(weights)})
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (8, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
        return fit_devcore(config, ArrayReader(images), 6, [0, 1])

    return fit


@pytest.mark.parametrize("flip", [(), (0,), (1,), (0, 1)])
def test_features_of_flipped_images(flip: tuple[int, ...]) -> None:
    config = with_settings(Config(), {**TINY_SETTINGS, **CORE_SETTINGS})
    model, variables = make_model(config), make_variables(config)
    assert isinstance(model, DevCore)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    network = FrozenNetwork(model, variables, variables)
    reader = FeatureReader(config, network, ArrayReader(images))
    (tiles,) = reader.read(np.array([2, 0]), "reading", flip)
    flipped = np.flip(images[[2, 0]], tuple(axis + 1 for axis in flip))
    expected = frozen_features(model, variables, flipped)
    assert tiles.owners.tolist() == [2, 0]
    assert tiles.numbers.tolist() == [0, 0]
    for found, wanted in zip(
        jax.tree.leaves(tiles.features), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)


def test_large_features_do_not_overflow(
    fit_with_weights: Callable[[float], FittedDevCore | None],
) -> None:
    fitted = fit_with_weights(1000.0)
    assert fitted is not None
    params = fitted.variables["params"]
    head = params["position_head"] | params["image_head"]
    assert np.square(head["memory"]).mean() > 65504**2  # beyond float16
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(head))
    assert np.isfinite(fitted.head.normal_scores).all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_one_position_or_all_make_up_the_local_score(share: float) -> None:
    settings = {**TINY_SETTINGS, **CORE_SETTINGS, "devcore.top_positions": share}
    images = np.random.default_rng(0).integers(0, 256, (8, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    fitted = fit_devcore(with_settings(Config(), settings), ArrayReader(images), 6, [0, 1])
    assert fitted is not None
    assert np.isfinite(fitted.head.anomaly_scores).all()


def test_copies_of_one_good_image_and_a_label() -> None:
    config = with_settings(Config(), {**TINY_SETTINGS, **CORE_SETTINGS})
    images = np.full((5, IMAGE_SIZE, IMAGE_SIZE, 3), 100, np.uint8)
    images[4] = np.random.default_rng(0).integers(0, 256, images[4].shape)
    fitted = fit_devcore(config, ArrayReader(images), 4, [0])
    assert fitted is not None
    params = fitted.variables["params"]
    head = params["position_head"] | params["image_head"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(head))
    assert np.abs(head["direction"]).max() > 0  # it has learned


def test_features_that_are_not_finite_are_refused(
    fit_with_weights: Callable[[float], FittedDevCore | None],
) -> None:
    with pytest.raises(UserError, match="features of the images are not finite"):
        fit_with_weights(np.nan)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [(), ("--config.dataset.tiles=2x1", "--config.dataset.fit=letterbox")]
)
def test_two_devices_score_the_same(
    main: Main, tiny_core: tuple[str, ...], tmp_path: Path, shape: tuple[str, ...]
) -> None:
    for devices in (1, 2):
        train(main, tiny_core, tmp_path / str(devices), *shape, devices=devices)
    one, two = (scores(tmp_path / str(n) / "eval" / "scores.csv") for n in (1, 2))
    assert one.keys() == two.keys()
    np.testing.assert_allclose([*one.values()], [*two.values()], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_two_processes_give_the_same_detector(
    tiny_core: tuple[str, ...], trained_core: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    run_processes([*tiny_core, f"--workdir={workdir}"], processes=2, devices=1)
    assert_equal(workdir, trained_core)
    assert scores(workdir / "eval" / "scores.csv") == scores(trained_core / "eval" / "scores.csv")
    one, two = (
        (run / "report.html").read_text().split('id="labelled"')[1].split("</section>")[0]
        for run in (workdir, trained_core)
    )
    assert re.findall(r"score [-\d.]+|title=.*", one) == re.findall(r"score [-\d.]+|title=.*", two)


def test_an_unknown_detector_in_the_name_of_the_config_file(main: Main, tmp_path: Path) -> None:
    result = main("--config=configs/folder.py:devcoar", f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: config.model.detector = 'devcoar': unknown; did you mean")
    assert "devcore" in line
