"""A new user's story: defects are found, put into the folder and learned, and the gain is shown."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from devnet_jax import Detector
from tests.conftest import Main

PARTS = ("train_normal", "train_anomaly", "calibration", "test")


def add_cracks(folder: Path, count: int) -> None:
    """Adds pictures of a new kind of defect: grey noise with a green line."""
    rng = np.random.default_rng(11)
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.repeat(rng.integers(90, 160, (40, 48, 1), dtype=np.uint8), 3, axis=2)
        pixels[:, 20 + i : 24 + i] = (30, 200, 60)
        Image.fromarray(pixels).save(folder / f"crack{i}.png")


@pytest.fixture
def flags(parts: Path, tmp_path: Path, tiny_core: tuple[str, ...]) -> tuple[str, ...]:
    """Flags of a run over a copy of `parts` with the default number of labels."""
    shutil.copytree(parts, tmp_path / "images")
    return (
        *tiny_core,
        "--config.dataset.n_anomaly=10",
        f"--config.dataset.manual_dir={tmp_path / 'images'}",
        f"--config.dataset.data_dir={tmp_path / 'data'}",
        f"--workdir={tmp_path / 'run'}",
    )


def test_three_new_defects_train_and_what_they_change_is_shown(
    main: Main, flags: tuple[str, ...], tmp_path: Path
) -> None:
    run, before = tmp_path / "run", tmp_path / "before"
    three = "--config.dataset.n_anomaly=3"  # some of the eight defects test
    assert main(*flags, three).returncode == 0
    shutil.copytree(run, before)
    add_cracks(tmp_path / "images" / "train" / "crack", 3)

    result = main(*flags, three)
    assert result.returncode == 0, result.stderr
    old, new = (json.loads((path / "split.json").read_text()) for path in (before, run))
    for part in PARTS:
        added = (
            {f"train/crack/crack{i}.png" for i in range(3)} if part == "train_anomaly" else set()
        )
        assert set(new[part]) == {*old[part], *added}
    assert "crack: 3 train, 0 test" in result.stderr

    out = tmp_path / "compared"
    result = main("--mode=compare", f"--workdir={run}", f"--against={before}", f"--output={out}")
    assert result.returncode == 0, result.stderr
    found = json.loads((out / "compare.json").read_text())
    assert (found["n_normal"], found["n_anomaly"], found["n_left_out"]) == (5, 5, 0)
    assert {"auroc_difference_low", "changed", "kinds"} <= found.keys()
    assert "A" in result.stdout
    assert f"B              devcore of images ({before})" in result.stdout


@pytest.mark.parametrize("place", ["train", "test"])
@pytest.mark.parametrize(
    "count", [pytest.param(10, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow), 1]
)
def test_ten_three_or_one_defects_make_a_detector(
    main: Main, flags: tuple[str, ...], tmp_path: Path, place: str, count: int
) -> None:
    shutil.rmtree(tmp_path / "images" / "test")
    add_cracks(tmp_path / "images" / place / "crack", count)
    result = main(*flags)
    assert result.returncode == 0, result.stderr
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert Counter(map(Path, split["train_anomaly"])) == Counter(
        path.relative_to(tmp_path / "images")
        for path in (tmp_path / "images" / place / "crack").iterdir()
    )
    scored = Detector.load(tmp_path / "run").score(
        tmp_path / "images" / place / "crack" / "crack0.png"
    )
    assert np.isfinite(scored.scores).all()
