"""Decoded images on disk, beside the prepared data: what one run has decoded the next one reads."""

from __future__ import annotations

import hashlib
import inspect
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

from devnet_jax.data import decode

logger = logging.getLogger(__name__)

_CHECKSUM = struct.Struct("<II")  # a mark, which no hole in the file has, and the pixels' CRC
_WRITTEN = 0x6465636F
_CODECS = ("jpg", "libjpeg_turbo", "jpg_2000", "libtiff", "webp", "avif")
FREE_SHARE = 0.5  # of the free space, at most, for the images still to be written


class DecodedCache:
    """The images of one data set in one size, for any number of threads and processes at once.

    The file has a slot for each image: its pixels and their checksum. A slot that nobody has
    written, or not to its end, or that was damaged, has a wrong one and counts as absent. Whoever
    writes a slot writes the same.
    """

    def __init__(self, file: Path, image_size: int, *, writable: bool) -> None:
        """Opens the file, which is made unless there is one already.

        Raises:
          OSError: it cannot be opened.
        """
        flags = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
        self._file = file
        self._descriptor = os.open(file, flags | os.O_CLOEXEC, 0o666)
        weakref.finalize(self, os.close, self._descriptor)
        self._slot = slot_bytes(image_size)
        self._writable = writable
        self._lock = threading.Lock()

    def read(self, i: int, pixels: np.ndarray) -> bool:
        """Fills in image i, uint8 [S, S, 3]; False, and anything in `pixels`, if it is absent."""
        checksum = bytearray(_CHECKSUM.size)
        try:
            count = os.preadv(self._descriptor, [pixels.data, checksum], i * self._slot)
        except OSError:
            return False
        return count == self._slot and checksum == _checksum(pixels)

    def write(self, i: int, pixels: np.ndarray) -> None:
        """Keeps image i, uint8 [S, S, 3]; after the first failure nothing more is written."""
        if not self._writable:
            return
        try:
            os.pwritev(self._descriptor, [pixels.data, _checksum(pixels)], i * self._slot)
        except OSError as error:
            with self._lock:
                if self._writable:
                    _log_why_not(self._file, str(error.strerror))
                self._writable = False


def open_cache(
    folder: Path, fingerprint: str, n_images: int, image_size: int
) -> DecodedCache | None:
    """The images decoded before in a size, or room for them; None where they cannot be kept.

    They are in `decoded` in the folder of the prepared data, which is replaced as a whole when raw
    files change. A file there is of one size, one fingerprint and one way of decoding; others of
    its size are removed.

    Args:
      folder: of the prepared data.
      fingerprint: changes whenever the data does.
      n_images: in the whole data set.
      image_size: S, of images uint8 [S, S, 3].
    """
    try:
        file = folder / "decoded" / f"{image_size}-{_key(fingerprint)}"
        # Not its parents: should the folder be about to be replaced, its place must stay free.
        file.parent.mkdir(exist_ok=True)
        writable = _make_room(file, n_images * slot_bytes(image_size))
        if writable or file.exists():
            return DecodedCache(file, image_size, writable=writable)
    except OSError as error:
        _log_why_not(folder / "decoded", str(error.strerror or error))
    return None


def slot_bytes(image_size: int) -> int:
    """What an image takes on disk."""
    return image_size * image_size * 3 + _CHECKSUM.size


def _checksum(pixels: np.ndarray) -> bytes:
    return _CHECKSUM.pack(_WRITTEN, zlib.crc32(pixels.data))


def _key(fingerprint: str) -> str:
    """Changes with everything that the pixels follow from: the files, the decoders, our code."""
    decoders = [str(features.version(name)) for name in _CODECS]
    parts = [fingerprint, PIL.__version__, *decoders, inspect.getsource(decode)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _make_room(file: Path, size: int) -> bool:
    """Removes earlier files of the same image size; whether this one may be written to."""
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        _log_why_not(file, "it is read-only")
        return False
    for earlier in file.parent.glob(f"{file.name.partition('-')[0]}-*"):
        if earlier != file:
            earlier.unlink(missing_ok=True)
    # Of a file with holes, only what is written takes space.
    written = file.stat().st_blocks * 512 if file.exists() else 0
    free = shutil.disk_usage(file.parent).free
    if size - written > FREE_SHARE * free:
        gib = 2**-30
        needed = f"{(size - written) * gib:.2f} of the {free * gib:.2f} GiB free would be needed"
        _log_why_not(file, needed)
        return False
    return True


def _log_why_not(place: Path, reason: str) -> None:
    logger.info("decoded images are not kept in '%s': %s", place, reason)
