"""Test of the complete quickstart: AUROC and false-alarm rate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Main


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_the_quickstart_reaches_what_it_promises(main: Main, tmp_path: Path) -> None:
    workdir = f"--workdir={tmp_path / 'run'}"
    setting = f"--config.dataset.data_dir={tmp_path / 'data'}"
    trained = main("--config=configs/quickstart.py", workdir, setting, timeout=1800)
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
    # With 100 calibration and 40 test images at 5 %, a rate above 1/5 occurs in 1 run of 600.
    assert results["calibrated_false_alarm_rate"] <= 0.2
