"""Where the decoded training images live: in device memory or in host memory.

Both kinds answer the same questions, so that the training step does not know
which one it has: what is always at hand (`resident`), what one call is given
(`per_call`), how a step finds its images in the two (`gather`), and how many steps
one call may have (`max_steps`).
"""

from __future__ import annotations

import sys
from typing import Literal, Protocol

import jax
import numpy as np

from devnet_jax.devices import n_devices

DEVICE_SHARE = 0.25  # of an accelerator's memory, at most, for images; the rest is for the step
CALL_BYTES = 256 << 20  # of pixels, at most, that one call carries from the host


class ImageStore(Protocol):
    """Decoded training images, uint8 [N, S, S, 3]."""

    place: str  # whose memory holds the images
    resident: jax.Array | None  # what every call is given, replicated over the devices

    def per_call(self, indices: np.ndarray) -> np.ndarray:
        """What one call is given for int32 [steps, D, b] indices; the leading axes stay."""

    def gather(self, resident: jax.Array | None, batch: jax.Array) -> jax.Array:
        """One device's images of one step, uint8 [b, S, S, 3]; traced inside the step."""

    def max_steps(self, batch_size: int) -> int:
        """The most steps that one call should be given."""


class DeviceStore:
    """Images in device memory: a call carries indices only."""

    place = "device"
    resident: jax.Array | None

    def __init__(self, images: np.ndarray, sharding: jax.sharding.Sharding) -> None:
        # Filled up, so that data sets of about the same size share what was compiled.
        filling = np.zeros((padded(len(images)) - len(images), *images.shape[1:]), images.dtype)
        self.resident = jax.device_put(np.concatenate([images, filling]), sharding)

    def per_call(self, indices: np.ndarray) -> np.ndarray:
        return indices

    def gather(self, resident: jax.Array | None, batch: jax.Array) -> jax.Array:
        assert resident is not None
        return resident[batch]

    def max_steps(self, batch_size: int) -> int:
        return sys.maxsize


class HostStore:
    """Images in host memory: a call carries the pixels of its batches."""

    place = "host"
    resident: jax.Array | None = None

    def __init__(self, images: np.ndarray) -> None:
        self._images = images

    def per_call(self, indices: np.ndarray) -> np.ndarray:
        return self._images[indices]

    def gather(self, resident: jax.Array | None, batch: jax.Array) -> jax.Array:
        return batch

    def max_steps(self, batch_size: int) -> int:
        return max(1, CALL_BYTES // (batch_size * self._images[0].nbytes))


def padded(n: int) -> int:
    """The next of 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, …: at most a quarter more than n."""
    step = 1 << max(n.bit_length() - 3, 0)
    return max(4, -(-n // step) * step)


def make_store(
    images: np.ndarray,
    where: Literal["auto", "device", "host"],
    sharding: jax.sharding.Sharding,
) -> ImageStore:
    """Puts the images where the setting says; "auto" goes by their size.

    Args:
      images: uint8 [N, S, S, 3].
      where: `config.dataset.store`. "auto" keeps images on the device unless they need more
        than a quarter of an accelerator's memory, or would be copied once for each of several
        CPU devices that share one memory.
      sharding: of images kept on the devices.
    """
    if where == "auto":
        device = jax.local_devices()[0]
        limit = (device.memory_stats() or {}).get("bytes_limit")
        fits = n_devices() == 1 if limit is None else images.nbytes <= DEVICE_SHARE * limit
        where = "device" if fits else "host"
    return DeviceStore(images, sharding) if where == "device" else HostStore(images)
