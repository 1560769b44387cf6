"""What a process sets before JAX starts: where compiled programs are kept, how CPUs are used."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from pathlib import Path

from devnet_jax.runtime import heap
from devnet_jax.runtime.host_devices import n_cores

# XLA's flags for CPUs.
_XLA_FLAGS = {
    # Convolutions and matrix products by Eigen instead of YNNPACK: fewer copies around them.
    "xla_cpu_experimental_ynn_fusion_type": "REDUCE",
    # Half of the temporary memory, a sixth less to compile.
    "xla_cpu_enable_concurrency_optimized_scheduler": "false",
    # A quarter less to compile, and steps no slower.
    "xla_backend_extra_options": "xla_cpu_disable_loop_unrolling",
}
# Where every core is a device: they do not wait for each other in each operation.
_XLA_FLAGS_OF_A_DEVICE_A_CORE = {"xla_cpu_multi_thread_eigen": "false"}
# The versions of jaxlib, from one to before another, that know them all: XLA ends a program that
# sets a flag it does not know.
_KNOWN_FROM, _KNOWN_UNTIL = (0, 10), (0, 13)


def prepare(batch_size: int) -> None:
    """Prepares this process for JAX, which must not have been imported yet.

    What the environment says already stays: where and what JAX's compilation cache keeps,
    JAX_NUM_CPU_DEVICES, and the flags in XLA_FLAGS.

    Args:
      batch_size: of training, which the devices must divide.
    """
    # What was compiled once is found again by the next run.
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "devnet_jax" / "compiled"))
    # The small programs, too: JAX keeps what took a second to compile, and many took less.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    given = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in given:
        # Each works on images of its own, which keeps all cores busier than to share one image.
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(n_cpu_devices(batch_size, n_cores())))
    # A TPU's library, whose release is not jaxlib's, reads XLA_FLAGS as well.
    if knows_flags(importlib.metadata.version("jaxlib")) and not importlib.util.find_spec("libtpu"):
        a_device_a_core = os.environ.get("JAX_NUM_CPU_DEVICES") == str(n_cores()) != "1"
        os.environ["XLA_FLAGS"] = with_flags(given, a_device_a_core)
    # A first start compiles so much that sharing an arena would cost it more than it gains.
    if _anything_in(os.environ["JAX_COMPILATION_CACHE_DIR"]):
        heap.tune_for_jax()


def _anything_in(folder: str) -> bool:
    path = Path(folder)
    return path.is_dir() and any(path.iterdir())


def n_cpu_devices(batch_size: int, cores: int) -> int:
    """The most devices, at most one a core, that divide a batch into equal shares of two images
    or more."""
    at_most = max(1, min(cores, batch_size // 2))
    return max(n for n in range(1, at_most + 1) if batch_size % n == 0)


def knows_flags(jaxlib: str) -> bool:
    """Whether that version of jaxlib is known to know the flags that we set."""
    major, minor = (int(part) for part in jaxlib.split(".")[:2])
    return _KNOWN_FROM <= (major, minor) < _KNOWN_UNTIL


def with_flags(given: str, a_device_a_core: bool) -> str:
    """What the environment variable XLA_FLAGS says, and ours of which it says nothing."""
    ours = _XLA_FLAGS | (_XLA_FLAGS_OF_A_DEVICE_A_CORE if a_device_a_core else {})
    added = [f"--{name}={value}" for name, value in ours.items() if name not in given]
    return " ".join([*given.split(), *added])
