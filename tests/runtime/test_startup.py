"""Configuration of the process before JAX starts: CPU devices, XLA flags, cache, malloc."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from devnet_jax.runtime.startup import merge_flags, n_cpu_devices, supports_flags
from tests import fork_server
from tests.conftest import REPOSITORY, TINY, Main, environment, make_parts

EIGEN = "--xla_cpu_experimental_ynn_fusion_type=REDUCE"
MEMORY = "--xla_cpu_enable_concurrency_optimized_scheduler"
LOOPS = "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling"
ALONE = "--xla_cpu_multi_thread_eigen=false"
CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("batch_size", "cores", "devices"),
    [(48, 2, 2), (48, 64, 24), (48, 5, 4), (9, 2, 1), (9, 8, 3), (2, 8, 1), (3, 8, 1), (16, 1, 1)],
)
def test_the_number_of_cpu_devices_divides_the_batch(
    batch_size: int, cores: int, devices: int
) -> None:
    assert n_cpu_devices(batch_size, cores) == devices


@pytest.mark.parametrize(
    ("user_flags", "device_per_core", "expected"),
    [
        ("", False, f"{EIGEN} {MEMORY}=false {LOOPS}"),
        ("--xla_dump_to=a", True, f"--xla_dump_to=a {EIGEN} {MEMORY}=false {LOOPS} {ALONE}"),
        (f"{MEMORY}=true", False, f"{MEMORY}=true {EIGEN} {LOOPS}"),
    ],
)
def test_flags_of_the_user_are_kept(user_flags: str, device_per_core: bool, expected: str) -> None:
    assert merge_flags(user_flags, device_per_core) == expected


@pytest.mark.parametrize(
    ("jaxlib", "supported"),
    [("0.9.2", False), ("0.10.0", True), ("0.12.0.1", True), ("0.13.0.dev3", False)],
)
def test_versions_that_support_the_flags(jaxlib: str, supported: bool) -> None:
    assert supports_flags(jaxlib) == supported


@pytest.mark.parametrize(
    ("environment", "devices", "alone"),
    [
        ({}, min(4, CORES), 1 < min(4, CORES) == CORES),
        ({"JAX_NUM_CPU_DEVICES": "1"}, 1, False),
        ({"JAX_NUM_CPU_DEVICES": "3"}, 3, CORES == 3),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, 5, False),
    ],
)
def test_jax_has_one_device_per_core_by_default(
    environment: dict[str, str], devices: int, alone: bool
) -> None:
    program = (
        "import os, devnet_jax.runtime.startup as s; s.prepare(8);"
        "import jax; print(jax.device_count(), os.environ['XLA_FLAGS'])"
    )
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
    count, flags = result.stdout.split(maxsplit=1)
    assert int(count) == devices
    assert EIGEN in flags
    assert (ALONE in flags) == alone


# Variables of the compilation cache, which the tests set; most users do not.
CACHE = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


def test_a_program_of_others_keeps_compiled_programs_unless_it_has_its_own_cache(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    program = f"""
import os, jax
from devnet_jax.runtime.startup import keep_compiled

def settings(**chosen):
    jax.config.update("jax_compilation_cache_dir", chosen.get("dir"))
    os.environ["XDG_CACHE_HOME"] = chosen.get("home", "{tmp_path}/home")
    keep_compiled()
    print(jax.config.jax_compilation_cache_dir)

for name in {CACHE}:
    os.environ.pop(name, None)
settings(home="{tmp_path}/file")  # cannot be created
settings(dir="mine")
os.environ["JAX_COMPILATION_CACHE_DIR"] = "environment"
settings()
del os.environ["JAX_COMPILATION_CACHE_DIR"]
settings()
"""
    out, err = fork_server.start(["-c", program], environment()).communicate(60)
    assert out.split() == ["None", "mine", "None", f"{tmp_path}/home/devnet_jax/compiled"], err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "file"])
def test_a_second_program_of_others_compiles_nothing(
    kind: str, trained_core: Path, exported_core: Path, tmp_path: Path
) -> None:
    """The program has used JAX before, with defaults that store nothing."""
    program = (
        "import sys, jax, numpy as np\n"
        "jax.jit(lambda x: x + 1)(1)\n"
        "from devnet_jax import Detector\n"
        "detector = Detector.load(sys.argv[1])\n"
        "print(detector.score(np.zeros((40, 40, 3), np.uint8)).scores)"
    )
    path = trained_core if kind == "run" else exported_core
    variables = {k: v for k, v in environment().items() if k not in CACHE}
    scores, stored = [], []
    for _ in range(2):
        result = subprocess.run(
            [sys.executable, "-W", "error::UserWarning", "-c", program, str(path)],
            cwd=REPOSITORY, env={**variables, "XDG_CACHE_HOME": str(tmp_path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        scores.append(result.stdout)
        folder = tmp_path / "devnet_jax" / "compiled"
        stored.append({entry.name for entry in folder.iterdir() if entry.name.endswith("-cache")})
    assert any("score" in name or "call" in name for name in stored[0]), stored
    assert stored[1] == stored[0]
    assert scores[1] == scores[0]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt belongs to glibc")
@pytest.mark.parametrize("has_compiled", [True, False])
def test_freed_memory_is_kept_if_the_compilation_cache_has_entries(
    has_compiled: bool, tmp_path: Path
) -> None:
    """Counts the page faults of the second use of 64 MiB."""
    if has_compiled:
        (tmp_path / "jit_step-cache").touch()
    program = (
        "import ctypes, resource\n"
        "import devnet_jax.runtime.startup as s; s.prepare(8); n = 64 << 20\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p\n"
        "libc.free.argtypes = [ctypes.c_void_p]\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(2):\n"
        "    before = faults(); p = libc.malloc(n); ctypes.memset(p, 1, n); libc.free(p)\n"
        "print(faults() - before)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (int(result.stdout) < 100) == has_compiled


@pytest.mark.slow
def test_a_second_start_compiles_nothing_for_any_number_of_images(
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
            "--config=configs/folder.py:devnet",
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
