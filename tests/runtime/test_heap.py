"""What malloc does with memory that is freed, and with what compiling leaves behind."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from devnet_jax.runtime.heap import COMPILE_EVENT

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")

LIBC = (
    "import ctypes, resource\n"
    "libc = ctypes.CDLL(None)\n"
    "libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p\n"
    "libc.free.argtypes = [ctypes.c_void_p]\n"
    "libc.sbrk.restype = ctypes.c_void_p\n"
)


def output_of(program: str, cache: Path) -> list[int]:
    """The numbers that a Python program of its own prints, whose compilation cache that is."""
    result = subprocess.run(
        [sys.executable, "-c", LIBC + program],
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(number) for number in result.stdout.split()]


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    """A compilation cache with something in it."""
    (tmp_path / "jit_step-cache").touch()
    return tmp_path


@pytest.mark.parametrize("compiled_before", [True, False])
def test_freed_memory_is_kept_where_something_was_compiled_before(
    compiled_before: bool, compiled: Path
) -> None:
    (pages,) = output_of(
        "import devnet_jax.runtime.startup as s; s.prepare(8); n = 64 << 20\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(2):\n"
        "    before = faults(); p = libc.malloc(n); ctypes.memset(p, 1, n); libc.free(p)\n"
        "print(faults() - before)",
        compiled if compiled_before else compiled / "empty",
    )
    # What the second use got from the system.
    assert (pages < 100) == compiled_before


@pytest.mark.parametrize("seconds", [30, 0.1])
def test_no_free_pieces_stay_among_what_is_used_after_a_long_compilation(
    seconds: float, compiled: Path
) -> None:
    """Every second of 2,000 pieces of 100,000 bytes is free when JAX reports a compilation."""
    resident_before, resident_after, n_below = output_of(
        "import devnet_jax.runtime.startup as s; s.prepare(8); import jax.monitoring\n"
        "page = resource.getpagesize()\n"
        "resident = lambda: int(open('/proc/self/statm').read().split()[1]) * page >> 20\n"
        "pieces = [libc.malloc(100_000) for _ in range(2_000)]\n"
        "for piece in pieces: ctypes.memset(piece, 1, 100_000)\n"
        "for piece in pieces[::2]: libc.free(piece)\n"
        "print(resident())\n"
        f"jax.monitoring.record_event_duration_secs('{COMPILE_EVENT}', {seconds})\n"
        "print(resident())\n"
        "end = pieces[-1]\n"
        "print(sum(libc.malloc(100_000) < end for _ in range(1_000)))",
        compiled,
    )
    if seconds > 1:
        assert resident_before - resident_after > 80  # MiB of the 95 that are free
        assert n_below == 0
    else:
        assert resident_before - resident_after < 10
        assert n_below > 900


def test_jax_reports_compilations(compiled: Path) -> None:
    """Under the name that `tune_for_jax` listens for, which JAX may change."""
    (n_reported,) = output_of(
        "import devnet_jax.runtime.startup as s; s.prepare(8)\n"
        "from devnet_jax import heap\n"
        "retired = []\n"
        "heap.LONG_COMPILATION, heap.retire_free_pieces = 0.0, lambda: retired.append(1)\n"
        "import jax\n"
        "jax.pmap(lambda x: 3 * x + 1)(jax.numpy.ones((1, 5)))\n"
        "print(len(retired))",
        compiled,
    )
    assert n_reported > 0
