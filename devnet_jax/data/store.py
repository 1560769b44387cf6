"""Stores of the decoded training images: in device memory, in host memory, or on disk.

All stores have the interface `ImageStore`, so the training step does not depend on the store:

- `resident` is the array that every train call is given;
- `call_input` makes the array that one call is given;
- `gather` selects the images of one step from the two, inside the step;
- `max_steps_per_call` limits the number of steps of one call.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

import jax
import numpy as np

from devnet_jax.config import DatasetConfig
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.distributed.cluster import n_local_processes, require_agreement

logger = logging.getLogger(__name__)

DEVICE_FRACTION = 0.25  # of an accelerator's memory, for images; the rest is for the step
HOST_FRACTION = 0.25  # of the host's memory, for images, unless memory_gib is set
MAX_CALL_BYTES = 256 << 20  # of pixels that one call transfers from the host


class ImageReader(Protocol):
    """The interface of the images that a store is made from; they are read on demand."""

    @property
    def preprocessing(self) -> Preprocessing:
        """Settings of the way to the network's input."""

    @property
    def is_cached(self) -> bool:
        """True if decoded images are cached on disk."""

    def __len__(self) -> int:
        """Returns the number of images."""

    def read(self, indices: np.ndarray, description: str | None = None) -> np.ndarray:
        """Reads images into a new array, uint8 [n, *preprocessing.shape].

        Args:
          indices: integers [n].
          description: label of the progress bar; None shows no bar.
        """


class ImageStore(Protocol):
    """The interface of all stores: decoded training images, uint8 [N, *preprocessing.shape].

    Attributes:
      resident: the array that every train call is given, replicated over the
        devices; None if there is none.
    """

    resident: jax.Array | None

    def __len__(self) -> int:
        """Returns N."""

    def call_input(self, indices: np.ndarray) -> np.ndarray:
        """Returns the input of one train call.

        Args:
          indices: int32 [steps, B], indices of the images of this process's batches.

        Returns:
          The indices, or the images, uint8 [steps, B, *preprocessing.shape].
        """

    def gather(self, resident: jax.Array | None, batch: jax.Array) -> jax.Array:
        """Returns the images of one step on one device, uint8 [b, *preprocessing.shape]; traced by
        JAX.

        Args:
          resident: `resident`.
          batch: the part of `call_input` for this step and device.
        """

    def max_steps_per_call(self, batch_size: int) -> int:
        """Returns the largest number of steps that one call should have."""


class DeviceStore:
    """A store in device memory: a call transfers indices only."""

    resident: jax.Array | None

    def __init__(self, reader: ImageReader, sharding: jax.sharding.Sharding) -> None:
        self._n_images = len(reader)
        images = _read_all(reader)
        # Padded, so that data sets of about the same size share one compiled function. Resized in
        # place, since `read` returns a new array.
        images.resize((padded_length(len(images)), *images.shape[1:]), refcheck=False)
        self.resident = jax.device_put(images, sharding)

    def __len__(self) -> int:
        return self._n_images

    def call_input(self, indices: np.ndarray) -> np.ndarray:
        return indices

    def gather(self, resident: jax.Array | None, batch: jax.Array) -> jax.Array:
        assert resident is not None
        return resident[batch]

    def max_steps_per_call(self, batch_size: int) -> int:
        return sys.maxsize


class StreamedStore:
    """A store on disk: a call transfers the pixels of its batches, read for each call."""

    resident: jax.Array | None = None

    def __init__(self, reader: ImageReader) -> None:
        self._reader = reader

    def __len__(self) -> int:
        return len(self._reader)

    def call_input(self, indices: np.ndarray) -> np.ndarray:
        images = self._read(indices.ravel())
        return images.reshape(*indices.shape, *images.shape[1:])

    def gather(self, resident: jax.Array | None, batch: jax.Array) -> jax.Array:
        return batch

    def max_steps_per_call(self, batch_size: int) -> int:
        return max(1, MAX_CALL_BYTES // (batch_size * self._reader.preprocessing.n_bytes))

    def _read(self, indices: np.ndarray) -> np.ndarray:
        return self._reader.read(indices)


class HostStore(StreamedStore):
    """A store in host memory: reads all images once; a call transfers the pixels of its batches."""

    def __init__(self, reader: ImageReader) -> None:
        super().__init__(reader)
        self._images = _read_all(reader)

    def _read(self, indices: np.ndarray) -> np.ndarray:
        return self._images[indices]


def _read_all(reader: ImageReader) -> np.ndarray:
    return reader.read(np.arange(len(reader)), "decoding training images")


def padded_length(n: int) -> int:
    """Returns the next of 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, …: at most a quarter more than n."""
    step = 1 << max(n.bit_length() - 3, 0)
    return max(4, -(-n // step) * step)


def make_store(
    reader: ImageReader, settings: DatasetConfig, sharding: jax.sharding.Sharding
) -> ImageStore:
    """Makes the store that the settings name, or the fastest that fits; logs the choice.

    Args:
      reader: the training images.
      settings: `store` and `memory_gib` are used.
      sharding: sharding of the images in a `DeviceStore`.

    Raises:
      UserError: if an image cannot be decoded.
    """
    size = len(reader) * reader.preprocessing.n_bytes
    location, reason = settings.store, ""
    if location == "auto":
        location, reason = _choose_location(size, settings, host_memory() // n_local_processes())
    require_agreement("the location of the training images", location)
    action = {
        "device": "are kept in device memory",
        "host": "are kept in host memory",
        "stream": "are streamed from disk",
    }[location]
    if location == "stream" and not reader.is_cached:
        action = "are decoded again for each batch, which is slow: there is no cache on disk"
    logger.info(
        "%s training images (%s) %s%s", f"{len(reader):,}", _format_bytes(size), action, reason
    )
    if location == "device":
        return DeviceStore(reader, sharding)
    return HostStore(reader) if location == "host" else StreamedStore(reader)


def _choose_location(
    size: int, settings: DatasetConfig, memory_per_process: int
) -> tuple[Literal["device", "host", "stream"], str]:
    """Chooses the fastest location that images of `size` bytes fit into.

    A CPU device is never chosen: its memory is the host's, and a step that is given pixels need
    not be compiled for each number of images.

    Returns:
      The location, and the reason, for the log, why a faster location is not used.
    """
    device = jax.local_devices()[0]
    reason = ""
    if device.platform != "cpu":
        memory = (device.memory_stats() or {}).get("bytes_limit", 0)
        if size <= DEVICE_FRACTION * memory:
            return "device", ""
        reason = ": the device does not report its memory size"
        if memory:
            reason = f": more than a quarter of the device's {_format_bytes(memory)}"
    if settings.memory_gib:
        limit = settings.memory_gib * 2**30
        too_much = f": more than the {settings.memory_gib:g} GiB of config.dataset.memory_gib"
    else:
        limit = HOST_FRACTION * memory_per_process
        too_much = f": more than a quarter of the host's {_format_bytes(memory_per_process)}"
    return ("host", reason) if size <= limit else ("stream", too_much)


def _format_bytes(n_bytes: int) -> str:
    """Formats a number of bytes in GiB, or in MiB if it is small."""
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 // 10 else f"{n_bytes / 2**20:.2f} MiB"


def host_memory(
    groups: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/sys/fs/cgroup")
) -> int:
    """Returns the bytes of memory that this process may use.

    That is the machine's memory, or the limit of the process's control group if it is lower.

    Args:
      groups: file in which the kernel lists the control groups of this process.
      mounts: folder in which the kernel shows their limits.
    """
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _group_limits(groups, mounts):
        with contextlib.suppress(OSError, ValueError):  # no such file, or the value "max"
            sizes.append(int(file.read_text()))
    return min(sizes)


def _group_limits(groups: Path, mounts: Path) -> Iterator[Path]:
    """Yields the files with the memory limits of the control groups and of their parents."""
    if not groups.exists():  # not Linux
        return
    for line in groups.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, name = mounts, "memory.max"
        if controllers:  # cgroups version 1
            mount, name = mounts / "memory", "memory.limit_in_bytes"
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount):
                yield folder / name
