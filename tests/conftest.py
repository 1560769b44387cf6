"""Fixtures of all tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from devnet_jax.runtime.startup import prepare
from tests import fork_server
from tests.drawn import make_drawn

if TYPE_CHECKING:
    from playwright.sync_api import Browser

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared"  # real data sets and weights, kept outside the project

# The compilation cache of all tests and their processes. Set before JAX is imported.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(REPOSITORY / ".pytest_cache" / "compiled")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Small programs take longer to compile than to run; see `optimised`. Part of the cache's keys.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The XLA flags of the command line; the number of devices is chosen by each test.
prepare(batch_size=1)
os.environ.pop("JAX_NUM_CPU_DEVICES", None)

# The settings of the smallest run. AlexNet compiles in a third of the time of ResNet-18.
BACKBONE, IMAGE_SIZE = "alexnet", 64
TINY_SETTINGS: dict[str, Any] = {
    "dataset.image_size": IMAGE_SIZE,
    "dataset.n_anomaly": 3,
    "model.backbone": BACKBONE,
    "model.n_scales": 1,
    "model.pretrained": "none",
    "train.batch_size": 8,
    "train.epochs": 2,
    "train.steps_per_epoch": 2,
    "evaluation.batch_size": 4,
}
TINY = tuple(f"--config.{name}={value}" for name, value in TINY_SETTINGS.items())
# After TINY: the smallest run of the second detector.
CORE_SETTINGS: dict[str, Any] = {
    "model.detector": "devcore",
    "devcore.memory_size": 64,
    "devcore.memory_samples": 400,
    "devcore.head_steps": 5,
}
CORE = tuple(f"--config.{name}={value}" for name, value in CORE_SETTINGS.items())
# After TINY: the smallest run of a backbone with BatchNorm.
RESNET18 = ("--config.model.backbone=resnet18", "--config.dataset.image_size=32")


@pytest.fixture(scope="module")
def optimised() -> Iterator[None]:
    """XLA's optimisations are on in this module and its processes, as they are outside of tests."""
    import jax

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", False)
        yield
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """An installed Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"needs one of the browsers {', '.join(names)}")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and ImageNet weights; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data and weights in {SHARED}")
    return SHARED


def make_parts(folder: Path) -> Path:
    """Makes a folder of images in the layout of configs/folder.py: grey noise, coloured defects."""
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
def shared_tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder that all workers of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def make_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Returns a folder in `shared_tmp`, which the first worker that needs it makes."""
    done = folder.with_name(f"{folder.name}.done")
    with FileLock(f"{folder}.lock"):
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def parts(shared_tmp: Path) -> Path:
    """A small folder of images; read-only."""
    return make_once(shared_tmp / "parts", make_parts)


def environment(devices: int = 1) -> dict[str, str]:
    """Returns the environment variables of a process on `devices` virtual CPU devices."""
    return {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}


Main = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def main(shared_tmp: Path) -> Main:
    """Runs `python -m devnet_jax.main` in a fork, on `devices` virtual CPU devices.

    With `fork=False` it runs in a process that has imported nothing.
    """

    def run(
        *arguments: str, devices: int = 1, timeout: float = 300, fork: bool = True
    ) -> subprocess.CompletedProcess[str]:
        command = ["-m", "devnet_jax.main", *arguments]
        variables = {**environment(devices), "TFDS_DATA_DIR": str(shared_tmp / "prepared")}
        if fork:
            return fork_server.run(command, variables, timeout)
        return subprocess.run(
            [sys.executable, *command],
            cwd=REPOSITORY,
            env=variables,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


def refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Asserts a non-zero status and a one-line error that contains all parts."""
    assert result.returncode == 1, result.stdout + result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in errors[0]


def tiny_flags(detector: str, parts: Path, shared_tmp: Path) -> tuple[str, ...]:
    """Returns the flags of the smallest run of a detector over `parts`, without --workdir."""
    return (
        f"--config=configs/folder.py:{detector}",
        *TINY,
        *(CORE if detector == "devcore" else ()),
        f"--config.dataset.manual_dir={parts}",
        f"--config.dataset.data_dir={shared_tmp / 'data'}",
    )


def train_once(main: Main, flags: tuple[str, ...], folder: Path) -> Path:
    """Returns the workdir of a finished run, `folder`/run.

    The files `stdout` and `stderr` beside it hold what the run has printed.
    """

    def train(workdir: Path) -> None:
        result = main(*flags, f"--workdir={workdir}", fork=False)
        assert result.returncode == 0, result.stderr
        (workdir.parent / "stdout").write_text(result.stdout)
        (workdir.parent / "stderr").write_text(result.stderr)

    folder.mkdir(exist_ok=True)
    return make_once(folder / "run", train)


@pytest.fixture(scope="session")
def tiny(parts: Path, shared_tmp: Path) -> tuple[str, ...]:
    """Flags of the smallest run of the deviation network over `parts`, without --workdir."""
    return tiny_flags("devnet", parts, shared_tmp)


@pytest.fixture(scope="session")
def tiny_core(parts: Path, shared_tmp: Path) -> tuple[str, ...]:
    """Flags of the smallest run of DevCore over `parts`, without --workdir."""
    return tiny_flags("devcore", parts, shared_tmp)


@pytest.fixture(scope="session")
def trained(main: Main, tiny: tuple[str, ...], shared_tmp: Path) -> Path:
    """The workdir of a finished run with the flags `tiny`; read-only; see `train_once`."""
    return train_once(main, tiny, shared_tmp / "trained")


@pytest.fixture(scope="session")
def trained_core(main: Main, tiny_core: tuple[str, ...], shared_tmp: Path) -> Path:
    """The workdir of a finished run with the flags `tiny_core`; read-only; see `train_once`."""
    return train_once(main, tiny_core, shared_tmp / "trained_core")


@pytest.fixture(scope="session")
def exported_core(main: Main, trained_core: Path, shared_tmp: Path) -> Path:
    """The exported file of `trained_core`; read-only."""

    def export(file: Path) -> None:
        result = main("--mode=export", f"--workdir={trained_core}", f"--output={file}")
        assert result.returncode == 0, result.stderr

    return make_once(shared_tmp / "core.devnet", export)


@pytest.fixture(scope="session")
def drawn_parts(shared_tmp: Path) -> Path:
    """A folder of drawn parts, of which half of the good ones calibrate; read-only."""
    return make_once(shared_tmp / "drawn_parts", make_drawn)


@pytest.fixture(scope="session", params=["devnet", "devcore"])
def drawn_run(
    request: pytest.FixtureRequest, main: Main, drawn_parts: Path, shared_tmp: Path
) -> Path:
    """The workdir of a finished run of either detector over `drawn_parts`; read-only."""
    flags = (
        *tiny_flags(request.param, drawn_parts, shared_tmp),
        "--config.dataset.calibration=0.5",
    )
    return train_once(main, flags, shared_tmp / f"drawn_{request.param}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escapes file names that are not UTF-8 in captured output, which xdist cannot send."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report
