"""Where the decoded training images live: in device memory, in host memory, or on disk.

All three answer the same questions, so that the training step does not know which one
it has: what is always at hand (`resident`), what one call is given (`per_call`), how a
step finds its images in the two (`gather`), and how many steps one call may have
(`max_steps`).
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
from devnet_jax.distributed.cluster import n_local_processes, require_agreement

logger = logging.getLogger(__name__)

DEVICE_SHARE = 0.25  # of an accelerator's memory, at most, for images; the rest is for the step
HOST_SHARE = 0.25  # of the host's memory, unless the settings say how much
CALL_BYTES = 256 << 20  # of pixels, at most, that one call carries from the host


class ImageReader(Protocol):
    """What a store is made of: training images that can be read, and have not been yet."""

    @property
    def image_size(self) -> int: ...

    @property
    def are_kept(self) -> bool:
        """Whether what is decoded once is on disk when it is read again."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray, description: str | None = None) -> np.ndarray:
        """uint8 [n, S, S, 3], the caller's own; a description comes with a progress bar."""


class ImageStore(Protocol):
    """Decoded training images, uint8 [N, S, S, 3]."""

    resident: jax.Array | None  # what every call is given, replicated over the devices

    def __len__(self) -> int:
        """N."""

    def per_call(self, indices: np.ndarray) -> np.ndarray:
        """What one call is given for int32 [steps, D, b] indices; the leading axes stay."""

    def gather(self, resident: jax.Array | None, batch: jax.Array) -> jax.Array:
        """One device's images of one step, uint8 [b, S, S, 3]; traced inside the step."""

    def max_steps(self, batch_size: int) -> int:
        """The most steps that one call should be given."""


class DeviceStore:
    """Images in device memory: a call carries indices only."""

    resident: jax.Array | None

    def __init__(self, reader: ImageReader, sharding: jax.sharding.Sharding) -> None:
        self._n_images = len(reader)
        images = _read_all(reader)
        # Filled up, so that data sets of about the same size share what was compiled; in place,
        # as nobody else has the array.
        images.resize((padded(len(images)), *images.shape[1:]), refcheck=False)
        self.resident = jax.device_put(images, sharding)

    def __len__(self) -> int:
        return self._n_images

    def per_call(self, indices: np.ndarray) -> np.ndarray:
        return indices

    def gather(self, resident: jax.Array | None, batch: jax.Array) -> jax.Array:
        assert resident is not None
        return resident[batch]

    def max_steps(self, batch_size: int) -> int:
        return sys.maxsize


class StreamedStore:
    """Images on disk: a call carries the pixels of its batches, read when they are needed."""

    resident: jax.Array | None = None

    def __init__(self, reader: ImageReader) -> None:
        self._reader = reader

    def __len__(self) -> int:
        return len(self._reader)

    def per_call(self, indices: np.ndarray) -> np.ndarray:
        images = self._read(indices.ravel())
        return images.reshape(*indices.shape, *images.shape[1:])

    def gather(self, resident: jax.Array | None, batch: jax.Array) -> jax.Array:
        return batch

    def max_steps(self, batch_size: int) -> int:
        return max(1, CALL_BYTES // (batch_size * image_bytes(self._reader)))

    def _read(self, indices: np.ndarray) -> np.ndarray:
        return self._reader.read(indices)


class HostStore(StreamedStore):
    """Images in host memory: all read beforehand, and handed over like streamed ones."""

    def __init__(self, reader: ImageReader) -> None:
        super().__init__(reader)
        self._images = _read_all(reader)

    def _read(self, indices: np.ndarray) -> np.ndarray:
        return self._images[indices]


def _read_all(reader: ImageReader) -> np.ndarray:
    return reader.read(np.arange(len(reader)), "decoding training images")


def image_bytes(reader: ImageReader) -> int:
    """What one decoded image takes in memory."""
    return reader.image_size * reader.image_size * 3


def padded(n: int) -> int:
    """The next of 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, …: at most a quarter more than n."""
    step = 1 << max(n.bit_length() - 3, 0)
    return max(4, -(-n // step) * step)


def make_store(
    reader: ImageReader, settings: DatasetConfig, sharding: jax.sharding.Sharding
) -> ImageStore:
    """Puts the images where the settings say, or where they fit, and logs where and why.

    Args:
      reader: of the training images.
      settings: `store` and `memory_gib`.
      sharding: of images kept on the devices.

    Raises:
      UserError: an image cannot be decoded.
    """
    size = len(reader) * image_bytes(reader)
    place, reason = settings.store, ""
    if place == "auto":
        place, reason = _place(size, settings, host_memory() // n_local_processes())
    require_agreement("the place of the training images", place)
    kept = {
        "device": "are kept in device memory",
        "host": "are kept in host memory",
        "stream": "are streamed from disk",
    }[place]
    if place == "stream" and not reader.are_kept:
        kept = "are decoded anew for each batch, which is slow, as nothing is kept on disk"
    logger.info("%s training images (%s) %s%s", f"{len(reader):,}", _in_words(size), kept, reason)
    if place == "device":
        return DeviceStore(reader, sharding)
    return HostStore(reader) if place == "host" else StreamedStore(reader)


def _place(
    size: int, settings: DatasetConfig, memory_here: int
) -> tuple[Literal["device", "host", "stream"], str]:
    """Where images of that many bytes fit, and why no nearer to where the compute is.

    Never on a CPU "device": its memory is the host's, and a step that is given its pixels need
    not be compiled for each number of images.
    """
    device = jax.local_devices()[0]
    reason = ""
    if device.platform != "cpu":
        memory = (device.memory_stats() or {}).get("bytes_limit", 0)
        if size <= DEVICE_SHARE * memory:
            return "device", ""
        reason = ": the device does not say how much memory it has"
        if memory:
            reason = f": more than a quarter of the device's {_in_words(memory)}"
    if settings.memory_gib:
        limit = settings.memory_gib * 2**30
        too_much = f": more than the {settings.memory_gib:g} GiB of config.dataset.memory_gib"
    else:
        limit = HOST_SHARE * memory_here
        too_much = f": more than a quarter of the host's {_in_words(memory_here)}"
    return ("host", reason) if size <= limit else ("stream", too_much)


def _in_words(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 // 10 else f"{n_bytes / 2**20:.2f} MiB"


def host_memory(
    groups: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/sys/fs/cgroup")
) -> int:
    """Bytes of memory that this process may use: the machine's, or its control group's if less.

    Args:
      groups: the kernel's list of this process's control groups.
      mounts: where the kernel shows their limits.
    """
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _group_limits(groups, mounts):
        with contextlib.suppress(OSError, ValueError):  # absent, or "max"
            sizes.append(int(file.read_text()))
    return min(sizes)


def _group_limits(groups: Path, mounts: Path) -> Iterator[Path]:
    """The files with the memory limits of those control groups and of the ones around them."""
    if not groups.exists():  # no Linux
        return
    for line in groups.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, name = mounts, "memory.max"
        if controllers:  # version 1
            mount, name = mounts / "memory", "memory.limit_in_bytes"
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount):
                yield folder / name
