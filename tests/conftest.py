"""Shared by all tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from devnet_jax.runtime.startup import prepare

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared"  # real data sets and weights, kept outside the project

# What one test or process has compiled, the others need not. Set before JAX is imported.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(REPOSITORY / ".pytest_cache" / "compiled")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# As the command line, which so finds what tests in this process have compiled; each test says how
# many devices.
prepare(batch_size=1)
os.environ.pop("JAX_NUM_CPU_DEVICES", None)

# The least that trains: seconds, not minutes, on a CPU.
TINY = (
    "--config.dataset.image_size=32",
    "--config.dataset.n_anomaly=3",
    "--config.model.n_scales=1",
    "--config.model.pretrained=none",
    "--config.train.batch_size=8",
    "--config.train.epochs=2",
    "--config.train.steps_per_epoch=2",
    "--config.evaluation.batch_size=4",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker is left with one when all others end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and ImageNet weights; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data and weights in {SHARED}")
    return SHARED


def make_parts(folder: Path) -> Path:
    """A folder of pictures as configs/folder.py wants it: grey noise, and coloured defects."""
    rng = np.random.default_rng(7)
    kinds = {"train/good": 9, "test/good": 5, "test/scratch": 4, "test/stain": 4}
    for kind, count in kinds.items():
        (folder / kind).mkdir(parents=True)
        for i in range(count):
            pixels = np.repeat(rng.integers(90, 160, (40, 48, 1), dtype=np.uint8), 3, axis=2)
            if kind == "test/scratch":
                pixels[10 + i : 13 + i, 5:40] = (250, 40, 40)
            elif kind == "test/stain":
                pixels[20:32, 10 + i : 22 + i] //= 3
            Image.fromarray(pixels).save(folder / kind / f"{i:03}.png")
    return folder


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small folder of pictures; read it only."""
    return make_parts(tmp_path_factory.mktemp("parts"))


Main = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def main(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Main:
    """Runs `python -m devnet_jax.main` in a process of its own, on n virtual CPU devices."""
    data_dir = tmp_path_factory.mktemp("prepared")

    def run(*arguments: str, devices: int = 1, timeout: float = 300) -> subprocess.CompletedProcess:
        flags = f"--xla_force_host_platform_device_count={devices}"
        return subprocess.run(
            [sys.executable, "-m", "devnet_jax.main", *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "XLA_FLAGS": flags, "TFDS_DATA_DIR": str(data_dir)},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope="session")
def tiny(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Flags of the smallest run over `parts`; a workdir is still to be given."""
    return (
        "--config=configs/folder.py",
        *TINY,
        f"--config.dataset.manual_dir={parts}",
        f"--config.dataset.data_dir={tmp_path_factory.mktemp('data')}",
    )
