"""Tests that all ways to score agree for pictures of any shape: regions, padding, crops, tiles."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from devnet_jax import Detector
from tests.conftest import IMAGE_SIZE, Main
from tests.export.test_export import column, export_run, images_of
from tests.served import started

# Without them, convolutions in the loop over tiles take minutes.
pytestmark = pytest.mark.usefixtures("optimised")

# Settings of the data set, and whether maps have the size of the picture. Pictures are 48×40.
SHAPES = {
    "rectangle": (f"image_size={IMAGE_SIZE}x{IMAGE_SIZE + 32}",),
    "letterbox": ("fit=letterbox",),
    # A region that is larger than the network's input.
    "crop": (
        *("backbone=resnet18", "image_size=32"),
        *("fit=crop", "region=2,0,46,38", "map_size=original"),
    ),
    "tiles": ("tiles=2x2", "overlap=0.25"),
    "padded tiles": ("tiles=1x2", "fit=letterbox", "map_size=original"),
}
FRAMES = {  # height and width of the maps
    "rectangle": (IMAGE_SIZE, IMAGE_SIZE + 32),
    "letterbox": (53, IMAGE_SIZE),  # 64 · 40 / 48
    "crop": (40, 48),
    "tiles": (112, 112),  # 64 + 48
    "padded tiles": (40, 48),
}


def flags_of(shape: str) -> list[str]:
    group = {"map_size": "evaluation", "backbone": "model"}
    return [
        f"--config.{group.get(setting.partition('=')[0], 'dataset')}.{setting}"
        for setting in SHAPES[shape]
    ]


@pytest.mark.parametrize(
    ("flags", "shape"),
    [
        pytest.param(
            flags, shape, marks=[] if (flags, shape) == ("tiny_core", "tiles") else pytest.mark.slow
        )
        for flags in ("tiny", "tiny_core")
        for shape in SHAPES
    ],
)
def test_all_ways_to_score_agree(
    flags: str,
    shape: str,
    main: Main,
    parts: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    workdir = tmp_path / "run"
    trained = main(*request.getfixturevalue(flags), *flags_of(shape), f"--workdir={workdir}")
    assert trained.returncode == 0, trained.stderr
    run = export_run(main, workdir, tmp_path)
    predicted = main(
        "--mode=predict", f"--workdir={workdir}", f"--input={parts}/test",
        f"--output={tmp_path / 'predicted'}",
    )  # fmt: skip
    assert predicted.returncode == 0, predicted.stderr
    paths = images_of(parts)
    detector, loaded = Detector.restore(workdir), Detector.load(run.file)
    expected, explained = detector.score(paths), detector.explain(paths)
    rtol = 1e-4 if flags == "tiny_core" else 1e-5

    found, maps = loaded.score(paths), loaded.explain(paths).maps
    np.testing.assert_allclose(found.scores, expected.scores, rtol=rtol)
    np.testing.assert_allclose(found.maps, expected.maps, rtol=1e-3, atol=1e-3)
    assert np.shape(explained.maps) == (len(paths), *FRAMES[shape])
    np.testing.assert_allclose(maps, explained.maps, rtol=1e-3, atol=2e-3)
    height, width = FRAMES[shape]
    for overlay in (explained.overlays[0], loaded.explain(paths[0]).overlay):
        assert overlay.size == (width, height)
    for file in (tmp_path / "predicted" / "overlays").rglob("*.jpg"):
        assert Image.open(file).size == (width, height)

    by_path = dict(zip(map(str, paths), expected.scores, strict=True))
    for table in (tmp_path / "predicted" / "predictions.csv", workdir / "eval" / "scores.csv"):
        scores = column(table, "score", parts)
        assert len(scores) >= 10
        for path, score in scores.items():
            assert score == pytest.approx(by_path[path], rel=rtol)
    with started(run.file, "--max_batch=1") as service:
        status, answer = service.ask("POST", "/score?maps=true", paths[0].read_bytes())
        assert status == 200
        assert answer["score"] == pytest.approx(expected.scores[0], rel=rtol)
        heat = Image.open(io.BytesIO(base64.b64decode(answer["map"])))
        assert heat.size == (width, height)
