"""A cache of decoded images on disk, shared by all runs on the same prepared data."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import struct
import threading
import weakref
import zlib
from pathlib import Path

import numpy as np
import PIL
from PIL import features

from devnet_jax.data import decode, preprocessing
from devnet_jax.data.preprocessing import Preprocessing

logger = logging.getLogger(__name__)

_CHECKSUM = struct.Struct("<II")  # _MARK and the CRC of the pixels
_MARK = 0x6465636F  # tells a written slot from a hole in the file, which reads as zeros
_CODECS = ("jpg", "libjpeg_turbo", "jpg_2000", "libtiff", "webp", "avif")
MAX_FREE_FRACTION = 0.5  # of the free disk space, for the images still to be written


class DecodeCache:
    """A cache of the decoded images of one data set at one size.

    Any number of threads and processes may use the file at once, without a lock. It has a slot for
    each image: the pixels and their checksum. A slot that is empty, incomplete or damaged has a
    wrong checksum and counts as not cached. All writers of a slot write the same bytes.
    """

    def __init__(self, file: Path, n_bytes: int, *, writable: bool) -> None:
        """Opens the cache.

        Args:
          file: the cache's file; created if it does not exist and `writable` is True.
          n_bytes: number of bytes of the network's input of one image.
          writable: if False, `write` does nothing.

        Raises:
          OSError: if the file cannot be opened.
        """
        flags = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
        self._file = file
        self._descriptor = os.open(file, flags | os.O_CLOEXEC, 0o666)
        weakref.finalize(self, os.close, self._descriptor)
        self._slot_bytes = slot_bytes(n_bytes)
        self._writable = writable
        self._lock = threading.Lock()

    def read(self, i: int, pixels: np.ndarray) -> bool:
        """Reads image i into `pixels`, uint8, contiguous.

        Returns False if the image is not cached; the content of `pixels` is then undefined.
        """
        checksum = bytearray(_CHECKSUM.size)
        try:
            count = os.preadv(self._descriptor, [pixels.data, checksum], i * self._slot_bytes)
        except OSError:
            return False
        return count == self._slot_bytes and checksum == _checksum(pixels)

    def write(self, i: int, pixels: np.ndarray) -> None:
        """Stores image i, uint8, contiguous; after the first failure, does nothing."""
        if not self._writable:
            return
        try:
            os.pwritev(self._descriptor, [pixels.data, _checksum(pixels)], i * self._slot_bytes)
        except OSError as error:
            with self._lock:
                if self._writable:
                    _log_not_cached(self._file, str(error.strerror))
                self._writable = False


def open_cache(
    folder: Path, fingerprint: str, n_images: int, settings: Preprocessing
) -> DecodeCache | None:
    """Opens the cache of a data set for one preprocessing; None if images cannot be cached.

    The file is in the subfolder `decoded` of the prepared data, which is replaced as a whole when
    raw files change. Its name contains a hash of the preprocessing, and one of the fingerprint and
    of the decoders' versions; other files of the same preprocessing are deleted.

    Args:
      folder: folder of the prepared data.
      fingerprint: fingerprint of the data set.
      n_images: number of images in the data set.
      settings: settings of the way to the network's input.
    """
    try:
        name = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
        file = folder / "decoded" / f"{name}-{_key(fingerprint)}"
        # Parents are not created: another process may be replacing the folder.
        file.parent.mkdir(exist_ok=True)
        writable = _prepare_file(file, n_images * slot_bytes(settings.n_bytes))
        if writable or file.exists():
            return DecodeCache(file, settings.n_bytes, writable=writable)
    except OSError as error:
        _log_not_cached(folder / "decoded", str(error.strerror or error))
    return None


def slot_bytes(n_bytes: int) -> int:
    """Returns the number of bytes that an image takes on disk, for pixels of `n_bytes`."""
    return n_bytes + _CHECKSUM.size


def _checksum(pixels: np.ndarray) -> bytes:
    return _CHECKSUM.pack(_MARK, zlib.crc32(pixels.data))


def _key(fingerprint: str) -> str:
    """Returns a hash of all that determines the pixels: the data, the decoders, our code."""
    decoders = [str(features.version(name)) for name in _CODECS]
    modules = [*Path(decode.__file__).parent.glob("*.py"), Path(preprocessing.__file__)]
    code = [file.read_text("utf-8") for file in sorted(modules)]
    parts = [fingerprint, PIL.__version__, *decoders, *code]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _prepare_file(file: Path, size: int) -> bool:
    """Deletes outdated files of the same name; returns True if `file` may be written to."""
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        _log_not_cached(file, "it is read-only")
        return False
    for other in file.parent.glob(f"{file.name.partition('-')[0]}-*"):
        if other != file:
            other.unlink(missing_ok=True)
    # The file is sparse: only the written slots take disk space.
    written = file.stat().st_blocks * 512 if file.exists() else 0
    free = shutil.disk_usage(file.parent).free
    if size - written > MAX_FREE_FRACTION * free:
        gib = 2**-30
        needed = f"{(size - written) * gib:.2f} of the {free * gib:.2f} GiB free would be needed"
        _log_not_cached(file, needed)
        return False
    return True


def _log_not_cached(path: Path, reason: str) -> None:
    logger.info("decoded images are not cached in '%s': %s", path, reason)
