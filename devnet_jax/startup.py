"""What a process sets before JAX starts: where compiled programs are kept, how CPUs are used."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

from devnet_jax.environment import n_cores

# Settings of glibc's mallopt, by their numbers in malloc.h, that keep freed memory in the process;
# a threshold of -1 is none.
M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX = -4, -1, -8
_KEEP_FREED_MEMORY = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_ARENA_MAX: 1}


def prepare(batch_size: int) -> None:
    """Prepares this process for JAX, which must not have been imported yet.

    What the environment says already stays: where and what JAX's compilation cache keeps,
    JAX_NUM_CPU_DEVICES, and the number of devices in XLA_FLAGS.

    Args:
      batch_size: of training, which the devices must divide.
    """
    # What was compiled once is found again by the next run.
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "devnet_jax" / "compiled"))
    # The small programs, too: JAX keeps what took a second to compile, and many took less.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        # On one CPU device XLA runs many a convolution on one core, on several all cores work.
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(n_cpu_devices(batch_size, n_cores())))
    if platform.libc_ver()[0] == "glibc":
        # XLA frees a step's memory after each step; to get it anew from the system, page by page,
        # takes a tenth of the step.
        for setting, value in _KEEP_FREED_MEMORY.items():
            ctypes.CDLL(None).mallopt(setting, value)


def n_cpu_devices(batch_size: int, cores: int) -> int:
    """The most devices, at most one a core, that divide a batch into equal shares of two images
    or more."""
    at_most = max(1, min(cores, batch_size // 2))
    return max(n for n in range(1, at_most + 1) if batch_size % n == 0)
