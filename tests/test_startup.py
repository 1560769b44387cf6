"""What is set before JAX starts: devices of a CPU, kept memory, and what was compiled before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from devnet_jax.startup import n_cpu_devices
from tests.conftest import TINY, Main, make_parts


@pytest.mark.parametrize(
    ("batch_size", "cores", "devices"),
    [(48, 2, 2), (48, 64, 24), (48, 5, 4), (9, 2, 1), (9, 8, 3), (2, 8, 1), (3, 8, 1), (16, 1, 1)],
)
def test_devices_share_the_batch(batch_size: int, cores: int, devices: int) -> None:
    assert n_cpu_devices(batch_size, cores) == devices


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        ({}, min(4, len(os.sched_getaffinity(0)))),
        ({"JAX_NUM_CPU_DEVICES": "3"}, 3),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, 5),
    ],
)
def test_jax_has_a_device_a_core_unless_told_otherwise(
    environment: dict[str, str], devices: int
) -> None:
    program = "import devnet_jax.startup as s; s.prepare(8); import jax; print(jax.device_count())"
    inherited = {
        k: v for k, v in os.environ.items() if k not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
    }
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(result.stdout) == devices


@pytest.mark.slow
def test_a_second_start_compiles_nothing_whatever_the_number_of_images(
    main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = tmp_path / "compiled"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(compiled))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    found = []
    for name in ("first", "second"):
        parts = make_parts(tmp_path / name / "parts")
        if name == "second":
            (parts / "train/good/000.png").unlink()
        result = main(
            "--config=configs/folder.py",
            *TINY,
            "--config.train.epochs=1",
            f"--config.seed={len(found)}",
            f"--config.dataset.manual_dir={parts}",
            f"--config.dataset.data_dir={tmp_path / name / 'data'}",
            f"--workdir={tmp_path / name / 'run'}",
        )
        assert result.returncode == 0, result.stderr
        found.append({entry.name for entry in compiled.iterdir() if entry.name.endswith("-cache")})
    assert found[0]
    assert found[1] == found[0]
