"""File types by name and by content: images, images that cannot be read, and everything else."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import PurePath

from PIL import Image

from devnet_jax.errors import UserError

NPY_MAGIC = b"\x93NUMPY"

# Images of types that Pillow cannot read, by the suffix of the file's name.
UNREADABLE_SUFFIXES: Mapping[str, str] = {
    ".heic": "HEIC",
    ".heif": "HEIF",
    ".hif": "HEIF",
    ".jxl": "JPEG XL",
    ".jxr": "JPEG XR",
    ".wdp": "JPEG XR",
    ".dcm": "DICOM",
    ".dicom": "DICOM",
    ".exr": "OpenEXR",
    ".svg": "SVG",
    ".3fr": "raw camera",
    ".arw": "raw camera",
    ".cr2": "raw camera",
    ".cr3": "raw camera",
    ".dng": "raw camera",
    ".nef": "raw camera",
    ".nrw": "raw camera",
    ".orf": "raw camera",
    ".pef": "raw camera",
    ".raf": "raw camera",
    ".rw2": "raw camera",
    ".srw": "raw camera",
}

# The same types by their first bytes: (offset, bytes, name).
_UNREADABLE_MAGIC = (
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypheix", "HEIC"),
    (4, b"ftypheim", "HEIC"),
    (4, b"ftyphevc", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypmsf1", "HEIF"),
    (4, b"ftypcrx ", "raw camera"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (0, b"II\xbc\x01", "JPEG XR"),
    (128, b"DICM", "DICOM"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"FUJIFILMCCD-RAW", "raw camera"),
    (0, b"IIRO", "raw camera"),
    (0, b"IIU\0", "raw camera"),
)

# A file that begins so but cannot be opened is a damaged image, not another type of file.
_IMAGE_MAGIC = (
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"\0\0\0\x0cjP",
)
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class NotAnImageError(UserError):
    """Raised for content that is not empty and is of no image type, in a file not named as one."""


class UnreadableTypeError(UserError):
    """Raised for an image of a type that cannot be read."""


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Returns the suffixes of images that can be read, in lower case: .png, .npy, …"""
    # Pillow writes PDF files but cannot read them.
    return frozenset(Image.registered_extensions()) - {".pdf"} | {".npy"}


def max_pixels() -> int:
    """Returns the largest number of pixels that Pillow decodes."""
    return 2 * (Image.MAX_IMAGE_PIXELS or 0)


def too_large_error(subject: str) -> UserError:
    """Returns the error for an image of more than `max_pixels`."""
    return UserError(
        f"{subject} has more than {max_pixels()} pixels, the most that are supported: make it"
        " smaller or cut it"
    )


def one_line(error: Exception) -> str:
    """Returns the error's message on one line, or its type if there is no message."""
    return " ".join(str(error).split()) or type(error).__name__


def is_named_as_image(path: PurePath) -> bool:
    """Returns True if a file's suffix is that of an image, readable or not."""
    suffix = path.suffix.lower()
    return suffix in image_suffixes() or suffix in UNREADABLE_SUFFIXES


def unidentified(data: bytes, path: str) -> UserError:
    """Returns the error for content that Pillow does not recognise as an image.

    Args:
      data: content of the file, not empty.
      path: name of the file, for messages.
    """
    suffix = PurePath(path).suffix.lower()
    for offset, magic, name in _UNREADABLE_MAGIC:
        if data.startswith(magic, offset):
            return _unreadable(path, name)
    if suffix in UNREADABLE_SUFFIXES:
        return _unreadable(path, UNREADABLE_SUFFIXES[suffix])
    if data.startswith(_LFS_POINTER):
        return UserError(
            f"image '{path}' is a Git LFS pointer, not the image itself: fetch it with `git lfs"
            " pull`"
        )
    if not data.strip(b"\0"):
        return UserError(f"image '{path}' contains only zeros: restore or remove it")
    if data.startswith(_IMAGE_MAGIC):
        return UserError(f"image '{path}' is damaged: restore or remove it")
    if suffix in image_suffixes():
        return UserError(
            f"image '{path}' is damaged: its content is of no image type; restore or remove it"
        )
    return NotAnImageError(
        f"'{path}' is not an image of a known type: convert it to PNG or remove it"
    )


def _unreadable(path: str, name: str) -> UnreadableTypeError:
    return UnreadableTypeError(
        f"image '{path}' is a {name} image, which cannot be read: convert it to PNG or TIFF"
    )
