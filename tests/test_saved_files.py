"""Tests that runs and model files of earlier versions load and give the same scores.

`tests/saved/0.1` was written at commit 73476bd: a workdir and a model file of a ResNet-18 at 64×64
pixels with one scale, whose weights repeat a few numbers so that the files compress, and what the
detector said of three random images.
"""

from __future__ import annotations

import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devnet_jax import Detector
from devnet_jax.inference.scorer import ImageScorer

SAVED = Path(__file__).with_name("saved") / "0.1"
EXPECTED: dict[str, Any] = json.loads((SAVED / "expected.json").read_text())


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def assert_scores_as_before(detector: ImageScorer, images: np.ndarray) -> None:
    result = detector.score(images)
    for name in ("scores", "maps"):
        np.testing.assert_allclose(getattr(result, name), EXPECTED[name], rtol=1e-5, err_msg=name)
    assert detector.prior is not None
    prior = detector.prior.p_values(result.scores)
    np.testing.assert_allclose(prior, EXPECTED["p_values"], rtol=1e-5)
    assert result.is_anomaly is not None
    assert result.is_anomaly.tolist() == EXPECTED["is_anomaly"]
    assert [threshold.value for threshold in detector.thresholds] == EXPECTED["thresholds"]
    explanation = detector.explain(images[:1]).maps[0].ravel()[::257]
    np.testing.assert_allclose(explanation, EXPECTED["explanation"], atol=1e-4)


def test_a_run(images: np.ndarray, tmp_path: Path) -> None:
    with tarfile.open(SAVED / "run.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    assert_scores_as_before(Detector.load(tmp_path / "run"), images)


def test_a_model_file(images: np.ndarray, tmp_path: Path) -> None:
    file = tmp_path / "model.devnet"
    file.write_bytes(lzma.decompress((SAVED / "model.devnet.xz").read_bytes()))
    assert_scores_as_before(Detector.load(file), images)
