"""The first thing a newcomer runs: it learns something, and what it learns is not there before."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from devnet_jax.config import Config
from devnet_jax.data.few_shot import FewShotDataset
from devnet_jax.inference.detector import Detector
from devnet_jax.models.build import make_variables
from tests.conftest import REPOSITORY, Main


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def quickstart(data_dir: Path, seed: int) -> Config:
    values = runpy.run_path(str(REPOSITORY / "configs" / "quickstart.py"))["get_config"]()
    values.seed = seed
    values.dataset.data_dir = str(data_dir)
    return Config.from_dict(values)


@pytest.mark.slow
def test_an_untrained_network_cannot_tell(data_dir: Path) -> None:
    aurocs = []
    for seed in range(4):
        config = quickstart(data_dir, seed)
        dataset = FewShotDataset.draw(config.dataset, seed)
        images = dataset.images(dataset.split.test, config.dataset.image_size)
        labels = [example.label for example in dataset.test_examples]
        scores = Detector(config, make_variables(config), step=0).score(images).scores
        aurocs.append(roc_auc_score(labels, scores))
    assert 0.35 < np.mean(aurocs) < 0.65, aurocs


@pytest.mark.slow
def test_the_quickstart_reaches_what_it_promises(
    main: Main, data_dir: Path, tmp_path: Path
) -> None:
    workdir = f"--workdir={tmp_path / 'run'}"
    setting = f"--config.dataset.data_dir={data_dir}"
    trained = main("--config=configs/quickstart.py", workdir, setting, timeout=900)
    assert trained.returncode == 0, trained.stderr
    last_words = trained.stdout.strip().splitlines()
    report = tmp_path / "run" / "report.html"
    assert last_words[-1].endswith(str(report))
    assert report.stat().st_size < 20e6
    metrics = (tmp_path / "run" / "eval" / "metrics.json").read_text()
    restored = main("--mode=eval", workdir)
    assert restored.returncode == 0, restored.stderr
    assert (tmp_path / "run" / "eval" / "metrics.json").read_text() == metrics
    results = json.loads(metrics)
    assert results["image_auroc"] >= 0.95
    assert results["pixel_auroc_mean"] >= 0.85
    # 100 images calibrate and 40 test: by the promise of 5 %, more than a fifth in 1 run of 600.
    assert results["calibrated_false_alarm_rate"] <= 0.2
