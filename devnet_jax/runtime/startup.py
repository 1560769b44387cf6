"""Configures the process for JAX: compilation cache, CPU devices, XLA flags, malloc."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path

from devnet_jax.errors import UserError
from devnet_jax.runtime.host_devices import n_cores

# XLA's flags for CPUs.
_XLA_FLAGS = {
    # Convolutions and matrix products by Eigen instead of YNNPACK: fewer copies around them.
    "xla_cpu_experimental_ynn_fusion_type": "REDUCE",
    # Half of the temporary memory, a sixth less compile time.
    "xla_cpu_enable_concurrency_optimized_scheduler": "false",
    # A quarter less compile time, and steps no slower.
    "xla_backend_extra_options": "xla_cpu_disable_loop_unrolling",
}
# With one device per core: devices do not wait for each other in each operation.
_XLA_FLAGS_DEVICE_PER_CORE = {"xla_cpu_multi_thread_eigen": "false"}
# Versions of jaxlib that support these flags, from the first to before the second. XLA aborts the
# process if it finds an unknown flag.
_SUPPORTED_FROM, _SUPPORTED_BEFORE = (0, 10), (0, 13)

# JAX's environment variables of the compilation cache: its folder, and the least compile time in
# seconds of a program that is stored.
_CACHE = "JAX_COMPILATION_CACHE_DIR"
_MIN_COMPILE_TIME = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"

# In a program of others its smallest operations, such as a sum, are not stored.
_KEPT_FROM = 0.1

# Parameters of mallopt, by their numbers in glibc's malloc.h.
_M_MMAP_MAX, _M_TRIM_THRESHOLD, _M_ARENA_MAX = -4, -1, -8


def prepare(batch_size: int) -> None:
    """Configures this process for JAX; call it before JAX is imported.

    Settings that the environment already has are kept: JAX's compilation cache,
    JAX_NUM_CPU_DEVICES, and the flags in XLA_FLAGS.

    Args:
      batch_size: training batch size per process; the number of CPU devices divides it.

    Raises:
      UserError: if XLA_FLAGS holds no flags.
    """
    if _CACHE not in os.environ and (folder := _cache_folder()):
        os.environ[_CACHE] = folder
    # By default JAX caches only programs that took a second to compile; many of ours take less.
    os.environ.setdefault(_MIN_COMPILE_TIME, "0")
    user_flags = os.environ.get("XLA_FLAGS", "")
    if user_flags.strip() and not user_flags.strip().startswith("-"):
        # XLA takes it for the name of a file of flags, and aborts the process if there is none.
        if not Path(user_flags).is_file():
            raise UserError(
                f"XLA_FLAGS={user_flags}: neither flags, which begin with --, nor a file of flags"
            )
        user_flags = " ".join(Path(user_flags).read_text().split())
    if "xla_force_host_platform_device_count" not in user_flags:
        # Data parallelism keeps the cores busier than parallelism within one image.
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(n_cpu_devices(batch_size, n_cores())))
    # libtpu reads XLA_FLAGS, too, and may not know flags of this jaxlib.
    jaxlib = importlib.metadata.version("jaxlib")
    if supports_flags(jaxlib) and not importlib.util.find_spec("libtpu"):
        device_per_core = os.environ.get("JAX_NUM_CPU_DEVICES") == str(n_cores()) != "1"
        os.environ["XLA_FLAGS"] = merge_flags(user_flags, device_per_core)
    # With an empty cache so much is compiled that the shared arena costs more than it gains.
    if _has_entries(os.environ.get(_CACHE, "")):
        keep_freed_memory()


def import_jax() -> None:
    """Imports JAX; raises `UserError` if one of its environment variables has a wrong value."""
    try:
        import jax  # noqa: F401
    except ValueError as error:
        raise UserError(f"JAX does not start: {error}; {jax_variables()}") from error


def jax_variables() -> str:
    """Returns advice on the environment variables of JAX, for error messages."""
    settings = sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith("JAX_"))
    return f"correct or unset the variable that is wrong: {', '.join(settings)}"


def keep_compiled() -> None:
    """Lets JAX, which is imported, keep compiled programs on disk, as `prepare` does.

    For programs of others that import this package; they need not know of the cache. A cache that
    they have configured themselves, by the environment or by `jax.config`, stays as it is. JAX
    opens its cache at the first program, so this is called before the first of ours.
    """
    import jax

    if _CACHE in os.environ or jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    if folder := _cache_folder():
        jax.config.update("jax_compilation_cache_dir", folder)
        if _MIN_COMPILE_TIME not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", _KEPT_FROM)


def _cache_folder() -> str | None:
    """Returns the folder of compiled programs in the user's cache; creates it.

    `None` without a home folder that can be written: JAX would warn of each program that it cannot
    store.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        folder = cache / "devnet_jax" / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError):  # no home folder is known, or it cannot be written
        return None
    return str(folder) if os.access(folder, os.W_OK) else None


def keep_freed_memory() -> None:
    """Tunes glibc malloc: all threads use one arena, which keeps freed memory.

    XLA frees a step's memory after each step. To get it back from the system, page by page, takes
    a tenth of a step on a CPU. Call this before the process has threads. Does nothing with another
    libc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_MAX, 0)  # no separate mappings for large blocks
    mallopt(_M_TRIM_THRESHOLD, -1)  # never shrink the arena
    mallopt(_M_ARENA_MAX, 1)


def _has_entries(folder: str) -> bool:
    path = Path(folder)
    try:
        return bool(folder) and any(path.iterdir())
    except OSError:  # missing, or not readable
        return False


def n_cpu_devices(batch_size: int, cores: int) -> int:
    """Returns the number of CPU devices: the largest that divides the batch.

    There is at most one device per core, and each gets at least two images of a batch.
    """
    at_most = max(1, min(cores, batch_size // 2))
    return max(n for n in range(1, at_most + 1) if batch_size % n == 0)


def supports_flags(jaxlib: str) -> bool:
    """Returns True if this version of jaxlib is known to support the XLA flags set here."""
    major, minor = (int(part) for part in jaxlib.split(".")[:2])
    return _SUPPORTED_FROM <= (major, minor) < _SUPPORTED_BEFORE


def merge_flags(user_flags: str, device_per_core: bool) -> str:
    """Returns the value of XLA_FLAGS: the user's flags, then the flags above that they lack."""
    ours = _XLA_FLAGS | (_XLA_FLAGS_DEVICE_PER_CORE if device_per_core else {})
    added = [f"--{name}={value}" for name, value in ours.items() if name not in user_flags]
    return " ".join([*user_flags.split(), *added])
