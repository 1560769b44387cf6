"""Tests of runs whose folder has grown."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from devnet_jax import Detector
from tests.conftest import REPOSITORY, Main, environment
from tests.saved_runs import parameters

DEFECT = (30, 200, 60)


@pytest.fixture
def flags(parts: Path, tmp_path: Path, tiny_core: tuple[str, ...]) -> tuple[str, ...]:
    """Flags of a run of DevCore over a copy of `parts`, which may grow: `tmp_path`/images."""
    return flags_of_copy(tiny_core, parts, tmp_path)


@pytest.fixture
def devnet_flags(parts: Path, tmp_path: Path, tiny: tuple[str, ...]) -> tuple[str, ...]:
    """The same for the paper's network."""
    return flags_of_copy(tiny, parts, tmp_path)


def flags_of_copy(flags: tuple[str, ...], parts: Path, tmp_path: Path) -> tuple[str, ...]:
    shutil.copytree(parts, tmp_path / "images")
    return (
        *flags,
        f"--config.dataset.manual_dir={tmp_path / 'images'}",
        f"--config.dataset.data_dir={tmp_path / 'data'}",
        f"--workdir={tmp_path / 'run'}",
    )


def grow(folder: Path, kinds: dict[str, int]) -> None:
    """Adds images of these kinds; those of test/crack have a green line."""
    rng = np.random.default_rng(11)
    for kind, count in kinds.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.repeat(rng.integers(90, 160, (40, 48, 1), dtype=np.uint8), 3, axis=2)
            if kind == "test/crack":
                pixels[:, 20 + i : 24 + i] = DEFECT
            Image.fromarray(pixels).save(folder / kind / f"new{i}.png")


def split_of(run: Path) -> dict[str, list[str]]:
    return json.loads((run / "split.json").read_text())


def test_new_pictures_train_and_every_picture_keeps_its_part(
    main: Main, flags: tuple[str, ...], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert main(*flags).returncode == 0
    before, step = split_of(run), Detector.restore(run).step
    ordinary = (run / "ordinary.json").read_bytes()
    grow(tmp_path / "images", {"train/good": 5, "test/crack": 3})

    result = main(*flags, "--config.dataset.n_anomaly=5")
    assert result.returncode == 0, result.stderr
    assert "has grown from 22 to 30 images" in result.stderr
    after = split_of(run)
    for part in ("train_normal", "train_anomaly", "calibration", "test"):
        assert set(before[part]) <= set(after[part])
    assert len(after["train_anomaly"]) == 5
    assert sum("crack" in path for path in after["train_anomaly"]) == 2
    assert len(after["calibration"]) == len(before["calibration"]) + 1  # a fifth of five
    detector = Detector.restore(run)
    assert detector.step > step
    assert "crack" in detector.kinds
    assert (run / "ordinary.json").read_bytes() != ordinary
    metrics = json.loads((run / "eval" / "metrics.json").read_text())
    assert metrics["step"] == detector.step

    # Nothing is new, so nothing is trained.
    again = main(*flags, "--config.dataset.n_anomaly=5")
    assert again.returncode == 0, again.stderr
    assert Detector.restore(run).step == detector.step


def test_labels_that_train_cannot_be_taken_back(
    main: Main, flags: tuple[str, ...], tmp_path: Path
) -> None:
    assert main(*flags).returncode == 0
    before = parameters(tmp_path / "run")
    result = main(*flags, "--config.dataset.n_anomaly=2")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: config.dataset.n_anomaly = 2: 3 ")
    assert parameters(tmp_path / "run").keys() == before.keys()
    assert main("--mode=eval", flags[-1]).returncode == 0


@pytest.mark.slow
def test_the_network_goes_on_with_new_pictures_if_it_is_told_to(
    main: Main, devnet_flags: tuple[str, ...], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert main(*devnet_flags).returncode == 0
    before = split_of(run)
    grow(tmp_path / "images", {"train/good": 5, "test/crack": 3})

    result = main(*devnet_flags, "--config.train.epochs=3")
    assert result.returncode == 0, result.stderr
    assert "only the images named in split.json are used" in result.stderr
    assert "new images train with --config.train.warm_start=True" in result.stderr
    assert split_of(run) == before
    ordinary = (run / "ordinary.json").read_bytes()
    assert Detector.restore(run).step == 6

    told = (*devnet_flags, "--config.train.warm_start=True", "--config.dataset.n_anomaly=5")
    result = main(*told, "--config.train.epochs=3")
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: config.train.epochs = 3: data set images has grown")
    assert "use more" in last
    assert split_of(run) == before

    result = main(*told, "--config.train.epochs=4")
    assert result.returncode == 0, result.stderr
    after = split_of(run)
    for part in ("train_normal", "train_anomaly", "calibration", "test"):
        assert set(before[part]) <= set(after[part])
    assert len(after["train_anomaly"]) == 5
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["step"] for epoch in epochs] == [2, 4, 6, 8]  # it went on, and not anew
    assert (run / "ordinary.json").read_bytes() != ordinary  # new good images are not odd
    metrics = json.loads((run / "eval" / "metrics.json").read_text())
    assert (metrics["step"], metrics["n_test_anomaly"]) == (8, 6)
    assert main(*told, "--config.train.epochs=4").returncode == 0  # nothing is new


@pytest.mark.slow
def test_the_network_killed_after_its_split_has_grown_resumes_with_it(
    main: Main, devnet_flags: tuple[str, ...], tmp_path: Path
) -> None:
    """The split is written before the first step; a run that ends there goes on as if it had not.

    The reference was not interrupted. A copy gets its split.json and config.json, as a kill before
    the first checkpoint leaves them.
    """
    run, killed = tmp_path / "run", tmp_path / "killed"
    assert main(*devnet_flags).returncode == 0
    shutil.copytree(run, killed)
    grow(tmp_path / "images", {"train/good": 5})
    told = ("--config.train.warm_start=True", "--config.train.epochs=3")
    assert main(*devnet_flags, *told).returncode == 0
    shutil.copy(run / "split.json", killed)
    for config in (None, run / "config.json"):  # killed before and after the second file
        copy = tmp_path / f"again{config is None}"
        shutil.copytree(killed, copy)
        if config is not None:
            shutil.copy(config, copy)
        result = main(*devnet_flags[:-1], *told, f"--workdir={copy}")
        assert result.returncode == 0, result.stderr
        assert split_of(copy) == split_of(run)
        for name, value in parameters(run).items():
            np.testing.assert_array_equal(parameters(copy)[name], value, err_msg=name)


@pytest.mark.slow
def test_killed_at_any_moment_it_grows_in_the_next_run(
    main: Main, flags: tuple[str, ...], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert main(*flags).returncode == 0
    grow(tmp_path / "images", {"train/good": 5})
    shutil.copytree(run, tmp_path / "reference")
    reference = [*flags[:-1], f"--workdir={tmp_path / 'reference'}"]
    started = time.monotonic()
    assert main(*reference, fork=False).returncode == 0
    duration = time.monotonic() - started
    for share in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9):
        process = subprocess.Popen(
            [sys.executable, "-m", "devnet_jax.main", *flags],
            cwd=REPOSITORY,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(share * duration)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    result = main(*flags)
    assert result.returncode == 0, result.stderr
    assert len(split_of(run)["train_normal"]) == len(
        split_of(tmp_path / "reference")["train_normal"]
    )
    ours, theirs = parameters(run), parameters(tmp_path / "reference")
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
